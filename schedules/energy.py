"""What fewer bits would lose of a tile's codes: sums of squares per pixel, as exact integers.

The codes have just been stored and are in the first cache level. With VNNI, a table of 128 bytes
tells what is lost of every magnitude, and ``vpdpbusd`` squares and sums four channels per lane;
where a pixel has few channels, several pixels share a vector. Other machines go channel vector by
channel vector in float32, which is exact below 2^24.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from resq_tvm.schedules.code import Code, Expr, cast, constant, intrinsic, load, reinterpret
from resq_tvm.schedules.context import LANES, Context, at, pad_channels
from resq_tvm.schedules.spec import TensorSpec
from resq_tvm.schedules.vecmath import MAGIC, clamp, fence

_F = "float32"
BYTES = 64  # of a vector
Candidate = tuple[int, int]  # bits, shift


def narrow(codes: Expr, bits: int, shift: int, lanes: int) -> Expr:
    """Return float32 codes rounded to ``bits`` bits of step ``2**shift``; 0 bits give zero."""
    if bits == 0:
        return constant(0.0, _F, lanes)
    limit = (1 << (bits - 1)) - 1
    step = float(1 << shift)
    scaled = clamp(codes * constant(1 / step, _F, lanes), -limit, limit, lanes)
    # The fence keeps TVM's simplifier from cancelling MAGIC.
    rounded = fence(scaled + constant(MAGIC, _F, lanes), lanes) - constant(MAGIC, _F, lanes)
    return rounded * constant(step, _F, lanes)


def kept_magnitudes(candidate: Candidate) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return what a choice makes of the magnitudes 0 … 127 (rounding is symmetric)."""
    bits, shift = candidate
    limit = (1 << (bits - 1)) - 1 if bits else 0
    kept = np.clip(np.rint(np.arange(128) / (1 << shift)), 0, limit) * (1 << shift)
    return kept.astype(np.int8)


def lost_magnitudes(candidate: Candidate) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return how far that is from them."""
    return np.abs(np.arange(128) - kept_magnitudes(candidate)).astype(np.int8)


def widened(value: Expr, lanes: int) -> Expr:
    """Return 64 bytes that begin with these; the others are copies of them."""
    if lanes == BYTES:
        return value
    # TVM refuses shuffles that have more lanes than their operands.
    return tirx.Shuffle([value] * (-(-BYTES // lanes)), list(range(BYTES)))


def magnitudes(code: Code, stored: Expr, zero_point: int) -> tuple[Expr, Expr]:
    """Return 64 codes as they are meant (int8), and their magnitudes."""
    flip = constant(np.uint8(zero_point).astype(np.int8).item(), "int8", BYTES)
    signed = code.bind(reinterpret(stored, "int8", BYTES) ^ flip)
    return signed, intrinsic("llvm.abs", "int8", BYTES, signed, tirx.const(False, "bool"))


def look_up(code: Code, table: Any, size: Expr) -> Expr:
    """Return what a table of 128 bytes says of 64 magnitudes."""
    low, high = load(table, [0], BYTES), load(table, [BYTES], BYTES)
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    return code.hold(intrinsic(name, "int8", BYTES, low, size, high), "int8", BYTES)


class Energy:
    """Sums per pixel of one code tensor, for every candidate.

    A row of a tile takes ``vectors(width)`` vectors; after folding, a pixel is one lane.

    Parameters
    ----------
    ctx : Context
    spec : TensorSpec
        The codes.
    candidates : sequence of (bits, shift)
    contiguous : bool
        Whether the pixels of a tile's row are neighbours.
    """

    def __init__(
        self, ctx: Context, spec: TensorSpec, candidates: Sequence[Candidate], contiguous: bool
    ) -> None:
        self.ctx, self.code, self.spec, self.candidates = ctx, ctx.code, spec, candidates
        self.bytes = ctx.target.isa == "avx512-vnni"
        self.shared = 1  # pixels per vector
        if self.bytes and contiguous and spec.c_phys in (4, 8, 16, 32):
            self.shared = BYTES // spec.c_phys
        if self.bytes:
            self.tables = [
                ctx.constant("lost", lost_magnitudes(c)) if c[0] else None for c in candidates
            ]
            channels = np.where(np.arange(spec.c_phys) < spec.c, -1, 0).astype(np.int8)
            self.valid = np.tile(channels, self.shared)
            self.masks: dict[bytes, Any] = {}
        else:
            ones = np.ones(spec.c, np.float32)
            self.mask = ctx.constant("mask", pad_channels(ones, ctx.vectors))

    def vectors(self, width: int) -> int:
        """Return how many vectors a row of ``width`` pixels takes."""
        return -(-width // self.shared)

    def slot(self, i: Expr, j: Expr, width: int) -> Expr:
        """Return the lane of pixel (i, j) of a tile."""
        if self.shared == 1:
            return i * width + j
        return i * (self.vectors(width) * self.shared) + j

    def row(self, y: Expr, x: Expr, step: int, width: int) -> list[list[Expr]]:
        """Return per candidate the vectors (16 × int32) of a row of pixels ``step`` apart."""
        sums: list[list[Expr]] = [[] for _ in self.candidates]
        for first in range(0, width, self.shared):
            count = min(self.shared, width - first)
            at_x = x + first * step
            parts = self._bytes(y, at_x, count) if self.bytes else self._floats(y, at_x)
            for column, part in zip(sums, parts, strict=True):
                column.append(part)
        return sums

    def _bytes(self, y: Expr, x: Expr, pixels: int) -> list[Expr]:
        code, spec = self.code, self.spec
        zero = constant(0, "int32", LANES)
        sums = [zero for _ in self.candidates]
        extent = spec.c_phys * pixels
        for start in range(0, extent, BYTES):
            lanes = min(BYTES, extent - start)
            index = at(spec, y, x, start)
            stored = widened(load(self.ctx.buffer(spec.name), index, lanes), lanes)
            _, size = magnitudes(code, stored, self.ctx.kernel.code.zero_point)
            keep = np.zeros(BYTES, np.int8)
            keep[:lanes] = self.valid[start : start + lanes]
            if not keep.all():
                mask = self._mask(keep)
                size = size & load(mask, [0], BYTES)
            size = code.hold(size, "int8", BYTES)
            for n, table in enumerate(self.tables):
                lost = size if table is None else look_up(code, table, size)
                sums[n] = intrinsic(
                    "llvm.x86.avx512.vpdpbusd.512", "int32", LANES, sums[n], lost, lost
                )
        return [code.hold(v, "int32", LANES) for v in sums]

    def _mask(self, keep: np.ndarray[Any, Any]) -> Any:
        """Return the constant that clears lanes beyond the channels."""
        if keep.tobytes() not in self.masks:
            self.masks[keep.tobytes()] = self.ctx.constant("mask", keep)
        return self.masks[keep.tobytes()]

    def _floats(self, y: Expr, x: Expr) -> list[Expr]:
        code, spec, ctx = self.code, self.spec, self.ctx
        sums = [code.allocate(LANES, _F, "e") for _ in self.candidates]
        for buffer in sums:
            code.store(buffer, [0], constant(0.0, _F, LANES), LANES)
        for block in ctx.channel_blocks(1):
            (lanes,) = block.lanes
            with code.loop(block.count, "ec") as i:
                c = (i + block.start) * LANES
                stored = cast(load(ctx.buffer(spec.name), at(spec, y, x, c), lanes), "int32", lanes)
                signed = stored - constant(ctx.kernel.code.zero_point, "int32", lanes)
                fine = code.bind(cast(signed, _F, lanes) * load(self.mask, [c], lanes))
                for (bits, shift), buffer in zip(self.candidates, sums, strict=True):
                    lost = fine if bits == 0 else code.bind(fine - narrow(fine, bits, shift, lanes))
                    code.store(buffer, [0], load(buffer, [0], lanes) + lost * lost, lanes)
        return [cast(load(buffer, [0], LANES), "int32", LANES) for buffer in sums]

    def folded(self, vectors: list[Expr]) -> list[Expr]:
        """Add up the lanes of every pixel; lane ``slot`` of the results is a pixel's sum."""
        code = self.code
        width = LANES // self.shared  # lanes of one pixel
        while width > 1:
            pairs = [
                (vectors[n], vectors[n + 1] if n + 1 < len(vectors) else vectors[n])
                for n in range(0, len(vectors), 2)
            ]
            vectors = [code.hold(_fold(a, b), "int32", LANES) for a, b in pairs]
            width //= 2
        return vectors


def _fold(a: Expr, b: Expr) -> Expr:
    """Add neighbouring lanes: of ``a`` into the first half, of ``b`` into the second."""
    even = tirx.Shuffle([a, b], list(range(0, 2 * LANES, 2)))
    odd = tirx.Shuffle([a, b], list(range(1, 2 * LANES, 2)))
    return even + odd

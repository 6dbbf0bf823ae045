"""Codes of pixels that get fewer bits than the pool's most, rewritten in place.

Which pixels do is as good as random, so that a branch per pixel is mispredicted half of the time.
With VNNI there is none: a table of 128 bytes tells what is kept of every magnitude, and 64 bytes at
a time are kept, looked up or dropped lane by lane. Other machines go pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from resq_tvm.schedules.code import Expr, cast, constant, load, splat
from resq_tvm.schedules.context import LANES, Context, at
from resq_tvm.schedules.energy import BYTES, kept_magnitudes, look_up, magnitudes, narrow, widened
from resq_tvm.schedules.spec import TensorSpec

_F = "float32"
KEEP = -1  # a pixel's codes stay as they are; otherwise: the bits that they get

Place = Callable[[Expr, Expr], tuple[Expr, Expr]]
"""(row, column) of a tile → position in the output."""
Slot = Callable[[Expr, Expr], Expr]
"""(row, column) of a tile → index of what to do."""


class Rewriter:
    """Rewrites pixels of one code tensor.

    Parameters
    ----------
    ctx : Context
    spec : TensorSpec
        The codes.
    lower : sequence of (bits, shift)
        The pool's choices below the most bits.
    """

    def __init__(self, ctx: Context, spec: TensorSpec, lower: Sequence[tuple[int, int]]) -> None:
        self.ctx, self.code, self.spec = ctx, ctx.code, spec
        self.few = [(bits, shift) for bits, shift in lower if bits]
        self.bytes = ctx.target.isa == "avx512-vnni"
        if self.bytes:
            self.tables = [ctx.constant("kept", kept_magnitudes(c)) for c in self.few]

    def tile(
        self, todo: Any, size: tuple[int, int], together: int, slot: Slot, place: Place
    ) -> None:
        """Rewrite the pixels of a tile.

        Parameters
        ----------
        todo : buffer
            Per slot, int32: `KEEP`, or the bits that the pixel gets.
        size : (int, int)
            Rows and columns.
        together : int
            How many pixels of a row are neighbours and share 64 bytes.
        slot, place : callable
        """
        height, width = size
        whole, rest = divmod(width, together) if self.bytes else (width, 0)
        with self.code.loop(height, "fy") as i:
            with self.code.loop(whole, "fx") as n:
                self._pixels(todo, i, n * together, together, slot, place)
            if rest:
                self._pixels(todo, i, whole * together, rest, slot, place)

    def _pixels(self, todo: Any, i: Expr, j: Expr, count: int, slot: Slot, place: Place) -> None:
        y, x = place(i, j)
        if not self.bytes:
            self._pixel(load(todo, [slot(i, j)], 1), y, x)
            return
        wanted = self._spread(load(todo, [slot(i, j)], count), count)
        extent = self.spec.c_phys * count
        with self.code.loop(extent // BYTES, "rc") as c:
            self._bytes(wanted, at(self.spec, y, x, c * BYTES), BYTES)
        if extent % BYTES:
            start = extent - extent % BYTES
            self._bytes(wanted, at(self.spec, y, x, start), extent % BYTES)

    def _spread(self, todo: Expr, count: int) -> Expr:
        """Repeat what to do with a pixel over its bytes."""
        if count == 1:
            return self.code.bind(splat(cast(todo, "int8", 1), BYTES), "todo")
        few = cast(todo, "int8", count)
        lanes = np.minimum(np.arange(BYTES) // self.spec.c_phys, count - 1)
        # TVM refuses shuffles that have more lanes than their operands.
        copies = [few] * -(-BYTES // count)
        return self.code.hold(tirx.Shuffle(copies, lanes.tolist()), "int8", BYTES)

    def _bytes(self, wanted: Expr, index: list[Any], lanes: int) -> None:
        """Rewrite up to 64 bytes."""
        code, buffer = self.code, self.ctx.buffer(self.spec.name)
        dtype, offset = self.spec.dtype, self.ctx.kernel.code.zero_point
        stored = code.bind(widened(load(buffer, index, lanes), lanes))
        zero = constant(offset, dtype, BYTES)
        value = tirx.Select(tirx.EQ(wanted, constant(0, "int8", BYTES)), zero, stored)
        if self.few:
            signed, size = magnitudes(code, stored, offset)
            negative = tirx.LT(signed, constant(0, "int8", BYTES))
            for (bits, _), table in zip(self.few, self.tables, strict=True):
                kept = look_up(code, table, size)
                kept = tirx.Select(negative, constant(0, "int8", BYTES) - kept, kept)
                kept = tirx.op.reinterpret(f"{dtype}x{BYTES}", kept) + zero
                mine = tirx.EQ(wanted, constant(bits, "int8", BYTES))
                value = code.hold(tirx.Select(mine, kept, value), dtype, BYTES)
        if lanes < BYTES:
            value = tirx.Shuffle([value], list(range(lanes)))
        code.store(buffer, index, value, lanes)

    def _pixel(self, todo: Expr, y: Expr, x: Expr) -> None:
        wanted = self.code.bind(todo, "todo")
        for bits, shift in ((0, 0), *self.few):
            with self.code.when(tirx.EQ(wanted, tirx.const(bits, "int32"))):
                self.pixel(y, x, bits, shift)

    def pixel(self, y: Expr, x: Expr, bits: int, shift: int) -> None:
        """Give one pixel fewer bits."""
        ctx, code, spec = self.ctx, self.code, self.spec
        zero = ctx.kernel.code.zero_point
        buffer = ctx.buffer(spec.name)
        for block in ctx.channel_blocks(1):
            (lanes,) = block.lanes
            with code.loop(block.count, "rc") as i:
                index = at(spec, y, x, (i + block.start) * LANES)
                if bits == 0:
                    code.store(buffer, index, constant(zero, spec.dtype, lanes), lanes)
                    continue
                stored = cast(load(buffer, index, lanes), "int32", lanes)
                fine = cast(stored - constant(zero, "int32", lanes), _F, lanes)
                coarse = cast(narrow(code.bind(fine), bits, shift, lanes), "int32", lanes)
                value = coarse + constant(zero, "int32", lanes)
                code.store(buffer, index, cast(value, spec.dtype, lanes), lanes)

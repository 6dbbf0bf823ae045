"""Ternary W2A2 on bit planes, outputs in lanes: bits are counted rather than codes multiplied.

The loops and what they count: `resq_tvm.schedules.arm.counting`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from resq_tvm.errors import CompileError
from resq_tvm.schedules.arm.assembly import call, routine
from resq_tvm.schedules.arm.counting import MASKS, PIXELS, SELECTS
from resq_tvm.schedules.arm.depth import INT16, limits_of
from resq_tvm.schedules.arm.planes import GROUP, emit_planes, pack, packable, plane_bytes
from resq_tvm.schedules.arm.runs import CHUNK, Run, reduction_of
from resq_tvm.schedules.arm.scheme import value, zeros
from resq_tvm.schedules.code import Expr, cast, load
from resq_tvm.schedules.context import LANES, ChannelBlock, Context, block_outputs
from resq_tvm.schedules.packing import densify
from resq_tvm.schedules.spec import Conv, FusedKernel, Phase

TERNARY = "ternary"

_WORTH = 24  # products per code: with fewer, making the planes takes too long


def fits(kernel: FusedKernel, limits: tuple[int, int]) -> bool:
    """Return whether a kernel's codes and weights are ternary and its inputs can be packed."""
    anchor = kernel.anchor
    if not isinstance(anchor, Conv) or limits != (1, 1) or kernel.sparse is not None:
        return False
    dense = densify(kernel, LANES, CHUNK).anchor
    assert isinstance(dense, Conv)
    specs = [kernel.tensor(name) for name in anchor.inputs]
    whole = all(s.c_phys % GROUP == 0 and packable(int(np.prod(s.shape))) for s in specs)
    return whole and dense.groups == 1 and dense.weight[0].size <= INT16


def pays(kernel: FusedKernel) -> bool:
    """Return whether pixels fill a tile, and codes are used often enough to be packed."""
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    codes = sum(int(np.prod(kernel.tensor(name).shape)) for name in anchor.inputs)
    pixels = kernel.h * kernel.w
    return pixels >= PIXELS and anchor.weight.size * pixels >= _WORTH * codes


class TernaryCore:
    """Sums one phase of a convolution on one run of output channels.

    Parameters
    ----------
    ctx : Context
    phase : Phase
    block : ChannelBlock
        Of one vector of 16 outputs.

    Attributes
    ----------
    in_memory : bool
        Whether `reduce` leaves the sums in memory.

    Raises
    ------
    CompileError
        If the kernel is not one of ternary codes that can be packed.
    """

    in_memory = True

    def __init__(self, ctx: Context, phase: Phase, block: ChannelBlock) -> None:
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv) and len(block.lanes) == 1
        self.ctx, self.code, self.anchor, self.block = ctx, ctx.code, anchor, block
        if not fits(ctx.kernel, limits_of(anchor)):
            raise CompileError(
                f"kernel {ctx.kernel.name}: scheme {TERNARY} needs codes and weights of 2 bits in "
                "packable tensors; let the rules choose"
            )
        self.counting = SELECTS if ctx.target.in_order else MASKS
        for name in anchor.inputs:
            if name not in ctx.planes:
                ctx.planes[name] = emit_planes(ctx, name, self.counting.positive)
        self.reduction = reduction_of(ctx.kernel, phase)
        packed = []
        for run, weights in zip(self.reduction.runs, self.reduction.weights, strict=True):
            o, rows, columns = weights.shape[:3]
            whole = weights[:, :, :, : run.chunks].reshape(o, rows, columns, -1)
            short = [weights[:, :, :, run.chunks + i, :size] for i, size in enumerate(run.tails)]
            steps = np.concatenate([whole, *short], axis=3).reshape(o, -1, GROUP)
            packed.append(pack(steps, self.counting.positive))
        planes = np.concatenate(packed, axis=1)  # (outputs, steps, 2)
        chosen = block_outputs(planes, ctx, block)
        chosen = chosen.reshape(block.count, LANES, -1, 2).transpose(0, 2, 3, 1)
        self.weight = ctx.constant("w", chosen)
        if self.counting.from_magnitude:
            bits = np.unpackbits(chosen[..., None], axis=-1)
            self.magnitude = ctx.constant("magnitude", bits.sum(axis=(1, 2, 4), dtype=np.int16))
        kinds = ["int8"] * self.counting.counts + ["int16"] * 2 * PIXELS
        self.made = routine(self.counting.loop(), kinds, PIXELS)

    def reduce(
        self, o: Expr, y0: Expr, x0: Expr, pixels: list[tuple[int, int]], changed: Expr | None
    ) -> list[Any]:
        """Emit a tile's sums; returns, per vector of outputs, where they are: int32 [pixel][16]."""
        assert changed is None and len(pixels) <= PIXELS
        code = self.code
        spill = code.allocate(LANES * len(pixels), "int32", "spill")
        padded = [*pixels, *[pixels[-1]] * (PIXELS - len(pixels))]
        counts = zeros(code, self.counting.counts, 16, "int8")
        sums = zeros(code, 2 * PIXELS, 8, "int16")
        if self.counting.from_magnitude:
            for half in range(2):
                start = code.bind(load(self.magnitude, [o, 8 * half], 8), "start")
                for m in range(PIXELS):
                    code.store(sums[2 * m + half], [0], start, 8)
        first = 0
        for run in self.reduction.runs:
            steps = _steps(run, run.chunks)
            with code.loop(run.rows, "ky") as a, code.loop(run.columns, "kx") as b:
                at = (a * run.columns + b) * steps + first
                self._run(run, steps, (a, b), at, (o, y0, x0), padded, [*counts, *sums])
            first += run.rows * run.columns * steps
        for n in range(len(pixels)):
            for half in range(2):
                wide = cast(value(sums[2 * n + half], 8), "int32", 8)
                code.store(spill, [n * LANES + 8 * half], wide, 8)
        return [spill]

    def _run(
        self,
        run: Run,
        steps: int,
        tap: tuple[Expr, Expr],
        at: Expr,
        tile: tuple[Expr, Expr, Expr],
        pixels: list[tuple[int, int]],
        accumulators: list[Any],
    ) -> None:
        spec = self.ctx.kernel.tensor(run.input)
        planes = self.ctx.planes[run.input]
        o, y0, x0 = tile
        sy, sx = self.anchor.in_stride
        top = y0 * sy + (tap[0] * run.step_y + run.dy + spec.halo[0])
        left = x0 * sx + (tap[1] * run.step_x + run.dx + spec.halo[1])
        pixel = plane_bytes(spec.shape[3])
        row = pixel * spec.shape[2]
        places = [
            load(planes, [(top + i * sy) * row + (left + j * sx) * pixel], 1) for i, j in pixels
        ]
        stretch = _steps(run, run.stretch)
        jump = run.step_y * row - 2 * stretch + 1
        weights = load(self.weight, [o, at, 0, 0], 1)
        numbers = [steps, stretch, stretch, jump]
        call(self.code, self.made, accumulators, weights, places, numbers)


def _steps(run: Run, chunks: int) -> int:
    return chunks * (CHUNK // GROUP) + sum(size // GROUP for size in run.tails)

"""Ternary W2A2 on bit planes: seven instructions for 128 products, outputs in lanes.

With ``m`` the bits of what is not zero and ``s`` of what is negative (a part of ``m``), eight
products sum to ``cnt(z) − 2·cnt(z & t)``, ``z = m_a & m_w``, ``t = s_a ^ s_w``. The two counts have
accumulators of their own, which are widened to int16 every 30 steps (30 · 8 < 256).

Reference: Arm Architecture Reference Manual, AND, EOR, CNT, UADDW and USUBW (vector).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from resq_tvm.errors import CompileError
from resq_tvm.schedules.arm.assembly import (
    Lines,
    Loop,
    call,
    load_weight,
    register,
    routine,
    weave,
)
from resq_tvm.schedules.arm.depth import INT16, limits_of
from resq_tvm.schedules.arm.planes import GROUP, emit_planes, pack, packable, plane_bytes
from resq_tvm.schedules.arm.runs import CHUNK, Run, reduction_of
from resq_tvm.schedules.arm.scheme import value, zeros
from resq_tvm.schedules.code import Expr, cast, load
from resq_tvm.schedules.context import LANES, ChannelBlock, Context, block_outputs
from resq_tvm.schedules.packing import densify
from resq_tvm.schedules.spec import Conv, FusedKernel, Phase

TERNARY = "ternary"

_PIXELS = 4
_WINDOW = 15  # pairs of steps of at most 8 per byte
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
    return pixels >= _PIXELS and anchor.weight.size * pixels >= _WORTH * codes


def loop() -> Loop:
    """Return the in-order loop: four pixels by 16 outputs, one byte of either plane at a time."""
    masks = [register(m) for m in range(_PIXELS)]
    signs = [register(_PIXELS + m) for m in range(_PIXELS)]
    weight_mask, weight_sign = register(8), register(9)
    both, differ = ([register(10 + 2 * k + i) for i in range(2)] for k in range(2))

    def load_pixel(m: int) -> Lines:
        return [f"ld1r {{{{{r}.16b}}}}, [{{p{m}}}], #1" for r in (masks[m], signs[m])]

    def body(turn: int, more: bool) -> Lines:
        lines: Lines = []
        for pair in ((0, 1), (2, 3)):
            stages = [
                [
                    f"and {z}.16b, {masks[m]}.16b, {weight_mask}.16b"
                    for z, m in zip(both, pair, strict=True)
                ],
                [
                    f"eor {t}.16b, {signs[m]}.16b, {weight_sign}.16b"
                    for t, m in zip(differ, pair, strict=True)
                ],
                [f"and {t}.16b, {z}.16b, {t}.16b" for z, t in zip(both, differ, strict=True)],
                [f"cnt {z}.16b, {z}.16b" for z in both],
                [f"cnt {t}.16b, {t}.16b" for t in differ],
                [
                    f"add {{acc{m}}}.16b, {{acc{m}}}.16b, {z}.16b"
                    for z, m in zip(both, pair, strict=True)
                ],
                [
                    f"add {{acc{4 + m}}}.16b, {{acc{4 + m}}}.16b, {t}.16b"
                    for t, m in zip(differ, pair, strict=True)
                ],
            ]
            products = [line for stage in stages for line in stage]
            others: Lines = []
            if more:
                if pair[0]:  # the weights were used last
                    others += [load_weight(weight_mask), load_weight(weight_sign)]
                for m in pair:
                    others += [*load_pixel(m), f"add {{p{m}}}, {{p{m}}}, {{t}}"]
            if more and not pair[0]:
                products = weave(products[:4], _STEP) + products[4:]
            lines += weave(products, others, len(products) - 10)
        if more:
            # Every other round counts: windows are whole pairs of rounds.
            return lines + (["subs {window}, {window}, #1", "b.eq 30f", "3:"] if turn else [])
        return lines + widen

    widen: Lines = []
    for op, first, times in (("uaddw", 0, 1), ("usubw", 4, 2)):
        for _ in range(times):
            for half, (suffix, lanes) in enumerate((("", "8b"), ("2", "16b"))):
                for m in range(_PIXELS):
                    wide = f"{{acc{8 + 2 * m + half}}}.8h"
                    widen.append(f"{op}{suffix} {wide}, {wide}, {{acc{first + m}}}.{lanes}")
    widen += [f"movi {{acc{i}}}.16b, #0" for i in range(8)]
    start = [line for m in range(_PIXELS) for line in load_pixel(m)]
    start += [load_weight(weight_mask), load_weight(weight_sign), *_STEP]
    start += [f"add {{p{m}}}, {{p{m}}}, {{t}}" for m in range(_PIXELS)]
    start.append(f"mov {{window}}, #{_WINDOW}")
    turns = range(2)  # of the same code: fewer branches are taken
    rounds = tuple(body(turn, more=True) for turn in turns)
    last = tuple(body(turn, more=False) for turn in turns)
    aside = ["30:", *widen, f"mov {{window}}, #{_WINDOW}", "b 3b"]
    return Loop(start, rounds, last, 14, walks=True, aside=(aside,))


# Whether a row ends behind what was loaded last: the pointers jump to the next one.
_STEP = [
    "subs {left}, {left}, #1",
    "csel {t}, {jump}, xzr, eq",
    "csel {left}, {stretch}, {left}, eq",
]


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
        for name in anchor.inputs:
            if name not in ctx.planes:
                ctx.planes[name] = emit_planes(ctx, name)
        self.reduction = reduction_of(ctx.kernel, phase)
        packed = []
        for run, weights in zip(self.reduction.runs, self.reduction.weights, strict=True):
            o, rows, columns = weights.shape[:3]
            whole = weights[:, :, :, : run.chunks].reshape(o, rows, columns, -1)
            short = [weights[:, :, :, run.chunks + i, :size] for i, size in enumerate(run.tails)]
            steps = np.concatenate([whole, *short], axis=3).reshape(o, -1, GROUP)
            packed.append(pack(steps))
        planes = np.concatenate(packed, axis=1)  # (outputs, steps, 2)
        chosen = block_outputs(planes, ctx, block)
        chosen = chosen.reshape(block.count, LANES, -1, 2).transpose(0, 2, 3, 1)
        self.weight = ctx.constant("w", chosen)
        self.made = routine(loop(), ["int8"] * 8 + ["int16"] * 8, _PIXELS)

    def reduce(
        self, o: Expr, y0: Expr, x0: Expr, pixels: list[tuple[int, int]], changed: Expr | None
    ) -> list[Any]:
        """Emit a tile's sums; returns, per vector of outputs, where they are: int32 [pixel][16]."""
        assert changed is None and len(pixels) <= _PIXELS
        code = self.code
        spill = code.allocate(LANES * len(pixels), "int32", "spill")
        padded = [*pixels, *[pixels[-1]] * (_PIXELS - len(pixels))]
        counts = zeros(code, 8, 16, "int8")
        sums = zeros(code, 8, 8, "int16")
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
        jump = run.step_y * row - 2 * stretch
        weights = load(self.weight, [o, at, 0, 0], 1)
        numbers = [steps, stretch, stretch, jump]
        call(self.code, self.made, accumulators, weights, places, numbers)


def _steps(run: Run, chunks: int) -> int:
    return chunks * (CHUNK // GROUP) + sum(size // GROUP for size in run.tails)

"""A convolution's tile in a scheme's accumulators.

Tiles whose pixels all have few bits hold multiples of a power of two: shifted right on the way to
the multiplication they fit a narrower scheme, and the sums are shifted back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import tirx

from resq_tvm.errors import CompileError
from resq_tvm.schedules.arm.assembly import call, routine, shifted
from resq_tvm.schedules.arm.loops import LOOPS, PIXELS
from resq_tvm.schedules.arm.panels import emit_weights
from resq_tvm.schedules.arm.runs import CHUNK, Run, reduction_of
from resq_tvm.schedules.arm.scheme import Scheme
from resq_tvm.schedules.arm.schemes import SCHEMES
from resq_tvm.schedules.arm.steps import Steps, Weight
from resq_tvm.schedules.code import Expr, constant, load, reinterpret, splat
from resq_tvm.schedules.context import LANES, ChannelBlock, Context, block_outputs, ceil_div
from resq_tvm.schedules.spec import Conv, Phase

Rounds = Callable[[Expr, int, Expr], None]  # first chunk, how many rounds, first channel


class Sums:
    """Sums a phase of a convolution on one run of output channels, in one scheme.

    Parameters
    ----------
    ctx : Context
    phase : Phase
    block : ChannelBlock
        Of one vector of 16 outputs.
    method : str
        The scheme's name.
    limits : (int, int)
        Largest magnitudes of codes and weights.
    shift : int
        Codes are multiples of ``2**shift``, and ``limits`` are in units of that.
    other : Sums, optional
        Whose packed weights are taken where they are the same.

    Raises
    ------
    CompileError
        If the scheme cannot hold this kernel's sums.
    """

    def __init__(
        self,
        ctx: Context,
        phase: Phase,
        block: ChannelBlock,
        method: str,
        limits: tuple[int, int],
        shift: int = 0,
        other: Sums | None = None,
    ) -> None:
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv) and len(block.lanes) == 1
        self.ctx, self.code, self.anchor, self.block = ctx, ctx.code, anchor, block
        self.shift = shift
        self.reduction = reduction_of(ctx.kernel, phase)
        kind = SCHEMES[method]
        window = kind.prove(self.reduction, limits)
        if window is None:
            raise CompileError(
                f"kernel {ctx.kernel.name}: scheme {kind.name} cannot hold the sums of its "
                "weights; let the rules choose"
            )
        self.scheme: Scheme = kind(window)
        outputs = kind.outputs
        self.blocks = ceil_div(block.lanes[0], outputs)  # per vector of 16 outputs
        chosen = block_outputs(self.reduction.chunked(), ctx, block)
        self.packed = self.scheme.pack(chosen.reshape(-1, outputs, *chosen.shape[1:]))
        same = other is not None and np.array_equal(self.packed, other.packed)
        self.weight: Any = other.weight if other and same else emit_weights(ctx, self.packed)
        self.block_bytes = self.packed[0].size

    def over(self, names: Sequence[str]) -> Sums:
        """Return the same sums, by the same weights, over other inputs."""
        twin = copy(self)
        new = dict(zip(self.anchor.inputs, names, strict=True))
        runs = tuple(replace(run, input=new[run.input]) for run in self.reduction.runs)
        twin.reduction = replace(self.reduction, runs=runs)
        return twin

    def tile(self, o: Expr, y0: Expr, x0: Expr, pixels: list[tuple[int, int]], spill: Any) -> None:
        """Emit a tile's sums, to ``spill``: int32 [pixel][16]."""
        code = self.code
        with code.loop(self.blocks, "q") as q:
            self._block(o, q, y0, x0, pixels, spill)
        if self.shift:
            for n in range(len(pixels)):
                whole = load(spill, [n * LANES], LANES)
                restored = whole << constant(self.shift, "int32", LANES)
                code.store(spill, [n * LANES], restored, LANES)

    def _block(
        self, o: Expr, q: Expr, y0: Expr, x0: Expr, pixels: list[tuple[int, int]], spill: Any
    ) -> None:
        code, scheme = self.code, self.scheme
        level = scheme.window.level
        # Schemes that take pixels in pairs compute the last one twice.
        missing = -len(pixels) % scheme.pixels
        padded = [*pixels, *pixels[len(pixels) - missing :]] if missing else pixels
        state = scheme.start(code, len(padded))
        for run in self.reduction.runs:
            with code.loop(run.rows, "ky") as a:
                with code.loop(run.columns, "kx") as b:
                    self._run(run, a, b, (o, q), (y0, x0), padded, state)
                    if level == "run":
                        scheme.flush(code, state)
                if level == "row":
                    scheme.flush(code, state)
        target = spill
        if missing:
            target = code.allocate(LANES * len(padded), "int32", "spill")
        first = q * scheme.outputs
        scheme.finish(code, state, target, first)
        if missing:
            for n in range(len(pixels)):
                for i in range(0, scheme.outputs, 4):
                    at = [first + (n * LANES + i)]
                    code.store(spill, at, load(target, at, 4), 4)

    def _run(
        self,
        run: Run,
        a: Expr,
        b: Expr,
        block: tuple[Expr, Expr],
        origin: tuple[Expr, Expr],
        pixels: list[tuple[int, int]],
        state: Any,
    ) -> None:
        code, scheme = self.code, self.scheme
        spec = self.ctx.kernel.tensor(run.input)
        buffer = self.ctx.buffer(run.input)
        sy, sx = self.anchor.in_stride
        top = origin[0] * sy + (a * run.step_y + run.dy + spec.halo[0])
        left = origin[1] * sx + (b * run.step_x + run.dx + spec.halo[1])
        channel = self._group_offset(block[0])
        first = (a * run.columns + b) * run.units + run.first

        def activations(chunk: Expr, size: int, offset: Expr) -> list[Expr]:
            row = _quotient(chunk, run.stretch, run.chunks) if run.chunks > run.stretch else 0
            y, c = top + row * run.step_y, offset - row * (run.stretch * CHUNK)
            if not isinstance(row, int):
                y, c = code.bind(y, "y"), code.bind(c, "c")
            at = [[0, y + i * sy, left + j * sx, c] for i, j in pixels]
            return [_activation(buffer, index, size, self.shift) for index in at]

        def weight(chunk: Expr, vector: int) -> Expr:
            at = ((first + chunk) * scheme.vectors + vector) * CHUNK
            number = block[0] * (LANES // scheme.outputs) + block[1]
            return load(self.weight, [number * self.block_bytes + at], CHUNK)

        steps = Steps(code, scheme, state, activations, weight)
        emit: Rounds = steps.ahead if self.ctx.target.in_order else steps.plain
        window = between = scheme.window.chunks if scheme.window.level == "chunks" else 0
        own = scheme.name in LOOPS and len(pixels) == PIXELS and run.stretch % scheme.unit == 0
        if self.ctx.target.in_order and own:
            emit = self._loop(run, (top, left), pixels, state, weight)
            if scheme.separates:  # by itself, after every window
                between = 0
        done = run.chunks // scheme.unit * scheme.unit
        if between:
            with code.loop(run.chunks // between, "w") as n:
                emit(n * between, between // scheme.unit, channel)
                scheme.flush(code, state)
            done = run.chunks // between * between
        else:
            emit(0, run.chunks // scheme.unit, channel)
        offset = done * CHUNK
        sizes = [CHUNK] * (run.chunks - done) + list(run.tails)
        for n, size in enumerate(sizes):
            steps.single(done + n, size, channel + offset)
            offset += size
            if window and ((n + 1) % window == 0 or n + 1 == len(sizes)):
                scheme.flush(code, state)

    def _loop(
        self,
        run: Run,
        origin: tuple[Expr, Expr],
        pixels: list[tuple[int, int]],
        state: Any,
        weight: Weight,
    ) -> Rounds:
        """Return what emits rounds as an assembly loop."""
        code, scheme = self.code, self.scheme
        spec = self.ctx.kernel.tensor(run.input)
        buffer = self.ctx.buffer(run.input)
        sy, sx = self.anchor.in_stride
        below = run.step_y * spec.shape[2] * spec.shape[3]  # bytes from a row of runs to the next
        accumulators = scheme.accumulators(state)
        loop = shifted(LOOPS[scheme.name](scheme.window), self.shift)
        made = routine(loop, [str(a.dtype) for a in accumulators], len(pixels))

        def emit(start: Expr, count: int, channel: Expr) -> None:
            if not count:
                return
            row = _quotient(start, run.stretch, run.chunks)
            within = start - row * run.stretch
            places = [
                load(buffer, [0, origin[0] + i * sy, origin[1] + j * sx, channel + u * CHUNK], 1)
                for u in range(scheme.unit)
                for i, j in pixels
            ]
            rounds = run.stretch // scheme.unit
            numbers = [
                count,
                row * below + within * CHUNK,
                rounds - within // scheme.unit
                if isinstance(within, int)
                else rounds - tirx.floordiv(within, scheme.unit),
                rounds,
                scheme.unit * CHUNK,
                below - (run.stretch - scheme.unit) * CHUNK,
            ]
            call(code, made, accumulators, weight(start, 0), places, numbers)

        return emit

    def _group_offset(self, o: Expr) -> Expr:
        """First input channel of the group that a vector of outputs lies in."""
        if self.anchor.groups == 1:
            return 0
        outputs = self.anchor.weight.shape[0] // self.anchor.groups // LANES
        return (o + self.block.start) // outputs * self.anchor.weight.shape[3]


def _quotient(value: Expr, divisor: int, limit: int) -> Expr:
    """Return ``value // divisor`` for ``0 <= value <= limit`` without a division."""
    if isinstance(value, int):
        return value // divisor
    shift = 16
    factor = (1 << shift) // divisor + 1
    if any(v * factor >> shift != v // divisor for v in range(limit + 1)):
        return tirx.floordiv(value, divisor)
    return (value * factor) >> tirx.const(shift, "int32")


def _activation(buffer: Any, index: list[Expr], size: int, shift: int) -> Expr:
    """Load a chunk; a short one is repeated, since its other bytes meet weights of zero."""
    if size == CHUNK:
        value = load(buffer, index, CHUNK)
    else:
        dtype = f"int{8 * size}"
        whole = reinterpret(load(buffer, index, size), dtype, 1)
        value = reinterpret(splat(whole, CHUNK // size), "int8", CHUNK)
    return value >> constant(shift, "int8", CHUNK) if shift else value

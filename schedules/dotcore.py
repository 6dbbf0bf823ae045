"""The reduction of a convolution's tile, 16 outputs in lanes: one `Dot` per vector and step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from typing import Any

import numpy as np

from resq_tvm.schedules.code import Expr, load
from resq_tvm.schedules.context import LANES, ChannelBlock, Context
from resq_tvm.schedules.dots import dot_for
from resq_tvm.schedules.packing import Segment, pack_weight, reading, segments_of
from resq_tvm.schedules.sparse import choose_row
from resq_tvm.schedules.spec import Conv, Phase


class DotCore:
    """Sums one phase of a convolution on one run of output channels.

    Parameters
    ----------
    ctx : Context
    phase : Phase
    block : ChannelBlock

    Attributes
    ----------
    in_memory : bool
        Whether `reduce` leaves the sums in memory.
    """

    in_memory = False

    def __init__(self, ctx: Context, phase: Phase, block: ChannelBlock) -> None:
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv)
        self.ctx, self.code, self.anchor, self.block = ctx, ctx.code, anchor, block
        dot = self.dot = dot_for(ctx.target)
        self.segments = segments_of(ctx.kernel, phase, dot.group)
        packed = pack_weight(anchor.weight, self.segments, dot.group, ctx.vectors)
        width = len(block.lanes)
        chosen = packed[block.start : block.start + block.count * width]
        steps, group = chosen.shape[2:]
        tiles = chosen.reshape(block.count, width, LANES, steps, group)
        tiles = tiles.transpose((0, 3, 1, 4, 2) if dot.planar else (0, 3, 1, 2, 4))
        self.weight = ctx.constant("w", tiles.reshape(block.count, steps, width, LANES * group))
        zero = ctx.kernel.code.zero_point
        start = -zero * chosen.astype(np.int32).sum(axis=(2, 3))
        start = start.astype(np.int32).reshape(block.count, -1)
        if ctx.kernel.sparse is not None:  # a last row for tiles that get no products
            start = np.pad(start, ((0, 1), (0, 0)))
        self.start = ctx.constant("z", start)

    def over(self, names: Sequence[str]) -> DotCore:
        """Return the same sums, by the same weights, over other inputs."""
        twin = copy(self)
        twin.segments = reading(self.segments, self.anchor.inputs, names)
        return twin

    def reduce(
        self, o: Expr, y0: Expr, x0: Expr, pixels: list[tuple[int, int]], changed: Expr | None
    ) -> list[Any]:
        """Emit a tile's sums; returns, per vector of outputs, one register of 16 × int32 per pixel.

        A tile that has not ``changed`` has sums of zero.
        """
        code, dot, width = self.code, self.dot, len(self.block.lanes)
        row = o if changed is None else choose_row(changed, o, self.block.count)
        part = LANES // dot.pieces
        acc: dict[tuple[int, int], Any] = {}
        for v in range(width):
            for n in range(len(pixels)):
                buffer = acc[n, v] = code.allocate(LANES, "int32")
                for p in range(0, LANES, part):
                    code.store(buffer, [p], load(self.start, [row, v * LANES + p], part), part)
        with nullcontext() if changed is None else code.when(changed):
            for segment in self.segments:
                self._reduce(segment, o, y0, x0, pixels, acc)
        return [[acc[n, v] for n in range(len(pixels))] for v in range(width)]

    def _reduce(
        self,
        segment: Segment,
        o: Expr,
        y0: Expr,
        x0: Expr,
        pixels: list[tuple[int, int]],
        acc: dict[tuple[int, int], Any],
    ) -> None:
        code, dot = self.code, self.dot
        spec = self.ctx.kernel.tensor(segment.input)
        buffer = self.ctx.buffer(segment.input)
        sy, sx = self.anchor.in_stride
        part = LANES // dot.pieces
        with (
            code.loop(segment.rows, "ky") as a,
            code.loop(segment.columns, "kx") as b,
            code.loop(segment.groups, "k") as g,
        ):
            step = (a * segment.columns + b) * segment.groups + g + segment.start
            top = y0 * sy + (a * segment.step_y + segment.dy + spec.halo[0])
            left = x0 * sx + (b * segment.step_x + segment.dx + spec.halo[1])
            channel = g * dot.group + self._group_offset(o)
            activations = [
                dot.activation(code, buffer, [0, top + i * sy, left + j * sx, channel])
                for i, j in pixels
            ]
            for v in range(len(self.block.lanes)):
                for piece in range(dot.pieces):
                    weight = dot.weight(code, self.weight, [o, step, v], piece)
                    for n, activation in enumerate(activations):
                        index = [piece * part]
                        value = load(acc[n, v], index, part)
                        value = dot.multiply(code, value, activation, weight)
                        code.store(acc[n, v], index, value, part)

    def _group_offset(self, o: Expr) -> Expr:
        """First input channel of the group that channel block ``o`` lies in."""
        if self.anchor.groups == 1:
            return 0
        outputs = self.anchor.weight.shape[0] // self.anchor.groups
        blocks = outputs // (len(self.block.lanes) * LANES)
        return o // blocks * self.anchor.weight.shape[3]

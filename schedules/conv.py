"""Integer convolutions: a register tile of pixels × output channels over one long reduction.

Accumulators stay in registers over all taps and input channels; the epilogue reads them there.
Several inputs are several segments of the reduction; a transposed convolution is several phases.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from resq_tvm.schedules.code import Expr, load
from resq_tvm.schedules.context import LANES, ChannelBlock, Context, ceil_div
from resq_tvm.schedules.dots import Dot, dot_for
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.packing import Segment, densify, pack_weight, segments_of
from resq_tvm.schedules.prefetch import fetch_ahead
from resq_tvm.schedules.reach import convolution
from resq_tvm.schedules.sparse import changed_tiles, choose_row
from resq_tvm.schedules.spec import Conv, Phase
from resq_tvm.schedules.tiles import overlap


def emit_conv(ctx: Context) -> None:
    """Emit a dense or grouped integer convolution with its epilogue."""
    dot = dot_for(ctx.target)
    ctx.kernel = densify(ctx.kernel, ctx.decision.tile_o * LANES, dot.group)
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    epilogue = Epilogue(ctx)
    if ctx.kernel.sparse is not None:
        _emit_changed(ctx, dot, epilogue)
        return
    for block in ctx.channel_blocks(ctx.decision.tile_o):
        # Phases of equal height go row by row together: they write to the same lines.
        by_rows: dict[int, list[_PhaseBlock]] = {}
        for phase in anchor.phases:
            part = _PhaseBlock(ctx, dot, epilogue, phase, block)
            if part.rows > 0 and part.columns > 0:
                by_rows.setdefault(part.rows, []).append(part)
        for rows, parts in by_rows.items():
            _emit_rows(ctx, block, rows, parts)


def _emit_changed(ctx: Context, dot: Dot, epilogue: Epilogue) -> None:
    """Emit the convolution on tiles that changed: all channels of a tile, then the next."""
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    sy, sx = anchor.out_stride
    for phase in anchor.phases:
        blocks = ctx.channel_blocks(ctx.decision.tile_o)
        parts = [_PhaseBlock(ctx, dot, epilogue, phase, block) for block in blocks]
        rows, columns = parts[0].rows, parts[0].columns
        if rows <= 0 or columns <= 0:
            continue
        height, width = min(ctx.decision.tile_y, rows), min(ctx.decision.tile_x, columns)
        windows = partial(convolution, ctx.kernel, phase, height=height, width=width)
        lie = ((sy, sx), (phase.oy, phase.ox))
        finish = epilogue.finisher(height, width, *lie)
        with changed_tiles(ctx, rows, columns, height, width, windows, *lie, finish) as tile:
            for part in parts:
                with ctx.code.loop(part.block.count, "o") as o:
                    part.tile(o, tile.y, tile.x, height, width, tile.active)


def _emit_rows(ctx: Context, block: ChannelBlock, rows: int, parts: list[_PhaseBlock]) -> None:
    """Emit the loops over channel blocks and bands of rows."""
    tile_y = min(ctx.decision.tile_y, rows)
    bands = ceil_div(rows, tile_y)
    outer = 1 if ctx.decision.inner_o else block.count
    with ctx.code.loop(outer * bands, "p", ctx.decision.parallel) as p:
        o, y = (p, 0) if bands == 1 else (0, p) if outer == 1 else (p // bands, p % bands)
        for part in parts:
            part.band(o, overlap(y, tile_y, rows), tile_y)


class _PhaseBlock:
    """One phase of a convolution on one run of output channels."""

    def __init__(
        self,
        ctx: Context,
        dot: Dot,
        epilogue: Epilogue,
        phase: Phase,
        block: ChannelBlock,
    ) -> None:
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv)
        self.ctx, self.code, self.dot, self.epilogue = ctx, ctx.code, dot, epilogue
        self.anchor, self.phase, self.block = anchor, phase, block
        self.segments = segments_of(ctx.kernel, phase, dot.group)
        packed = pack_weight(anchor.weight, self.segments, dot.group, ctx.vectors)
        self.rows = ceil_div(ctx.kernel.h - phase.oy, anchor.out_stride[0])
        self.columns = ceil_div(ctx.kernel.w - phase.ox, anchor.out_stride[1])
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

    def band(self, o: Expr, y0: Expr, tile_y: int) -> None:
        """Emit one band of ``tile_y`` rows for channel block ``o``, or for all of them."""
        tile_x = min(self.ctx.decision.tile_x, self.columns)
        inner = self.block.count if self.ctx.decision.inner_o else 1
        with (
            self.code.loop(ceil_div(self.columns, tile_x), "x") as x,
            self.code.loop(inner, "o") as i,
        ):
            block = i if self.ctx.decision.inner_o else o
            self.tile(block, y0, overlap(x, tile_x, self.columns), tile_y, tile_x)

    def tile(
        self, o: Expr, y0: Expr, x0: Expr, tile_y: int, tile_x: int, active: Expr | None = None
    ) -> None:
        """Emit one tile of channel block ``o``; if not ``active``, on accumulators of zero."""
        code, lanes = self.code, self.block.lanes
        changed = None if active is None else active != 0
        row = o if changed is None else choose_row(changed, o, self.block.count)
        sy, sx = self.anchor.out_stride
        first = (o * len(lanes) + self.block.start) * LANES
        ahead = self.ctx.decision.prefetch * tile_x

        def place(i: int, j: Expr) -> tuple[Expr, Expr]:
            return (y0 + i) * sy + self.phase.oy, (x0 + j) * sx + self.phase.ox

        if ahead and active is None:
            shape = (tile_y, tile_x)
            fetch_ahead(self.ctx, shape, lambda i, j: place(i, j + ahead), first, len(lanes))
        pixels = [(i, j) for i in range(tile_y) for j in range(tile_x)]
        part = LANES // self.dot.pieces
        acc: dict[tuple[int, int], Any] = {}
        for v in range(len(lanes)):
            for n in range(len(pixels)):
                buffer = acc[n, v] = code.allocate(LANES, "int32")
                for p in range(0, LANES, part):
                    code.store(buffer, [p], load(self.start, [row, v * LANES + p], part), part)
        with nullcontext() if changed is None else code.when(changed):
            for segment in self.segments:
                self._reduce(segment, o, y0, x0, pixels, acc)
        for v, width in enumerate(lanes):
            column = [acc[n, v] for n in range(len(pixels))]
            self.epilogue.tile(column, tile_x, place, first + v * LANES, width)

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

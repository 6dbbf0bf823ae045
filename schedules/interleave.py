"""Depthwise integer convolutions on AVX-512 VNNI: four rows of the input in one dot product.

``vpdpbusd`` sums four bytes per 32-bit lane. Interleaving four rows of one column by channel (one
``vpermb``) makes these bytes four taps of the same channel::

    row 0:  a0 a1 … a15 ┐
    row 1:  b0 b1 … b15 ├─ vpermb ─▶  a0 b0 c0 d0 | a1 b1 c1 d1 | … | a15 b15 c15 d15
    row 2:  c0 c1 … c15 │
    row 3:  d0 d1 … d15 ┘

One interleaved column serves every kernel column and, with the weights moved down and zeros in the
gaps, every output row of the tile.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from resq_tvm.schedules.code import Expr, intrinsic, load, reinterpret
from resq_tvm.schedules.context import LANES, ChannelBlock, Context, ceil_div, load_vector
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.prefetch import NextTile, fetch_ahead
from resq_tvm.schedules.reach import convolution
from resq_tvm.schedules.sparse import changed_tiles, choose_row
from resq_tvm.schedules.spec import Conv, Phase
from resq_tvm.schedules.tiles import overlap

_GROUP = 4  # bytes that one lane of vpdpbusd sums


@dataclass(frozen=True)
class _Plan:
    """Which rows are interleaved, and the weights of every output row of the tile.

    ``quads[q]`` are four row offsets; ``weights[(r, dx)]`` lists (quad, index of packed weights).
    """

    quads: tuple[tuple[int, ...], ...]
    weights: dict[tuple[int, int], list[tuple[int, int]]]
    packed: Any  # int8 (weights, C, 4)


def _plan(anchor: Conv, phase: Phase, tile_y: int) -> _Plan:
    stride = anchor.in_stride[0]
    taps = {(dy, dx): anchor.weight[:, ky, kx, 0] for ky, kx, dy, dx in phase.taps}
    offsets = sorted({r * stride + dy for r in range(tile_y) for dy, _ in taps})
    quads = [tuple(offsets[i : i + _GROUP]) for i in range(0, len(offsets), _GROUP)]
    weights: dict[tuple[int, int], list[tuple[int, int]]] = {}
    packed: list[Any] = []
    for r in range(tile_y):
        for dx in sorted({dx for _, dx in taps}):
            for q, quad in enumerate(quads):
                column = [taps.get((y - r * stride, dx)) for y in quad]
                if all(w is None for w in column):
                    continue
                column += [None] * (_GROUP - len(quad))
                absent = np.zeros(anchor.weight.shape[0], np.int8)
                weights.setdefault((r, dx), []).append((q, len(packed)))
                packed.append(np.stack([absent if w is None else w for w in column], axis=-1))
    # Where a quad is short, its last row fills it up: the weights there are zero.
    full = tuple((*quad, *[quad[-1]] * (_GROUP - len(quad))) for quad in quads)
    shape = (0, anchor.weight.shape[0], _GROUP)
    return _Plan(full, weights, np.stack(packed) if packed else np.zeros(shape, np.int8))


def emit_interleaved(ctx: Context) -> None:
    """Emit a depthwise convolution with its epilogue."""
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    epilogue = Epilogue(ctx)
    order = np.arange(_GROUP * LANES).reshape(_GROUP, LANES).T.reshape(-1)
    order_buffer = ctx.constant("order", order.astype(np.int8))
    for phase in anchor.phases:
        rows = ceil_div(ctx.kernel.h - phase.oy, anchor.out_stride[0])
        columns = ceil_div(ctx.kernel.w - phase.ox, anchor.out_stride[1])
        if rows <= 0 or columns <= 0:
            continue
        tile = (min(ctx.decision.tile_y, rows), min(ctx.decision.tile_x, columns))
        plan = _plan(anchor, phase, tile[0])
        if ctx.kernel.sparse is not None:
            _emit_changed(ctx, epilogue, phase, plan, tile, order_buffer, (rows, columns))
            continue
        for block in ctx.channel_blocks(1):
            _Block(ctx, epilogue, phase, plan, block, tile, order_buffer).emit(rows, columns)


def _emit_changed(
    ctx: Context,
    epilogue: Epilogue,
    phase: Phase,
    plan: _Plan,
    tile: tuple[int, int],
    order: Any,
    plane: tuple[int, int],
) -> None:
    """Emit one phase on tiles that changed: all channels of a tile, then the next."""
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    height, width = tile
    blocks = [
        _Block(ctx, epilogue, phase, plan, block, tile, order) for block in ctx.channel_blocks(1)
    ]
    windows = partial(convolution, ctx.kernel, [phase], height)
    lie = (anchor.out_stride, ((phase.oy, phase.ox),))
    finish = epilogue.finisher(*lie)
    ahead = NextTile(ctx, phase, tile, sum(part.block.count for part in blocks))
    with changed_tiles(ctx, *plane, height, width, windows, *lie, finish) as at:
        done = 0
        for part in blocks:
            with ctx.code.loop(part.block.count, "o") as o:
                if ctx.decision.prefetch:
                    ahead.fetch(at, o + done)
                part.work(o, at.y, at.x, at.active)
            done += part.block.count


class _Block:
    """One phase on one run of channel vectors."""

    def __init__(
        self,
        ctx: Context,
        epilogue: Epilogue,
        phase: Phase,
        plan: _Plan,
        block: ChannelBlock,
        tile: tuple[int, int],
        order: Any,
    ) -> None:
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv)
        self.ctx, self.code, self.epilogue, self.order = ctx, ctx.code, epilogue, order
        self.anchor, self.phase, self.plan, self.block, self.tile = anchor, phase, plan, block, tile
        pad = ctx.vectors * LANES - ctx.kernel.c
        packed = np.pad(plan.packed, ((0, 0), (0, pad), (0, 0)))
        packed = packed.reshape(-1, ctx.vectors, LANES * _GROUP).transpose(1, 0, 2)
        self.weight = ctx.constant("w", packed[block.start : block.start + block.count])
        total = np.zeros(ctx.vectors * LANES, np.int32)
        for ky, kx, _, _ in phase.taps:
            total[: ctx.kernel.c] += anchor.weight[:, ky, kx, 0]
        start = -ctx.kernel.code.zero_point * total.reshape(-1, LANES)
        start = start[block.start : block.start + block.count]
        if ctx.kernel.sparse is not None:  # a last row for tiles that get no products
            start = np.pad(start, ((0, 1), (0, 0)))
        self.start = ctx.constant("z", start)

    def emit(self, rows: int, columns: int) -> None:
        """Emit the loops over rows, columns and channels."""
        code = self.code
        (tile_y, tile_x), count = self.tile, self.block.count
        inner = self.ctx.decision.inner_o
        with (
            code.loop(ceil_div(rows, tile_y), "y", self.ctx.decision.parallel) as y,
            code.loop(1 if inner else count, "o") as outer,
            code.loop(ceil_div(columns, tile_x), "x") as x,
            code.loop(count if inner else 1, "c") as o,
        ):
            y0, x0 = overlap(y, tile_y, rows), overlap(x, tile_x, columns)
            self.work(o if inner else outer, y0, x0)

    def work(self, o: Expr, y0: Expr, x0: Expr, active: Expr | None = None) -> None:
        """Emit one tile of channel vector ``o``; if not ``active``, on accumulators of zero."""
        code, (tile_y, tile_x) = self.code, self.tile
        (lanes,) = self.block.lanes
        c = (o + self.block.start) * LANES
        changed = None if active is None else active != 0
        row = o if changed is None else choose_row(changed, o, self.block.count)
        sy, sx = self.anchor.out_stride
        ahead = self.ctx.decision.prefetch * tile_x

        def place(i: int, j: Expr) -> tuple[Expr, Expr]:
            return (y0 + i) * sy + self.phase.oy, (x0 + j) * sx + self.phase.ox

        if ahead and self.ctx.kernel.sparse is None:
            fetch_ahead(self.ctx, self.tile, lambda i, j: place(i, j + ahead), c, 1)
        start = code.bind(load(self.start, [row, 0], LANES))
        sums = []
        for name in self.anchor.reads:
            acc = {}
            for at in [(r, n) for r in range(tile_y) for n in range(tile_x)]:
                acc[at] = code.allocate(LANES, "int32")
                code.store(acc[at], [0], start, LANES)
            with nullcontext() if changed is None else code.when(changed):
                self._reduce(name, acc, o, y0, x0, c)
            sums.append(self.epilogue.spill(list(acc.values())))
        self.epilogue.tile(sums, self.tile, place, c, lanes)

    def _reduce(self, name: str, acc: dict[Any, Any], o: Expr, y0: Expr, x0: Expr, c: Expr) -> None:
        code, (_, tile_x) = self.code, self.tile
        order = code.bind(load(self.order, [0], _GROUP * LANES))
        stride = self.anchor.in_stride[1]
        shifts = sorted({dx for _, dx in self.plan.weights})
        for column in sorted({n * stride + dx for n in range(tile_x) for dx in shifts}):
            quads = self._interleave(name, y0, x0, column, c, order)
            for r, n in acc:
                for q, w in self.plan.weights.get((r, column - n * stride), []):
                    weight = load(self.weight, [o, w, 0], _GROUP * LANES)
                    old = load(acc[r, n], [0], LANES)
                    new = intrinsic(
                        "llvm.x86.avx512.vpdpbusd.512", "int32", LANES, old, quads[q], weight
                    )
                    code.store(acc[r, n], [0], new, LANES)

    def _interleave(
        self, name: str, y0: Expr, x0: Expr, column: int, c: Expr, order: Any
    ) -> list[Any]:
        """Return the interleaved quads of rows of one column of an input."""
        spec = self.ctx.kernel.tensor(name)
        x = x0 * self.anchor.in_stride[1] + (column + spec.halo[1])
        top = y0 * self.anchor.in_stride[0]
        quads = []
        for quad in self.plan.quads:
            rows = [
                load_vector(self.ctx, name, [0, top + (dy + spec.halo[0]), x, c], self.block)
                for dy in quad
            ]
            together = tirx.Shuffle(rows, list(range(_GROUP * LANES)))
            together = reinterpret(together, "int8", _GROUP * LANES)
            quads.append(
                self.code.bind(
                    intrinsic(
                        "llvm.x86.avx512.permvar.qi.512", "int8", _GROUP * LANES, together, order
                    ),
                    "q",
                )
            )
        return quads

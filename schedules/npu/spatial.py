"""Kernels of the vector unit alone: pooling, resize, mean, window, and plain walks.

A tile is as many whole rows as the decision says; where a row does not fit, columns and then
channels are cut, too. A resize reads what its tables say, so that its tiles are unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.npu.context import NpuContext
from resq_tvm.schedules.npu.finish import Finish
from resq_tvm.schedules.npu.intrinsics import extent, least, most
from resq_tvm.schedules.npu.skip import Flags, Grid, Look, elementwise_looks
from resq_tvm.schedules.npu.tensors import Rect, Tile, channel_bytes, format_of
from resq_tvm.schedules.resample import axis_table
from resq_tvm.schedules.spec import GlobalMean, Pool, Resize, TensorSpec, Walk, Window

Span = tuple[Expr, Expr]  # first, count


def plan_spatial(ctx: NpuContext, thresholds: tuple[float, ...]) -> Callable[[], None]:
    """Allocate the tiles of a kernel without products; return what emits it."""
    kernel, code = ctx.kernel, ctx.code
    rows, columns = min(ctx.decision.tile_y, kernel.h), min(ctx.decision.tile_x, kernel.w)
    channels = ctx.tile_channels(kernel.c)
    down, across = ceil_div(kernel.h, rows), ceil_div(kernel.w, columns)
    tiles_o = ceil_div(kernel.c, channels)
    turns = down * across * tiles_o
    firsts = [i * channels for i in range(tiles_o)]
    finish = Finish(ctx, (rows, columns, channels), firsts, turns, thresholds)
    anchor = None
    if not isinstance(kernel.anchor, Walk):
        anchor = _Source(ctx, (rows, columns, channels), turns)
    looks = elementwise_looks(ctx, (kernel.h, rows), (kernel.w, columns))
    if anchor is not None:
        looks += anchor.looks()
    flags = Flags(ctx, [Grid(down, across, looks)])
    unrolled = isinstance(kernel.anchor, Resize)
    ctx.by_bands = tiles_o == 1 and finish.loads_once

    def tile(o: Expr, y: Expr, x: Expr, constants: Expr) -> None:
        turn = (o * down + y) * across + x
        rect = Rect(
            y * rows, x * columns, extent(rows, kernel.h, y), extent(columns, kernel.w, x),
            o * channels, extent(channels, kernel.c, o),
        )  # fmt: skip
        with flags.tile(0, y * across + x):
            if anchor is None:
                finish.tile(turn, rect, None, constants)
            else:
                source, seen, window = anchor.fetch(turn, rect)
                finish.tile(turn, rect, source, constants, window, anchor_map=seen)

    def emit() -> None:
        flags.emit()
        with flags.any_tile():
            finish.begin_all()
        with code.loop(tiles_o, "o") as o:
            with flags.any_tile():
                constants = finish.begin(o, o)
            if unrolled:
                for y in range(down):
                    with code.group("y"):
                        for x in range(across):
                            tile(o, y, x, constants)
            else:
                with code.loop(down, "y") as y, code.loop(across, "x") as x:
                    tile(o, y, x, constants)

    return emit


class _Source:
    """The part of the anchor's input that a tile reads."""

    def __init__(self, ctx: NpuContext, tile: tuple[int, int, int], turns: int) -> None:
        self.ctx, self.size = ctx, tile
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Pool | GlobalMean | Resize | Window)
        self.anchor = anchor
        self.spec: TensorSpec = ctx.spec(anchor.input)
        self.channels = self.spec.c if isinstance(anchor, Window) else min(tile[2], self.spec.c)
        self.columns = max((w for _, w in self._spans(1)), default=1)
        self.rows = max((h for _, h in self._spans(0)), default=1)
        self.slots: Any = None
        if not ctx.is_resident(anchor.input):
            pixel = int(channel_bytes(self.spec, self.channels))
            size = self.rows * self.columns * pixel
            self.slots = ctx.slots(self.spec.name, size, ctx.copies(turns))
        self.map = ctx.maps_in.get(anchor.input)
        self.map_slots: Any = None
        if self.map is not None and not ctx.is_resident(self.map.name):
            size = self.rows * self.columns
            self.map_slots = ctx.slots(self.map.name, size, ctx.copies(turns))

    def looks(self) -> tuple[Look, ...]:
        """Return what the tiles of a plane depend on in the input's map."""
        if self.map is None:
            return ()
        rows, columns = (
            tuple((first, first + count) for first, count in self._spans(axis)) for axis in (0, 1)
        )
        return (Look(self.map.name, rows, columns),)

    def _spans(self, axis: int) -> Iterator[tuple[int, int]]:
        """Yield what every tile reads along an axis."""
        whole = (self.ctx.kernel.h, self.ctx.kernel.w)[axis]
        step = self.size[axis]
        for first in range(0, whole, step):
            yield self._span(axis, first, min(step, whole - first))

    def _span(self, axis: int, first: Expr, count: Expr) -> Span:
        """Return what outputs ``first`` to ``first + count`` read along an axis."""
        size = (self.spec.h, self.spec.w)[axis]
        match self.anchor:
            case GlobalMean():
                return 0, size
            case Resize() as resize:
                assert isinstance(first, int) and isinstance(count, int)
                table = axis_table(resize, size, (self.ctx.kernel.h, self.ctx.kernel.w)[axis])
                low = int(table.low[first : first + count].min())
                high = int(table.high[first : first + count].max())
                return low, high + 1 - low
            case Pool() as pool:
                stride, offset = pool.stride[axis], -pool.padding[axis]
                reach = (pool.window[axis] - 1) * pool.dilation[axis]
            case Window() as window:
                stride, offset, reach = window.stride[axis], window.offset[axis], 0
        begin = least(most(first * stride + offset, 0), size)
        end = most(least((first + count - 1) * stride + offset + reach + 1, size), begin)
        return begin, end - begin

    def fetch(self, turn: Expr, rect: Rect) -> tuple[Tile, Tile | None, tuple[Expr, Expr]]:
        """Load what a tile of the output reads; return it, its map, its first row and column."""
        top, height = self._span(0, rect.y, rect.rows)
        left, width = self._span(1, rect.x, rect.columns)
        first, channels = rect.first, rect.channels
        if isinstance(self.anchor, Window):
            first, channels = 0, self.spec.c
        area = Rect(top, left, height, width, first, channels)
        tile = None
        if self.slots is not None:
            pixel = int(channel_bytes(self.spec, self.channels))
            tile = Tile(
                self.slots.buffer, self.slots.at(turn), height, width, channels,
                self.columns * pixel, pixel, format_of(self.spec),
            )  # fmt: skip
        found = self.ctx.fetch(self.spec.name, area, tile)
        if self.map is None:
            return found, None, (top, left)
        seen = None
        if self.map_slots is not None:
            seen = Tile(
                self.map_slots.buffer, self.map_slots.at(turn), height, width, 1,
                self.columns, 1, "u8",
            )  # fmt: skip
        area = replace(area, first=0, channels=1)
        return found, self.ctx.fetch(self.map.name, area, seen), (top, left)

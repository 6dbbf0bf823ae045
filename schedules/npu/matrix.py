"""Integer convolutions on the matrix unit: tiles of pixels × output channels.

Weights of a tile of output channels are loaded once per tile of pixels, or once at all where the
decision's order or the memory allows; the input's window is loaded once per tile, or once per tile
of pixels. The whole reduction of a tile stays in the accumulators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.npu.context import NpuContext, Slots, working_bytes
from resq_tvm.schedules.npu.finish import Finish
from resq_tvm.schedules.npu.groups import join_groups
from resq_tvm.schedules.npu.intrinsics import call, extent, least, matrix_name, most
from resq_tvm.schedules.npu.skip import Flags, Grid, Look, elementwise_looks, tile_spans
from resq_tvm.schedules.npu.tensors import Rect, Tile, channel_bytes, format_of
from resq_tvm.schedules.npu.weights import Weights
from resq_tvm.schedules.packing import Segment, segments_of
from resq_tvm.schedules.spec import Conv, Phase


def plan_matrix(ctx: NpuContext, thresholds: tuple[float, ...]) -> Callable[[], None]:
    """Allocate the tiles of an integer convolution; return what emits it."""
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    depthwise = anchor.depthwise and ctx.npu.matrix.depthwise and len(anchor.inputs) == 1
    if not depthwise:
        ctx.kernel = join_groups(ctx.kernel, ctx.npu.matrix, ctx.whole_pixels)
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv)
    if anchor.groups == 1 or depthwise:
        parts = [_Channels(0, ctx.kernel.c, None)]
    else:
        size = anchor.weight.shape[0] // anchor.groups
        inputs = anchor.weight.shape[3]
        parts = [_Channels(g * size, size, g * inputs) for g in range(anchor.groups)]
    plan = [(part, phase) for part in parts for phase in anchor.phases]
    tile_c = ctx.tile_channels(parts[0].count)
    counts = [_Part(ctx, part, phase, tile_c) for part, phase in plan]
    turns = sum(p.turns for p in counts if p.is_there)
    per_group = ceil_div(parts[0].count, tile_c)
    shape = (counts[0].tile_y, counts[0].tile_x, tile_c)
    firsts = [p.first + i * tile_c for p in parts for i in range(per_group)]
    finish = Finish(ctx, shape, firsts, turns, thresholds)
    shared = _Shared(ctx, counts, turns)
    phases = len(anchor.phases)
    flags = Flags(ctx, [p.grid() for p in counts[:phases]])
    ctx.by_bands = len(counts) == 1 and shared.all_weights and finish.loads_once

    def emit() -> None:
        flags.emit()
        with flags.any_tile():
            finish.begin_all()
        for index, part in enumerate(counts):
            if part.is_there:
                part.emit(finish, shared, index // phases * per_group, flags, index % phases)

    return emit


@dataclass(frozen=True)
class _Channels:
    """A run of output channels that read the same input channels: all, or a group."""

    first: int
    count: int
    source: int | None  # first input channel of the group; None: all, or each its own


class _Shared:
    """Slots that all parts of a kernel use in turn."""

    def __init__(self, ctx: NpuContext, parts: list[_Part], turns: int) -> None:
        twice = ctx.copies(turns)
        self.sources: dict[str, Slots] = {}
        for name, spec in ((n, ctx.spec(n)) for n in ctx.kernel.anchor.inputs):  # type: ignore[union-attr]
            for tensor in (spec, ctx.maps_in.get(name)):
                if tensor is None or tensor.memory == "sram":
                    continue
                size = max(p.window_bytes(name, tensor) for p in parts)
                self.sources[tensor.name] = ctx.slots(tensor.name, size, twice)
        blocks = max(p.tiles_o for p in parts)
        size = max(p.weights.tile_bytes for p in parts)
        rest = working_bytes(ctx.npu) - ctx.sram_bytes
        self.all_weights = ctx.decision.inner_o and size * blocks <= rest
        count = blocks if self.all_weights else min(2, blocks * len(parts))
        self.weights = ctx.slots("w", size, count, kept=self.all_weights)
        elements = max(p.tile_y * p.tile_x * p.tile_c for p in parts)
        self.accumulators = ctx.accumulators(elements, twice)


class _Part:
    """One phase of a convolution on one run of output channels."""

    def __init__(self, ctx: NpuContext, channels: _Channels, phase: Phase, tile_c: int) -> None:
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv)
        self.ctx, self.anchor, self.channels, self.phase = ctx, anchor, channels, phase
        self.rows = ceil_div(ctx.kernel.h - phase.oy, anchor.out_stride[0])
        self.columns = ceil_div(ctx.kernel.w - phase.ox, anchor.out_stride[1])
        self.is_there = self.rows > 0 and self.columns > 0
        self.tile_y = max(1, min(ctx.decision.tile_y, self.rows))
        self.tile_x = max(1, min(ctx.decision.tile_x, self.columns))
        self.tile_c = tile_c
        self.tiles_o = ceil_div(channels.count, tile_c)
        self.turns = (
            self.tiles_o * ceil_div(self.rows, self.tile_y) * ceil_div(self.columns, self.tile_x)
        )
        self.depthwise = anchor.depthwise and ctx.npu.matrix.depthwise
        self.segments = segments_of(ctx.kernel, phase, 1)
        if channels.source is not None:  # reads channels of a group
            self.segments = [s for s in self.segments if s.input == anchor.inputs[0]]
        dys = [s.dy + i * s.step_y for s in self.segments for i in (0, s.rows - 1)] or [0]
        dxs = [s.dx + i * s.step_x for s in self.segments for i in (0, s.columns - 1)] or [0]
        self.dy, self.dx = (min(dys), max(dys)), (min(dxs), max(dxs))
        self.weight_bits, self.code_bits = self._bits()
        self.weights = Weights(
            anchor.weight[channels.first :][: channels.count],
            self.segments,
            ctx.npu.storage_bits(self.weight_bits),
            tile_c,
            depthwise=self.depthwise,
            grouped=channels.source is not None,
        )

    def _bits(self) -> tuple[int, int]:
        """Return the bits that weights and codes need."""
        codes, weights = self.anchor.limits or (127, 127)
        return weights.bit_length() + 1, codes.bit_length() + 1

    # Sizes -----------------------------------------------------------------------------------

    def window_bytes(self, name: str, spec: Any) -> int:
        """Return the bytes of a tile's window of an input (or its map)."""
        rows = min(
            spec.h, (self.tile_y - 1) * self.anchor.in_stride[0] + self.dy[1] - self.dy[0] + 1
        )
        columns = self.window_columns(spec)
        return rows * columns * int(channel_bytes(spec, self._window_channels(spec)))

    def window_columns(self, spec: Any) -> int:
        """Return the columns of a tile's window of an input."""
        reach = (self.tile_x - 1) * self.anchor.in_stride[1] + self.dx[1] - self.dx[0] + 1
        return int(min(spec.w, reach))

    def _window_channels(self, spec: Any) -> int:
        return int(min(spec.c, self.tile_c)) if self.depthwise else int(spec.c)

    # Emission --------------------------------------------------------------------------------

    def grid(self) -> Grid:
        """Return the part's tiles of pixels and what of maps each reads."""
        ctx, (down, across) = self.ctx, ((self.rows, self.tile_y), (self.columns, self.tile_x))
        if not self.is_there:
            return Grid(0, 0, ())
        (sy, sx), looks = self.anchor.in_stride, []
        for name in self.anchor.inputs if self.segments else ():
            seen = ctx.maps_in.get(name)
            if seen is not None:
                rows = tile_spans(*down, (sy, *self.dy), seen.h)
                columns = tile_spans(*across, (sx, *self.dx), seen.w)
                looks.append(Look(seen.name, rows, columns))
        own = elementwise_looks(
            ctx, down, across, self.anchor.out_stride, (self.phase.oy, self.phase.ox)
        )
        return Grid(ceil_div(*down), ceil_div(*across), (*looks, *own))

    def emit(
        self, finish: Finish, shared: _Shared, first_tile: int, flags: Flags, grid: int
    ) -> None:
        """Emit the part's tiles, grid number ``grid`` of the flags.

        Its constants begin at tile ``first_tile`` of the channels.
        """
        ctx, code = self.ctx, self.ctx.code
        weights = ctx.constant("w", self.weights.packed())
        size = self.weights.tile_bytes
        down, across = ceil_div(self.rows, self.tile_y), ceil_div(self.columns, self.tile_x)
        pixels = down * across
        if ctx.decision.inner_o:
            if shared.all_weights:
                with flags.any_tile(), code.loop(self.tiles_o, "o") as o:
                    ctx.load_constant(weights, o * size, shared.weights, o, self._used(o))
            with code.loop(down, "y") as y, code.loop(across, "x") as x:
                pixel = y * across + x
                with flags.tile(grid, pixel):
                    windows = {} if self.depthwise else self._sources(shared, pixel, y, x, None)
                    with code.loop(self.tiles_o, "o") as o:
                        turn = pixel * self.tiles_o + o
                        at = shared.weights.at(o)
                        if not shared.all_weights:
                            at = ctx.load_constant(
                                weights, o * size, shared.weights, turn, self._used(o)
                            )
                        constants = finish.begin(o + first_tile, turn)
                        if self.depthwise:
                            windows = self._sources(shared, turn, y, x, o)
                        self._tile(finish, shared, turn, (o, y, x), windows, at, constants)
            return
        with code.loop(self.tiles_o, "o") as o:
            with flags.any_tile():
                at = ctx.load_constant(weights, o * size, shared.weights, o, self._used(o))
                constants = finish.begin(o + first_tile, o)
            with code.loop(down, "y") as y, code.loop(across, "x") as x:
                pixel = y * across + x
                turn = o * pixels + pixel
                with flags.tile(grid, pixel):
                    windows = self._sources(shared, turn, y, x, o if self.depthwise else None)
                    self._tile(finish, shared, turn, (o, y, x), windows, at, constants)

    def _count(self, o: Expr) -> Expr:
        """Return the output channels of a tile."""
        return extent(self.tile_c, self.channels.count, o)

    def _used(self, o: Expr) -> Expr:
        """Return the bytes of a tile's weights."""
        return self.weights.used(self._count(o))

    def _rows(self, y: Expr, x: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        """Return the first row and column of a tile of the phase's plane, and its extents."""
        height, width = extent(self.tile_y, self.rows, y), extent(self.tile_x, self.columns, x)
        return y * self.tile_y, x * self.tile_x, height, width

    def _sources(
        self, shared: _Shared, turn: Expr, y: Expr, x: Expr, o: Expr | None
    ) -> dict[str, tuple[Tile, Expr, Expr]]:
        """Load the windows of all inputs and their maps: name → (tile, first row, column)."""
        ctx = self.ctx
        y0, x0, rows, columns = self._rows(y, x)
        sy, sx = self.anchor.in_stride
        found = {}
        for name in self.anchor.inputs:
            for tensor in (ctx.spec(name), ctx.maps_in.get(name)):
                if tensor is None:
                    continue
                top = least(most(y0 * sy + self.dy[0], 0), tensor.h)
                left = least(most(x0 * sx + self.dx[0], 0), tensor.w)
                bottom = most(least((y0 + rows - 1) * sy + self.dy[1] + 1, tensor.h), top)
                right = most(least((x0 + columns - 1) * sx + self.dx[1] + 1, tensor.w), left)
                first, channels = (0, tensor.c)
                if o is not None and tensor.c > 1:
                    first, channels = o * self.tile_c, self._count(o)
                rect = Rect(top, left, bottom - top, right - left, first, channels)
                tile = None
                if tensor.name in shared.sources:
                    slots = shared.sources[tensor.name]
                    pixel = int(channel_bytes(tensor, self._window_channels(tensor)))
                    row = self.window_columns(tensor) * pixel
                    tile = Tile(
                        slots.buffer, slots.at(turn), rect.rows, rect.columns, channels,
                        row, pixel, format_of(tensor),
                    )  # fmt: skip
                found[tensor.name] = (ctx.fetch(tensor.name, rect, tile), top, left)
        return found

    def _tile(
        self,
        finish: Finish,
        shared: _Shared,
        turn: Expr,
        place: tuple[Expr, Expr, Expr],
        windows: dict[str, tuple[Tile, Expr, Expr]],
        weights: Expr,
        constants: Expr,
    ) -> None:
        """Emit products and epilogue of one tile."""
        o, y, x = place
        y0, x0, rows, columns = self._rows(y, x)
        out = self._count(o)
        acc = shared.accumulators.at(turn)
        offset: Expr = weights
        for index, segment in enumerate(self.segments):
            self._product(
                segment, windows, shared.weights.buffer, offset, (rows, columns, out),
                (y0, x0), shared.accumulators.buffer, acc, index > 0,
            )  # fmt: skip
            offset = offset + self.weights.segment_bytes(index, out)
        if not self.segments:
            self._nothing(windows, shared, (rows, columns, out), acc)
        (sy, sx) = self.anchor.out_stride
        first = self.channels.first + o * self.tile_c
        rect = Rect(
            y0 * sy + self.phase.oy, x0 * sx + self.phase.ox, rows, columns, first, out, sy, sx
        )
        anchor = Tile(
            shared.accumulators.buffer, acc, rows, columns, out, columns * out * 4, out * 4, "i32"
        )
        finish.tile(turn, rect, anchor, constants)

    def _product(
        self,
        segment: Segment,
        windows: dict[str, tuple[Tile, Expr, Expr]],
        weights: Any,
        offset: Expr,
        extents: tuple[Expr, Expr, Expr],
        place: tuple[Expr, Expr],
        accumulators: Any,
        acc: Expr,
        accumulate: bool,
    ) -> None:
        ctx = self.ctx
        tile, top, left = windows[segment.input]
        sy, sx = self.anchor.in_stride
        spec = ctx.spec(segment.input)
        if self.depthwise:
            first, channels = 0, extents[2]
        elif self.channels.source is not None:
            first, channels = self.channels.source, self.anchor.weight.shape[3]
        else:
            first, channels = 0, spec.c
        chosen = ctx.maps_in.get(segment.input)
        bits_map: list[Any] = []
        if chosen is not None:
            seen, _, _ = windows[chosen.name]
            bits_map = [seen.base, seen.offset, seen.h, seen.w, 0, 1, seen.row, seen.pixel, 8]
            bits_map += [seen.ring, seen.top]
        rows, columns, out = extents
        ctx.code.run(
            call(
                matrix_name(self.weight_bits, self.code_bits),
                tile.base, tile.offset, tile.h, tile.w, first, channels, tile.row, tile.pixel,
                spec.bits or 8, tile.ring, tile.top,
                weights, offset, self.weights.bits,
                rows, columns, out,
                place[0] * sy + segment.dy - top, place[1] * sx + segment.dx - left,
                sy, sx, segment.rows, segment.columns, segment.step_y, segment.step_x,
                int(self.depthwise), accumulators, acc, int(accumulate), *bits_map,
            )
        )  # fmt: skip

    def _nothing(
        self, windows: dict[str, Any], shared: _Shared, extents: tuple[Expr, Expr, Expr], acc: Expr
    ) -> None:
        """Clear the accumulators of a phase without taps."""
        tile, _, _ = windows[self.anchor.inputs[0]]
        rows, columns, out = extents
        self.ctx.code.run(
            call(
                matrix_name(self.weight_bits, self.code_bits),
                tile.base, tile.offset, 0, 0, 0, 0, tile.row, tile.pixel, 8, 0, 0,
                shared.weights.buffer, 0, 8, rows, columns, out, 0, 0, 1, 1, 0, 0, 0, 0,
                0, shared.accumulators.buffer, acc, 0,
            )
        )  # fmt: skip

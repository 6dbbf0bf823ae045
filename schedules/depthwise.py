"""Depthwise integer convolutions, 16 channels side by side, tap by tap (AVX2 and generic)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from tvm import tirx

from resq_tvm.schedules.code import Expr, cast, constant, intrinsic, load, reinterpret
from resq_tvm.schedules.context import LANES, ChannelBlock, Context, ceil_div, load_vector
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.packing import Segment, pack_weight, reading, segments_of
from resq_tvm.schedules.reach import convolution
from resq_tvm.schedules.sparse import changed_tiles
from resq_tvm.schedules.spec import Conv, Phase
from resq_tvm.schedules.tiles import overlap


def emit_depthwise(ctx: Context, kind: type[DepthwiseBlock] | None = None) -> None:
    """Emit a depthwise convolution with its epilogue."""
    kind = kind or (Avx2DepthwiseBlock if ctx.target.isa == "avx2" else DepthwiseBlock)
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    epilogue = Epilogue(ctx)
    for phase in anchor.phases:
        rows = ceil_div(ctx.kernel.h - phase.oy, anchor.out_stride[0])
        columns = ceil_div(ctx.kernel.w - phase.ox, anchor.out_stride[1])
        if rows <= 0 or columns <= 0:
            continue
        width = min(ctx.decision.tile_x, columns)
        blocks = [kind(ctx, epilogue, phase, b, width) for b in ctx.channel_blocks(1)]
        if ctx.kernel.sparse is not None:
            windows = partial(convolution, ctx.kernel, [phase], 1)
            lie = (anchor.out_stride, ((phase.oy, phase.ox),))
            finish = epilogue.finisher(*lie)
            with changed_tiles(ctx, rows, columns, 1, width, windows, *lie, finish) as tile:
                for block in blocks:
                    with ctx.code.loop(block.block.count, "c") as o:
                        block.work(o, tile.y, tile.x, tile.active)
            continue
        for block in blocks:
            with (
                ctx.code.loop(rows, "y", ctx.decision.parallel) as i,
                ctx.code.loop(ceil_div(columns, width), "x") as t,
                ctx.code.loop(block.block.count, "c") as o,
            ):
                block.work(o, i, overlap(t, width, columns))


class DepthwiseBlock:
    """One phase on one run of channel vectors, ``width`` pixels at a time."""

    widened = True  # whether weights lie in memory as they are multiplied

    def __init__(
        self, ctx: Context, epilogue: Epilogue, phase: Phase, block: ChannelBlock, width: int
    ) -> None:
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv)
        self.ctx, self.epilogue, self.anchor, self.phase = ctx, epilogue, anchor, phase
        self.block, self.width = block, width
        self.segments = segments_of(ctx.kernel, phase, 1)
        self.products = [self.segments]
        if anchor.rest:
            self.products.append(reading(self.segments, anchor.inputs, anchor.rest))
        packed = pack_weight(anchor.weight, self.segments, 1, ctx.vectors)[..., 0]
        chosen = packed[block.start : block.start + block.count]
        self.narrow = "int32" if ctx.kernel.code.zero_point else "int16"
        dtype = self.narrow if self.widened else "int8"
        self.weight = ctx.constant("w", chosen.transpose(0, 2, 1).astype(dtype))

    def work(self, o: Expr, i: Expr, x0: Expr, active: Expr | None = None) -> None:
        """Emit one tile of channel vector ``o``; if not ``active``, on accumulators of zero."""
        code, phase = self.ctx.code, self.phase
        c = (o + self.block.start) * LANES
        sums = []
        for segments in self.products:
            acc: list[Any] = []
            for _ in range(self.width):
                acc.append(code.allocate(LANES, "int32"))
                code.store(acc[-1], [0], constant(0, "int32", LANES), LANES)
            with nullcontext() if active is None else code.when(active != 0):
                self.reduce(segments, acc, o, i, x0, c)
            sums.append(self.epilogue.spill(acc))
        (lanes,) = self.block.lanes
        sy, sx = self.anchor.out_stride
        self.epilogue.tile(
            sums,
            (1, self.width),
            lambda _, j: (i * sy + phase.oy, (x0 + j) * sx + phase.ox),
            c,
            lanes,
        )

    def reduce(
        self, segments: Sequence[Segment], acc: list[Any], o: Expr, i: Expr, x0: Expr, c: Expr
    ) -> None:
        """Add all products to the accumulators of a tile."""
        for segment in segments:
            self._reduce(segment, acc, o, i, x0, c)

    def add(self, acc: list[Any], n: int, products: Expr) -> None:
        """Add products, or sums of two, to the accumulators of pixel ``n``."""
        wide = cast(products, "int32", LANES)
        self.ctx.code.store(acc[n], [0], load(acc[n], [0], LANES) + wide, LANES)

    def _reduce(self, s: Segment, acc: list[Any], o: Expr, i: Expr, x0: Expr, c: Expr) -> None:
        code = self.ctx.code
        # With zero point 0, two products, at most 127 · 127 each, fit into int16 together: they
        # are widened once. With another one, 255 · 127 does not even fit by itself.
        together = 1 if self.ctx.kernel.code.zero_point else 2
        pairs, single = divmod(s.columns, together)
        with code.loop(s.rows, "ky") as a:
            if pairs:
                with code.loop(pairs, "kx") as b:
                    columns = [b * together + n for n in range(together)]
                    self._multiply(s, acc, o, i, x0, c, a, columns)
            if single:
                self._multiply(s, acc, o, i, x0, c, a, [s.columns - 1])

    def _multiply(
        self, s: Segment, acc: list[Any], o: Expr, i: Expr, x0: Expr, c: Expr, a: Expr,
        columns: list[Expr],
    ) -> None:  # fmt: skip
        """Add the products of some taps of row ``a``, whose sums the narrow type can hold."""
        code, kernel = self.ctx.code, self.ctx.kernel
        zero_point = kernel.code.zero_point
        spec = kernel.tensor(s.input)
        iy, ix = self.anchor.in_stride
        places = [a * s.columns + b + s.start for b in columns]
        weights = [code.bind(load(self.weight, [o, place, 0], LANES)) for place in places]
        y = i * iy + (a * s.step_y + s.dy + spec.halo[0])
        for n in range(self.width):
            products: Any = None
            for b, w in zip(columns, weights, strict=True):
                x: Expr = (x0 + n) * ix + (b * s.step_x + s.dx + spec.halo[1])
                vector = load_vector(self.ctx, s.input, [0, y, x, c], self.block)
                value = cast(vector, self.narrow, LANES)
                if zero_point:
                    value = value - constant(zero_point, self.narrow, LANES)
                products = value * w if products is None else products + value * w
            self.add(acc, n, products)


class Avx2DepthwiseBlock(DepthwiseBlock):
    """Sums of channels with even and with odd numbers side by side until the tile is done.

    ``vpmaddwd`` by (1, 0) widens those with even numbers, a shift those with odd ones; widening 16
    channels in order takes twice as many instructions, on one port.
    """

    def reduce(
        self, segments: Sequence[Segment], acc: list[Any], o: Expr, i: Expr, x0: Expr, c: Expr
    ) -> None:
        """Add all products to the accumulators of a tile."""
        code, half = self.ctx.code, LANES // 2
        self.sums = [
            (code.allocate(half, "int32", "even"), code.allocate(half, "int32", "odd")) for _ in acc
        ]
        for pair in self.sums:
            for part in pair:
                code.store(part, [0], constant(0, "int32", half), half)
        super().reduce(segments, acc, o, i, x0, c)
        in_order = [n // 2 + half * (n % 2) for n in range(LANES)]
        for buffer, (even, odd) in zip(acc, self.sums, strict=True):
            whole = tirx.Shuffle([load(even, [0], half), load(odd, [0], half)], in_order)
            code.store(buffer, [0], whole, LANES)

    def add(self, acc: list[Any], n: int, products: Expr) -> None:
        """Add sums of two products to the sums of pixel ``n``."""
        code, half = self.ctx.code, LANES // 2
        even, odd = self.sums[n]
        both = code.bind(products)
        one_zero = reinterpret(constant(1, "int32", half), "int16", LANES)  # lowest bits first
        low = intrinsic("llvm.x86.avx2.pmadd.wd", "int32", half, both, one_zero)
        high = reinterpret(both, "int32", half) >> constant(16, "int32", half)
        code.store(even, [0], load(even, [0], half) + low, half)
        code.store(odd, [0], load(odd, [0], half) + high, half)

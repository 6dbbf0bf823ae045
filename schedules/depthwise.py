"""Depthwise integer convolutions, 16 channels side by side, tap by tap (AVX2 and generic)."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from resq_tvm.schedules.code import Expr, cast, load
from resq_tvm.schedules.context import LANES, ChannelBlock, Context, ceil_div, load_vector
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.packing import pack_weight, segments_of
from resq_tvm.schedules.spec import Conv, Phase
from resq_tvm.schedules.tiles import overlap


def emit_depthwise(ctx: Context) -> None:
    """Emit a depthwise convolution with its epilogue."""
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    epilogue = Epilogue(ctx)
    for phase in anchor.phases:
        for block in ctx.channel_blocks(1):
            _emit_block(ctx, anchor, epilogue, phase, block)


def _emit_block(
    ctx: Context, anchor: Conv, epilogue: Epilogue, phase: Phase, block: ChannelBlock
) -> None:
    kernel, code = ctx.kernel, ctx.code
    rows = ceil_div(kernel.h - phase.oy, anchor.out_stride[0])
    columns = ceil_div(kernel.w - phase.ox, anchor.out_stride[1])
    segments = segments_of(kernel, phase, 1)
    packed = pack_weight(anchor.weight, segments, 1, ctx.vectors)[..., 0]
    chosen = packed[block.start : block.start + block.count]
    weight = ctx.constant("w", chosen.transpose(0, 2, 1))
    tile = min(ctx.decision.tile_x, columns)
    (sy, sx), (iy, ix) = anchor.out_stride, anchor.in_stride
    (lanes,) = block.lanes
    zero = tirx.Broadcast(tirx.const(0, "int32"), LANES)
    # With zero point 0, |code · weight| <= 127 · 127 fits int16; else 255 · 127 does not.
    narrow = "int32" if kernel.code.zero_point else "int16"
    offset = tirx.Broadcast(tirx.const(kernel.code.zero_point, narrow), LANES)
    with (
        code.loop(rows, "y", ctx.decision.parallel) as i,
        code.loop(ceil_div(columns, tile), "x") as t,
        code.loop(block.count, "c") as o,
    ):
        x0 = overlap(t, tile, columns)
        c = (o + block.start) * LANES
        acc: list[Any] = []
        for _ in range(tile):
            acc.append(code.allocate(LANES, "int32"))
            code.store(acc[-1], [0], zero, LANES)
        for s in segments:
            spec = kernel.tensor(s.input)
            with code.loop(s.rows, "ky") as a, code.loop(s.columns, "kx") as b:
                w = load(weight, [o, a * s.columns + b + s.start, 0], LANES)
                w = code.bind(cast(w, narrow, LANES))
                y = i * iy + (a * s.step_y + s.dy + spec.halo[0])
                for n in range(tile):
                    x: Expr = (x0 + n) * ix + (b * s.step_x + s.dx + spec.halo[1])
                    value = cast(load_vector(ctx, s.input, [0, y, x, c], block), narrow, LANES)
                    if kernel.code.zero_point:
                        value = value - offset
                    product = cast(value * w, "int32", LANES)
                    code.store(acc[n], [0], load(acc[n], [0], LANES) + product, LANES)
        epilogue.tile(
            acc,
            tile,
            lambda _, j: (i * sy + phase.oy, (x0 + j) * sx + phase.ox),
            c,
            lanes,
        )

"""Float32 convolutions: layers that stay in float. Borders are tested, not padded."""

from __future__ import annotations

from functools import partial
from typing import Any

from resq_tvm.schedules.code import Expr, constant, first_lanes, load, splat
from resq_tvm.schedules.context import LANES, ChannelBlock, Context, ceil_div, load_vector
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.guards import within
from resq_tvm.schedules.packing import Segment, densify, pack_weight, segments_of
from resq_tvm.schedules.reach import convolution
from resq_tvm.schedules.sparse import changed_tiles, every_pixel
from resq_tvm.schedules.spec import FloatConv, Phase


def emit_float_conv(ctx: Context) -> None:
    """Emit a float32 convolution with its epilogue; products and sums may be fused."""
    anchor = ctx.kernel.anchor
    if isinstance(anchor, FloatConv) and not _is_depthwise(anchor):
        ctx.kernel = densify(ctx.kernel, ctx.kernel.c + 1, 1)
        anchor = ctx.kernel.anchor
    assert isinstance(anchor, FloatConv)
    epilogue = Epilogue(ctx)
    for phase in anchor.phases:
        _emit_phase(ctx, anchor, epilogue, phase)


def _emit_phase(ctx: Context, anchor: FloatConv, epilogue: Epilogue, phase: Phase) -> None:
    kernel, code = ctx.kernel, ctx.code
    rows = ceil_div(kernel.h - phase.oy, anchor.out_stride[0])
    columns = ceil_div(kernel.w - phase.ox, anchor.out_stride[1])
    segments = segments_of(kernel, phase, 1)
    packed = pack_weight(anchor.weight, segments, 1, ctx.vectors)[..., 0]
    weight = ctx.constant("w", packed.transpose(0, 2, 1))
    if rows <= 0 or columns <= 0:
        return
    sy, sx = anchor.out_stride
    if kernel.sparse is not None:
        windows = partial(convolution, kernel, [phase], 1)
        lie = ((sy, sx), ((phase.oy, phase.ox),))
        finish = epilogue.finisher(*lie)
        loops: Any = changed_tiles(ctx, rows, columns, 1, 1, windows, *lie, finish)
    else:
        loops = every_pixel(ctx, rows, columns)
    with loops as pixel:
        i, j = pixel.y, pixel.x
        for block in ctx.channel_blocks(1):
            with code.loop(block.count, "c") as o:
                vector = o + block.start
                (lanes,) = block.lanes
                acc = code.allocate(LANES, "float32")
                code.store(acc, [0], constant(0.0, "float32", LANES), LANES)
                for segment in segments:
                    _reduce(ctx, anchor, segment, weight, acc, block, vector, i, j)
                c = vector * LANES
                epilogue.channels(c, lanes)
                value = first_lanes(load(acc, [0], LANES), lanes)
                epilogue.pixel(value, i * sy + phase.oy, j * sx + phase.ox, c, lanes)


def _is_depthwise(anchor: FloatConv) -> bool:
    return anchor.groups > 1 and anchor.groups == anchor.weight.shape[0]


def _reduce(
    ctx: Context,
    anchor: FloatConv,
    segment: Segment,
    weight: Any,
    acc: Any,
    block: ChannelBlock,
    vector: Expr,
    i: Expr,
    j: Expr,
) -> None:
    code = ctx.code
    spec, buffer = ctx.kernel.tensor(segment.input), ctx.buffer(segment.input)
    with code.loop(segment.rows, "ky") as a, code.loop(segment.columns, "kx") as b:
        y = i * anchor.in_stride[0] + (a * segment.step_y + segment.dy)
        x = j * anchor.in_stride[1] + (b * segment.step_x + segment.dx)
        with code.when(within((y, spec.h), (x, spec.w))), code.loop(segment.groups, "k") as k:
            step = (a * segment.columns + b) * segment.groups + k + segment.start
            if _is_depthwise(anchor):
                value = load_vector(ctx, segment.input, [0, y, x, vector * LANES], block)
            else:
                value = splat(load(buffer, [0, y, x, k], 1), LANES)
            product = value * load(weight, [vector, step, 0], LANES)
            code.store(acc, [0], load(acc, [0], LANES) + product, LANES)

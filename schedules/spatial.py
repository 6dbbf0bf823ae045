"""Kernels that move or combine float pixels: mean, resize, window, and the plain walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import tirx

from resq_tvm.schedules import reach
from resq_tvm.schedules.code import Expr, constant, load, splat
from resq_tvm.schedules.context import LANES, Context, at, ceil_div
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.gate import emit_gate
from resq_tvm.schedules.guards import within
from resq_tvm.schedules.listing import Windows
from resq_tvm.schedules.packed import PACK, PackedEpilogue, packable
from resq_tvm.schedules.resample import axis_table
from resq_tvm.schedules.sparse import changed_tiles
from resq_tvm.schedules.spec import FusedKernel, GlobalMean, Resize, TensorSpec, Window
from resq_tvm.schedules.tiles import overlap
from resq_tvm.schedules.vecmath import fence

_RUN = 16  # pixels of a row that are one tile of a sparse kernel

Value = Callable[[Expr, Expr, Expr, int], Expr | None]


Reach = Callable[[Expr, Expr, int], Sequence[reach.Window]]


def over_output(ctx: Context, value: Value, depends: Reach | None = None) -> None:
    """Walk over rows, columns and channels; ``value(y, x, c, lanes)`` gives the anchor there.

    ``depends(y, x, width)`` gives the windows of the anchor's inputs that a run of pixels reads.
    """
    kernel, code = ctx.kernel, ctx.code
    epilogue = Epilogue(ctx)

    def pixel(y: Expr, x: Expr) -> None:
        for block in ctx.channel_blocks(1):
            with code.loop(block.count, "c") as i:
                c = (i + block.start) * LANES
                (lanes,) = block.lanes
                epilogue.channels(c, lanes)
                epilogue.pixel(value(y, x, c, lanes), y, x, c, lanes)

    if kernel.sparse is None:
        with (
            code.loop(kernel.h, "y", ctx.decision.parallel) as y,
            code.loop(kernel.w, "x") as x,
        ):
            pixel(y, x)
        return
    if kernel.gate is not None:
        emit_gate(ctx, epilogue)
    width = min(_RUN, kernel.w)
    windows = _windows(kernel, depends)
    finish = epilogue.finisher()
    tiles = changed_tiles(ctx, kernel.h, kernel.w, 1, width, windows, finish=finish)
    with tiles as tile:
        with code.loop(width, "j") as j:
            pixel(tile.y, tile.x + j)


def _windows(kernel: FusedKernel, depends: Reach | None) -> Windows:
    def windows(y: Expr, x: Expr, width: int) -> list[reach.Window]:
        anchored = [] if depends is None else list(depends(y, x, width))
        return anchored + reach.elementwise(kernel, y, x, 1, width)

    return windows


def over_packs(
    ctx: Context, value: Callable[[Expr, Expr], Expr | None], depends: Reach | None = None
) -> None:
    """Walk over the output four pixels at a time; ``value(y, x)`` gives the anchor of these."""
    kernel, code = ctx.kernel, ctx.code
    epilogue = PackedEpilogue(ctx)
    if kernel.sparse is not None:
        if kernel.gate is not None:
            emit_gate(ctx, epilogue)
        width = min(_RUN, kernel.w)
        windows = _windows(kernel, depends)
        finish = epilogue.finisher()
        with changed_tiles(ctx, kernel.h, kernel.w, 1, width, windows, finish=finish) as tile:
            with code.loop(ceil_div(width, PACK), "j") as j:
                epilogue.channels(0, LANES)
                x = tile.x + overlap(j, PACK, width)
                epilogue.pixel(value(tile.y, x), tile.y, x, 0, LANES)
        return
    with (
        code.loop(kernel.h, "y", ctx.decision.parallel) as y,
        code.loop(ceil_div(kernel.w, PACK), "x") as x,
    ):
        epilogue.channels(0, LANES)
        first = overlap(x, PACK, kernel.w)
        epilogue.pixel(value(y, first), y, first, 0, LANES)


def emit_walk(ctx: Context) -> None:
    """Emit a kernel whose epilogue's loads are all there is."""
    if packable(ctx):
        over_packs(ctx, lambda y, x: None)
    else:
        over_output(ctx, lambda y, x, c, lanes: None)


def emit_window(ctx: Context) -> None:
    """Emit a slice, zero padding, or both."""
    anchor, kernel, code = ctx.kernel.anchor, ctx.kernel, ctx.code
    assert isinstance(anchor, Window)
    spec, buffer = kernel.tensor(anchor.input), ctx.buffer(anchor.input)
    (oy, ox, oc), (sy, sx) = anchor.offset, anchor.stride

    def value(y: Expr, x: Expr, c: Expr, lanes: int) -> Expr:
        result = code.allocate(LANES, "float32", "win")
        code.store(result, [0], constant(anchor.fill, "float32", lanes), lanes)
        iy, ix = y * sy + oy, x * sx + ox
        first, last = oc, oc + kernel.c
        with code.when(within((iy, spec.h), (ix, spec.w))):
            if first >= 0 and last <= spec.c and _whole(lanes, oc, spec.c_phys, kernel.c):
                code.store(result, [0], load(buffer, [0, iy, ix, c + oc], lanes), lanes)
            else:
                for lane in range(lanes):
                    channel = c + (oc + lane)
                    with code.when(within((channel, spec.c))):
                        code.store(result, [lane], load(buffer, [0, iy, ix, channel], 1), 1)
        return load(result, [0], lanes)

    def depends(y: Expr, x: Expr, width: int) -> list[reach.Window]:
        seen = seen_map(kernel, anchor.input)
        return [reach.Window(m, (y * sy + oy,), x * sx + ox, (width - 1) * sx + 1) for m in seen]

    over_output(ctx, value, depends)


def seen_map(kernel: FusedKernel, name: str) -> list[TensorSpec]:
    """Return the map of an input, if it has one."""
    assert kernel.sparse is not None
    return [kernel.sparse.maps[name]] if name in kernel.sparse.maps else []


def _whole(lanes: int, offset: int, available: int, channels: int) -> bool:
    """Whether every vector of the output lies within the input's physical channels."""
    end = -(-channels // LANES) * LANES if lanes == LANES else channels
    return offset + end <= available


def emit_mean(ctx: Context) -> None:
    """Emit the mean over a plane, summed row by row."""
    anchor, kernel, code = ctx.kernel.anchor, ctx.kernel, ctx.code
    assert isinstance(anchor, GlobalMean)
    spec, buffer = kernel.tensor(anchor.input), ctx.buffer(anchor.input)

    def value(y: Expr, x: Expr, c: Expr, lanes: int) -> Expr:
        total = code.allocate(LANES, "float32", "sum")
        row = code.allocate(LANES, "float32", "row")
        zero = constant(0.0, "float32", lanes)
        code.store(total, [0], zero, lanes)
        with code.loop(spec.h, "iy") as iy:
            code.store(row, [0], zero, lanes)
            with code.loop(spec.w, "ix") as ix:
                new = load(row, [0], lanes) + load(buffer, [0, iy, ix, c], lanes)
                code.store(row, [0], new, lanes)
            code.store(total, [0], load(total, [0], lanes) + load(row, [0], lanes), lanes)
        return tirx.Div(load(total, [0], lanes), constant(float(spec.h * spec.w), "float32", lanes))

    def depends(y: Expr, x: Expr, width: int) -> list[reach.Window]:
        rows = tuple(range(spec.h))
        return [reach.Window(m, rows, 0, spec.w) for m in seen_map(kernel, anchor.input)]

    over_output(ctx, value, depends)


def emit_resize(ctx: Context) -> None:
    """Emit a resize: positions and weights of both axes are tables."""
    anchor, kernel, code = ctx.kernel.anchor, ctx.kernel, ctx.code
    assert isinstance(anchor, Resize)
    spec, buffer = kernel.tensor(anchor.input), ctx.buffer(anchor.input)
    rows, columns = axis_table(anchor, spec.h, kernel.h), axis_table(anchor, spec.w, kernel.w)
    ylow, xlow = ctx.constant("ylow", rows.low), ctx.constant("xlow", columns.low)
    yhigh, xhigh = ctx.constant("yhigh", rows.high), ctx.constant("xhigh", columns.high)

    def depends(y: Expr, x: Expr, width: int) -> list[reach.Window]:
        last = np.minimum(np.arange(kernel.w) + width - 1, kernel.w - 1)
        spans = np.maximum(columns.high, columns.low)[last] - columns.low + 1
        read = tuple(load(table, [y], 1) for table in (ylow, yhigh))
        first = load(xlow, [x], 1)
        seen = seen_map(kernel, anchor.input)
        return [reach.Window(m, read, first, int(spans.max())) for m in seen]

    if anchor.method == "nearest_neighbor":

        def nearest(y: Expr, x: Expr, c: Expr, lanes: int) -> Expr:
            iy, ix = code.bind(load(ylow, [y], 1)), code.bind(load(xlow, [x], 1))
            return load(buffer, at(spec, iy, ix, c), lanes)

        over_output(ctx, nearest, depends)
        return
    yweight, xweight = ctx.constant("yw", rows.weight), ctx.constant("xw", columns.weight)
    one = np.float32(1)
    yrest, xrest = ctx.constant("yr", one - rows.weight), ctx.constant("xr", one - columns.weight)

    def linear(y: Expr, x: Expr, c: Expr, lanes: int) -> Expr:
        y0, y1 = code.bind(load(ylow, [y], 1)), code.bind(load(yhigh, [y], 1))
        x0, x1 = code.bind(load(xlow, [x], 1)), code.bind(load(xhigh, [x], 1))
        wy, ry, wx, rx = (
            code.bind(splat(load(table, [i], 1), lanes))
            for table, i in ((yweight, y), (yrest, y), (xweight, x), (xrest, x))
        )

        def mix(a: Expr, ra: Expr, b: Expr, wb: Expr) -> Expr:
            return code.bind(fence(a * ra, lanes) + fence(b * wb, lanes))

        def across(row: Expr) -> Expr:
            a = load(buffer, at(spec, row, x0, c), lanes)
            b = load(buffer, at(spec, row, x1, c), lanes)
            return mix(a, rx, b, wx)

        return mix(across(y0), ry, across(y1), wy)

    over_output(ctx, linear, depends)

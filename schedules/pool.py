"""Pooling of float tensors: windows away from the borders are written out, others are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from resq_tvm.schedules import reach
from resq_tvm.schedules.code import Expr, cast, constant, load, splat
from resq_tvm.schedules.context import LANES, Context, ceil_div
from resq_tvm.schedules.guards import within
from resq_tvm.schedules.packed import PACK, SLOT, packable
from resq_tvm.schedules.spatial import over_output, over_packs, seen_map
from resq_tvm.schedules.spec import Pool

_UNROLLED_TAPS = 25  # windows up to 5 × 5 are written out away from the borders


def emit_pool(ctx: Context) -> None:
    """Emit max or average pooling; windows are cut at the borders."""
    anchor, kernel, code = ctx.kernel.anchor, ctx.kernel, ctx.code
    assert isinstance(anchor, Pool)

    def depends(y: Expr, x: Expr, width: int) -> list[reach.Window]:
        (seen,) = seen_map(kernel, anchor.input) or (None,)
        return [] if seen is None else reach.pooled(seen, anchor, y, x, width)

    if packable(ctx, anchor.input) and kernel.tensor(anchor.input).dtype == "float32":
        over_packs(ctx, _PackedPool(ctx, anchor).value, depends)
        return
    spec, buffer = kernel.tensor(anchor.input), ctx.buffer(anchor.input)
    (ky, kx), (sy, sx), (dy, dx) = anchor.window, anchor.stride, anchor.dilation
    top, left, _, _ = anchor.padding
    largest = anchor.kind == "max"

    def value(y: Expr, x: Expr, c: Expr, lanes: int) -> Expr:
        acc = code.allocate(LANES, "float32", "pool")
        code.store(acc, [0], constant(_start(anchor), "float32", lanes), lanes)

        def tap(iy: Expr, ix: Expr) -> None:
            old, new = load(acc, [0], lanes), load(buffer, [0, iy, ix, c], lanes)
            code.store(acc, [0], tirx.Max(old, new) if largest else old + new, lanes)

        y0, x0 = code.bind(y * sy + -top), code.bind(x * sx + -left)
        inside = tirx.And(
            within((y0, spec.h - dy * (ky - 1))), within((x0, spec.w - dx * (kx - 1)))
        )
        unrolled = ky * kx <= _UNROLLED_TAPS
        if unrolled:
            with code.when(inside):
                for a in range(ky):
                    for b in range(kx):
                        tap(y0 + a * dy, x0 + b * dx)
        with (
            code.when(tirx.Not(inside) if unrolled else tirx.const(True, "bool")),
            code.loop(ky, "ky") as a,
            code.loop(kx, "kx") as b,
        ):
            iy, ix = y0 + a * dy, x0 + b * dx
            with code.when(within((iy, spec.h), (ix, spec.w))):
                tap(iy, ix)
        result = load(acc, [0], lanes)
        if largest:
            return result
        return tirx.Div(result, splat(_count(ctx, anchor, y, x), lanes))

    over_output(ctx, value, depends)


def _start(anchor: Pool) -> float:
    return float(np.finfo(np.float32).min) if anchor.kind == "max" else 0.0


def _count(ctx: Context, anchor: Pool, y: Expr, x: Expr) -> Expr:
    """Return by what the average of an output pixel divides, as float32."""
    spec = ctx.kernel.tensor(anchor.input)
    (ky, kx), (sy, sx), (dy, dx) = anchor.window, anchor.stride, anchor.dilation
    top, left, bottom, right = anchor.padding
    rows = _taps_inside(y, ky, sy, dy, top, bottom, spec.h, anchor)
    columns = _taps_inside(x, kx, sx, dx, left, right, spec.w, anchor)
    return ctx.code.bind(cast(rows * columns, "float32", 1))


class _PackedPool:
    """Pooling of up to four channels, four pixels of the output side by side in one vector.

    Away from the borders a row of the four windows is one run of memory: it is loaded as a whole,
    and a shuffle per tap brings that tap of all four windows to their lanes.
    """

    def __init__(self, ctx: Context, anchor: Pool) -> None:
        self.ctx, self.code, self.anchor = ctx, ctx.code, anchor
        self.spec = ctx.kernel.tensor(anchor.input)
        self.buffer = ctx.buffer(anchor.input)
        kx, sx, dx = anchor.window[1], anchor.stride[1], anchor.dilation[1]
        pixels = (PACK - 1) * sx + dx * (kx - 1) + 1
        self.vectors = ceil_div(pixels * self.spec.c_phys, LANES)
        self.run = ceil_div(self.vectors * LANES, self.spec.c_phys)  # pixels that are loaded

    def value(self, y: Expr, x: Expr) -> Expr:
        """Return the pooled pixels ``x`` to ``x + 3``."""
        code, anchor = self.code, self.anchor
        (ky, kx), (sy, sx), (dy, _) = anchor.window, anchor.stride, anchor.dilation
        acc = code.allocate(LANES, "float32", "pool")
        code.store(acc, [0], constant(_start(anchor), "float32", LANES), LANES)
        y0 = code.bind(y * sy + -anchor.padding[0])
        x0 = code.bind(x * sx + -anchor.padding[1])
        rows, columns = self.spec.h - dy * (ky - 1), self.spec.w - self.run + 1
        quick = 0 < columns and 0 < rows and ky * kx <= _UNROLLED_TAPS and self.vectors <= 4
        inside = tirx.const(False, "bool")
        if quick:
            inside = tirx.And(within((y0, rows)), within((x0, columns)))
            with code.when(inside):
                for a in range(ky):
                    self._row(acc, y0 + a * dy, x0)
        with code.when(tirx.Not(inside)):
            self._careful(acc, y0, x0)
        result = load(acc, [0], LANES)
        if anchor.kind == "max":
            return result
        counts = code.allocate(LANES, "float32", "count")
        for p in range(PACK):
            divisor = splat(_count(self.ctx, anchor, y, x + p), SLOT)
            code.store(counts, [p * SLOT], divisor, SLOT)
        return tirx.Div(result, load(counts, [0], LANES))

    def _row(self, acc: Any, y: Expr, x: Expr) -> None:
        code, width = self.code, self.spec.c_phys
        kx, sx, dx = self.anchor.window[1], self.anchor.stride[1], self.anchor.dilation[1]
        # The buffer as a row of values: channels and pixels are contiguous.
        runs = [
            code.bind(load(self.buffer, [0, y, x, n * LANES], LANES)) for n in range(self.vectors)
        ]
        for b in range(kx):
            lanes = [
                (p * sx + b * dx) * width + min(k, width - 1)
                for p in range(PACK)
                for k in range(SLOT)
            ]
            self._take(acc, [0], tirx.Shuffle(runs, lanes), LANES)

    def _careful(self, acc: Any, y0: Expr, x0: Expr) -> None:
        code = self.code
        (ky, kx), (_, sx), (dy, dx) = self.anchor.window, self.anchor.stride, self.anchor.dilation
        with code.loop(PACK, "p") as p, code.loop(ky, "ky") as a, code.loop(kx, "kx") as b:
            y, x = y0 + a * dy, x0 + p * sx + b * dx
            with code.when(within((y, self.spec.h), (x, self.spec.w))):
                for k in range(self.spec.c):
                    self._take(acc, [p * SLOT + k], load(self.buffer, [0, y, x, k], 1), 1)

    def _take(self, acc: Any, index: list[Expr], new: Expr, lanes: int) -> None:
        old = load(acc, index, lanes)
        value = tirx.Max(old, new) if self.anchor.kind == "max" else old + new
        self.code.store(acc, index, value, lanes)


def _taps_inside(
    position: Expr, taps: int, stride: int, step: int, before: int, after: int, extent: int,
    anchor: Pool,
) -> Expr:  # fmt: skip
    """Count the taps of one axis that the average divides by."""
    low, high = (-before, extent + after) if anchor.count_include_pad else (0, extent)
    total = tirx.const(0, "int32")
    if step == 1:
        start = position * stride - before
        start = tirx.const(start, "int32") if isinstance(start, int) else start
        begin = tirx.Max(start, tirx.const(low, "int32"))
        return tirx.Min(start + taps, tirx.const(high, "int32")) - begin
    for t in range(taps):
        index = position * stride + (t * step - before)
        total = total + cast(within((index - low, high - low)), "int32", 1)
    return total

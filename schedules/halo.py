"""Halos: the border of zero codes that a kernel writes around every code tensor it makes."""

from __future__ import annotations

from resq_tvm.schedules.code import Expr, constant
from resq_tvm.schedules.context import Context
from resq_tvm.schedules.spec import TensorSpec

_WIDE = 64


def emit_halo(ctx: Context, spec: TensorSpec) -> None:
    """Fill the halo of one output tensor with its zero."""
    top, left, _, _ = spec.halo
    _, height, width, _ = spec.shape
    _fill(ctx, spec, (0, top), (0, width))
    _fill(ctx, spec, (top + spec.h, height), (0, width))
    _fill(ctx, spec, (top, top + spec.h), (0, left))
    _fill(ctx, spec, (top, top + spec.h), (left + spec.w, width))


def _fill(ctx: Context, spec: TensorSpec, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    code = ctx.code
    zero = 0 if spec.dtype.startswith("float") else ctx.kernel.code.zero_point
    height, count = rows[1] - rows[0], (columns[1] - columns[0]) * spec.c_phys
    if not height or not count:
        return
    buffer = ctx.buffer(spec.name)
    with code.loop(height, "hy") as y:
        for start, lanes, runs in _runs(count):
            with code.loop(runs, "hx") as i:
                # The last index runs over the row's end: rows are contiguous.
                offset: Expr = i * lanes + (columns[0] * spec.c_phys + start)
                value = constant(zero, spec.dtype, lanes)
                code.store(buffer, [0, y + rows[0], 0, offset], value, lanes)


def _runs(count: int) -> list[tuple[int, int, int]]:
    """Cut ``count`` elements into (start, lanes, repetitions)."""
    whole = count // _WIDE
    runs = [(0, _WIDE, whole)] if whole else []
    if count % _WIDE:
        runs.append((whole * _WIDE, count % _WIDE, 1))
    return runs

"""Covering an extent by tiles of one size."""

from __future__ import annotations

from tvm import tirx

from resq_tvm.schedules.code import Expr


def overlap(tile: Expr, size: int, extent: int) -> Expr:
    """Return the start of a tile.

    The last one moves back to end with the extent and overlaps its neighbour: the pixels in common
    are computed twice, which is cheaper than the code of a second, smaller tile.
    """
    start = tile * size
    if extent % size == 0 or isinstance(start, int):
        return start
    return tirx.Min(start, tirx.const(extent - size, "int32"))


def rest(extent: int, start: Expr, size: int) -> Expr:
    """Return how many of ``size`` positions from ``start`` on lie within the extent."""
    if extent % size == 0:
        return size
    if isinstance(start, int):
        return min(size, extent - start)
    return tirx.Min(tirx.const(size, "int32"), extent - start)

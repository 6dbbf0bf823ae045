"""Conditions on indices."""

from __future__ import annotations

from tvm import tirx

from resq_tvm.schedules.code import Expr, index_of


def within(*bounds: tuple[Expr, int]) -> Expr:
    """Return the condition that every index is in ``[0, extent)`` of its pair."""
    condition = tirx.const(True, "bool")
    for index, extent in bounds:
        value = index_of(index)
        condition = tirx.And(condition, tirx.And(value >= 0, value < extent))
    return condition

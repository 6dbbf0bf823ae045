"""Where a resize reads: the tables of its axes (`resq_tvm.targets.npu.axes` computes them)."""

from __future__ import annotations

from resq_tvm.schedules.spec import Resize
from resq_tvm.targets.npu.axes import AxisTable, resize_axis

__all__ = ["AxisTable", "axis_table"]


def axis_table(anchor: Resize, source: int, output: int) -> AxisTable:
    """Compute the table of an axis that goes from ``source`` to ``output`` elements.

    Raises
    ------
    CompileError
        If the coordinate transformation or the rounding is unknown.
    """
    return resize_axis(anchor.method, anchor.coordinate, anchor.rounding, source, output)

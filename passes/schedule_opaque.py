"""Give the operators that no kernel of ours covers a decent CPU schedule.

Runs after legalization. PrimFuncs that are not marked ``tirx.is_scheduled`` get producers inlined,
their outermost loops fused and run in parallel, and the innermost spatial loop vectorised where
its extent allows. What the schedule primitives refuse is left as legalization made it.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx

_LANES = 16
_PARALLEL_FROM = 4096  # elements below which a thread launch costs more than it brings


@tvm.transform.module_pass(opt_level=0, name="ScheduleOpaque")
class ScheduleOpaque:
    """Schedule every PrimFunc that has not been scheduled."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with all PrimFuncs scheduled."""
        out = tvm.IRModule(dict(mod.functions_items()))
        for gv, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and "tirx.is_scheduled" not in (func.attrs or {}):
                out[gv] = _schedule(func)
        return out


def _schedule(func: Any) -> Any:
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root)[:-1]:
        try:
            sch.compute_inline(block)
        except s_tir.ScheduleError:
            continue
    for block in sch.get_child_blocks(root):
        _schedule_block(sch, block)
    return sch.mod["main"].with_attr("tirx.is_scheduled", True)


def _schedule_block(sch: Any, block: Any) -> None:
    spatial = []
    for loop, var in zip(sch.get_loops(block), sch.get(block).iter_vars, strict=False):
        if int(var.iter_type) != tirx.IterVar.DataPar:
            break
        spatial.append(loop)
    if not spatial:
        return
    has_reduction = len(spatial) < len(sch.get_loops(block))
    try:
        fused = sch.fuse(*spatial)
        extent = int(sch.get(fused).extent)
        if has_reduction:
            if extent >= _LANES:
                sch.parallel(fused)
            return
        outer, inner = sch.split(fused, [None, _LANES])
        sch.vectorize(inner)
        if extent >= _PARALLEL_FROM:
            sch.parallel(outer)
    except s_tir.ScheduleError:
        return

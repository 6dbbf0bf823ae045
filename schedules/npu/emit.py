"""From a fused kernel and a decision to the PrimFunc of an NPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from resq_tvm.errors import CompileError
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.context import NpuContext
from resq_tvm.schedules.npu.gate import plan_gate
from resq_tvm.schedules.npu.intrinsics import PROGRAMS
from resq_tvm.schedules.npu.matrix import plan_matrix
from resq_tvm.schedules.npu.program import to_json
from resq_tvm.schedules.npu.spatial import plan_spatial
from resq_tvm.schedules.spec import Conv, FusedKernel
from resq_tvm.targets.preset import Target


def emit_npu(
    kernel: FusedKernel, decision: Decision, target: Target, thresholds: tuple[float, ...] = ()
) -> tuple[Any, list[tuple[str, NDArray[Any]]]]:
    """Write a kernel in TIR, as loops over tiles and calls of the NPU's intrinsics.

    Parameters
    ----------
    kernel : FusedKernel
        What is computed; its tensors say how they lie in memory.
    decision : Decision
        How it is tiled; from `resq_tvm.schedules.npu.rules.decide_npu`.
    target : Target
        An NPU.
    thresholds : tuple of float
        The program's, by which choices of bits decide.

    Returns
    -------
    func : tvm.tirx.PrimFunc
        Parameters are ``kernel.inputs``, maps of bits that are read, packed constants,
        ``kernel.outputs``, maps of bits that are written.
    constants : list of (str, ndarray)
        Packed weights and per-channel constants, in parameter order.

    Raises
    ------
    CompileError
        If the tiles do not fit the machine's memories.
    """
    ctx, write = _plan(kernel, decision, target, thresholds)
    ctx.require_fit()
    write()
    func = tirx.PrimFunc(ctx.parameters(), ctx.code.statement()).with_attr(
        {
            "global_symbol": kernel.name,
            "s_tir": True,
            "tirx.is_scheduled": True,
            "tirx.noalias": True,
            PROGRAMS: to_json(ctx.programs),
        }
    )
    return func, [(name, np.asarray(array)) for name, array in ctx.constants]


def fits(kernel: FusedKernel, decision: Decision, target: Target) -> bool:
    """Return whether a decision's tiles fit the machine's memories."""
    # Thresholds take no memory in tiles: any will do.
    used = [s.choice.threshold for s in kernel.stores if s.choice is not None]
    used += [] if kernel.gate is None else [kernel.gate.threshold]
    thresholds = (0.0,) * (1 + max(used, default=0))
    ctx, _ = _plan(kernel, decision, target, thresholds)
    try:
        ctx.require_fit()
    except CompileError:
        return False
    return True


@dataclass(frozen=True)
class Footprint:
    """Bytes of SRAM that a kernel takes by bands: constants for good, tiles of a band."""

    kept: int
    passing: int


def footprint(kernel: FusedKernel, decision: Decision, target: Target) -> Footprint | None:
    """Return what a kernel takes that runs band by band of ``decision.tile_y`` rows.

    None: its tiles do not fit, or it cannot, since its rows are not the outermost loop or it loads
    constants more than once.
    """
    ctx, _ = _plan(kernel, decision, target, ())
    try:
        ctx.require_fit()
    except CompileError:
        return None
    return Footprint(ctx.kept_bytes, ctx.sram_bytes - ctx.kept_bytes) if ctx.by_bands else None


def _plan(
    kernel: FusedKernel, decision: Decision, target: Target, thresholds: tuple[float, ...]
) -> tuple[NpuContext, Callable[[], None]]:
    ctx = NpuContext(kernel, decision, target)
    plan = plan_matrix if isinstance(kernel.anchor, Conv) else plan_spatial
    if kernel.gate is not None:
        plan = plan_gate
    return ctx, plan(ctx, thresholds)

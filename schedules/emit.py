"""From a fused kernel and a decision to a scheduled PrimFunc and its packed constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from resq_tvm.schedules.arm.depthwise import emit_depthwise_arm
from resq_tvm.schedules.arm.schemes import SCHEMES
from resq_tvm.schedules.arm.ternary import TERNARY
from resq_tvm.schedules.budget import emit_budget
from resq_tvm.schedules.context import Context
from resq_tvm.schedules.conv import emit_conv
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.depthwise import emit_depthwise
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.floatconv import emit_float_conv
from resq_tvm.schedules.gate import emit_gate
from resq_tvm.schedules.halo import emit_halo
from resq_tvm.schedules.interleave import emit_interleaved
from resq_tvm.schedules.listing import begin
from resq_tvm.schedules.packed import PackedEpilogue, packable
from resq_tvm.schedules.pool import emit_pool
from resq_tvm.schedules.spatial import (
    emit_mean,
    emit_resize,
    emit_walk,
    emit_window,
)
from resq_tvm.schedules.spec import (
    Conv,
    FloatConv,
    FusedKernel,
    GlobalMean,
    Pool,
    Resize,
    Walk,
    Window,
)
from resq_tvm.targets.preset import Target

_CONVOLUTIONS: dict[str, Callable[[Context], None]] = {
    "dot": emit_conv,
    "quads": emit_interleaved,
    "taps": emit_depthwise,
    "narrow": emit_depthwise_arm,
    **dict.fromkeys((*SCHEMES, TERNARY), emit_conv),
}
_EMITTERS: dict[type, Callable[[Context], None]] = {
    FloatConv: emit_float_conv,
    Pool: emit_pool,
    GlobalMean: emit_mean,
    Resize: emit_resize,
    Window: emit_window,
    Walk: emit_walk,
}


def emit(
    kernel: FusedKernel, decision: Decision, target: Target
) -> tuple[Any, list[tuple[str, NDArray[Any]]]]:
    """Write a kernel in TIR.

    Parameters
    ----------
    kernel : FusedKernel
        What is computed.
    decision : Decision
        How it is tiled; from `resq_tvm.schedules.rules.decide`.
    target : Target
        The machine.

    Returns
    -------
    func : tvm.tirx.PrimFunc
        Parameters are ``kernel.inputs``, the packed constants, ``kernel.outputs``, each with its
        physical shape; attributes mark it as scheduled and free of aliases.
    constants : list of (str, ndarray)
        Packed weights, accumulator starts, epilogue vectors and tables, in parameter order.
    """
    ctx = Context(kernel, decision, target)
    if kernel.sparse is not None:
        begin(ctx)
    if isinstance(kernel.anchor, Conv):
        _CONVOLUTIONS[decision.method](ctx)
    else:
        _EMITTERS[type(kernel.anchor)](ctx)
    for chooser in ctx.choosers:
        emit_budget(ctx, chooser)
    if kernel.sparse is None:  # the outputs of a sparse kernel are kept, halos with them
        for spec in kernel.outputs:
            emit_halo(ctx, spec)
    return _function(ctx, kernel.name)


def emit_comparison(
    kernel: FusedKernel, decision: Decision, target: Target
) -> tuple[Any, list[tuple[str, NDArray[Any]]]]:
    """Write the gate of a kernel alone: it marks what changed and leaves all else as it is.

    Parameters and results are as of `emit`; outputs, tiles and counts are taken and not touched.
    """
    ctx = Context(kernel, decision, target)
    emit_gate(ctx, PackedEpilogue(ctx) if packable(ctx) else Epilogue(ctx))
    return _function(ctx, f"{kernel.name}_compared")


def _function(ctx: Context, name: str) -> tuple[Any, list[tuple[str, NDArray[Any]]]]:
    func = tirx.PrimFunc(ctx.parameters(), ctx.code.statement()).with_attr(
        {
            "global_symbol": name,
            "s_tir": True,
            "tirx.is_scheduled": True,
            "tirx.noalias": True,
        }
    )
    return func, [(name, np.asarray(array)) for name, array in ctx.constants]

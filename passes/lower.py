"""Lower fused programs to scheduled PrimFuncs on physical tensors.

Requires `FuseKernels`. Plans the physical layout of every value (halos of code tensors, padded
channels; see `resq_tvm.schedules.spec`), asks the schedules for one PrimFunc per composite, and
replaces the composites by ``call_tir``. Constants become entries of one ``params`` tuple, the last
parameter of both programs: ``keyframe(x…, params)`` and ``residual(x…, (state…), params)``.
Opaque operators stay as they are, on plain tensors.

A residual program that chooses bits keeps its kernels' outputs in a workspace
(`resq_tvm.passes.changes`) and comes in two parts: ``probe(x…, (state…), (workspace…), params) ->
(maps…)`` finds what changed in the frames, ``residual(x…, (state…), (workspace…), params)`` goes on
from there. ``note(x…, params) -> (state…)`` gives frames as the keyframe's state holds them, and
``peek`` is a ``probe`` that compares with such frames and touches nothing but the maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from resq_tvm.passes.changes import THRESHOLDS, WorkspaceTensor
from resq_tvm.passes.graph import op_name
from resq_tvm.passes.layouts import Plan, agree_on_state
from resq_tvm.passes.programs import Constants, KernelRecord, Writer
from resq_tvm.schedules.choice import Decider, by_rules
from resq_tvm.targets.preset import Target


@dataclass(frozen=True, eq=False)
class Lowered:
    """The fused module, the lowered one, the constants in the order of ``params``, the kernels.

    ``kernels`` has one record per composite of ``fused``, by the composite's name; ``opaque``
    names per program the operators that no kernel of ours covers and TVM lowers itself.
    ``workspace`` and ``thresholds`` (value → threshold, the parameter of that name) belong to a
    residual program that chooses bits.
    """

    fused: tvm.IRModule
    module: tvm.IRModule
    params: dict[str, NDArray[Any]]
    kernels: dict[str, KernelRecord]
    opaque: dict[str, list[str]]
    state_types: list[tuple[tuple[int, ...], str]]
    workspace: list[WorkspaceTensor]
    thresholds: dict[str, float]


def lower(mod: tvm.IRModule, target: Target, decide: Decider | None = None) -> Lowered:
    """Lower the fused ``keyframe`` (and ``residual``, if any) for a target.

    Parameters
    ----------
    mod : IRModule
    target : Target
    decide : callable, optional
        Takes the decision about every kernel; the target's rules by default.
    """
    decide = decide or by_rules(target)
    programs: list[str] = [n for n in ("keyframe", "residual") if n in _names(mod)]
    plans = {n: Plan(mod, n, target) for n in programs}
    agree_on_state(plans)
    constants = Constants()
    kernels: dict[str, KernelRecord] = {}
    writers = [Writer(plans[n], constants, kernels, target, decide) for n in programs]
    for writer in writers:
        writer.emit_kernels()
    thresholds = {k: v for w in writers for k, v in w.thresholds.values.items()}
    if thresholds:
        # Not shared with constants of equal content: it may be changed without compiling anew.
        constants.arrays[THRESHOLDS] = np.array(list(thresholds.values()), np.float32)
    out = tvm.IRModule()
    probes = any(w.compared for w in writers)
    for writer in writers:
        writer.write(out, input_state(mod) if probes else {})
    state = [plans["keyframe"].physical_type(v) for v in plans["keyframe"].state_out]
    opaque = {
        n: [
            f"{op_name(e).removeprefix('relax.')} {v.name}"
            for v, e in p.graph.bindings
            if op_name(e)
        ]
        for n, p in plans.items()
    }
    workspace = [t for w in writers if w.workspace is not None for t in w.workspace.tensors]
    return Lowered(mod, out, constants.arrays, kernels, opaque, state, workspace, thresholds)


def _names(mod: tvm.IRModule) -> list[str]:
    return [g.name_hint for g in mod.get_global_vars()]


def input_state(mod: tvm.IRModule) -> dict[int, int]:
    """Return which inputs of a fused module's keyframe are state, and where (both by number)."""
    if "residual" not in _names(mod):
        return {}
    function = mod["residual"]
    names = [p.name for p in function.params]
    count = int(function.attrs["num_input"])
    places = {name: i for i, name in enumerate(names[count:])}
    held = {i: places.get(f"{name}_key") for i, name in enumerate(names[:count])}
    return {i: place for i, place in held.items() if place is not None}

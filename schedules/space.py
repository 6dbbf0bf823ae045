"""The search space of a kernel: knobs over its `Decision`, as a MetaSchedule schedule function.

Kernels are written by `resq_tvm.schedules.emit` from a decision, not by transforming a loop nest.
What MetaSchedule sees is therefore a stand-in (`stand_in`): a function with the kernel's signature,
whose one block a schedule function annotates with the knobs that it samples. A trace over it is a
decision; it can be stored in MetaSchedule's database and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.stmt import SBlock, SBlockRealize

from resq_tvm.schedules.arm.schemes import SCHEMES
from resq_tvm.schedules.arm.ternary import TERNARY
from resq_tvm.schedules.context import LANES, ceil_div
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.emit import fits
from resq_tvm.schedules.npu.space import npu_knobs
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.signature import signature
from resq_tvm.schedules.spec import Conv, FusedKernel, phase_plane
from resq_tvm.targets.preset import Target

Knobs = dict[str, tuple[int, ...]]

TUNED = "tuned"  # the rule of decisions that a search made

_BLOCK = "kernel"
_PREFIX = "resq."
_NOTE = "resq.note."
_SAMPLED = ("tile_y", "tile_x", "tile_o", "inner_o", "parallel", "prefetch")

# 16-lane accumulators of a candidate at most. Beyond these, LLVM keeps most on the stack.
_MOST_PIXELS = 6  # of a tile's row on ARM
_MOST = {
    "avx512-vnni": 24, "avx2": 8, "generic": 8, "neon": 8, "neon-dot": 8, "neon-i8mm": 8,
}  # fmt: skip


def tunable(kernel: FusedKernel, target: Target) -> bool:
    """Return whether a kernel has more than one decision."""
    return kernel.sparse is None and bool(knobs(kernel, target))


def knobs(kernel: FusedKernel, target: Target, threads: int = 1) -> Knobs:
    """Return what may be decided about a kernel: field of `Decision` → values.

    Parameters
    ----------
    kernel : FusedKernel
    target : Target
    threads : int
        With one thread nothing is parallel or not.
    """
    anchor = kernel.anchor
    if not isinstance(anchor, Conv):
        return {}
    if target.npu is not None:
        return npu_knobs(kernel, target.npu)
    method = decide(kernel, target).method
    rows, columns = phase_plane(kernel, anchor)
    vectors = ceil_div(kernel.c, LANES)
    both = (0, 1)
    found: Knobs = {}
    if method == "dot":
        found = {
            "tile_y": tuple(n for n in (1, 2, 3, 4) if n <= rows),
            "tile_x": tuple(range(1, min(columns, 16) + 1)),
            "tile_o": tuple(range(1, min(vectors, 6) + 1)),
            "inner_o": both if vectors > 1 else (1,),
            "prefetch": _prefetches(kernel),
        }
    elif method == "quads":
        found = {
            "tile_y": tuple(range(1, min(rows, 4) + 1)),
            "tile_x": tuple(range(1, min(columns, 8) + 1)),
            "inner_o": both if vectors > 1 else (1,),
            "prefetch": _prefetches(kernel),
        }
    elif method in SCHEMES or method == TERNARY:
        most = 4 if method == TERNARY else _MOST_PIXELS
        found = {
            "tile_y": tuple(n for n in (1, 2, 4) if n <= rows),
            "tile_x": tuple(range(1, min(columns, most) + 1)),
            "inner_o": both if vectors > 1 else (1,),
            "prefetch": _prefetches(kernel),
        }
    elif method in ("taps", "narrow"):
        found = {"tile_x": tuple(range(1, min(columns, 8) + 1))}
    if found and threads > 1:
        found["parallel"] = both
    return found


def _prefetches(kernel: FusedKernel) -> tuple[int, ...]:
    """How many tiles ahead tensors that the epilogue touches may be fetched."""
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    states = [s for s in kernel.inputs if s.name not in anchor.reads and s.h * s.w > 1]
    return (0, 1, 2, 4) if states or kernel.outputs else (0,)


def candidates(kernel: FusedKernel, target: Target, threads: int = 1) -> list[Decision]:
    """Return every decision of the space, the heuristic's first.

    Parameters
    ----------
    kernel : FusedKernel
    target : Target
    threads : int
    """
    heuristic = decide(kernel, target)
    space = knobs(kernel, target, threads)
    found = [heuristic]
    seen = {as_sample(heuristic)}
    for values in product(*space.values()):
        decision = _with(replace(heuristic, rule=TUNED), dict(zip(space, values, strict=True)))
        if sensible(kernel, decision, target) and as_sample(decision) not in seen:
            seen.add(as_sample(decision))
            found.append(decision)
    return found


def sensible(kernel: FusedKernel, decision: Decision, target: Target) -> bool:
    """Return whether a decision's tile fits the registers (an NPU's memories) and the method."""
    if target.npu is not None:
        return fits(kernel, decision, target)
    accumulators = decision.tile_y * decision.tile_x * decision.tile_o
    most = _MOST[target.isa]
    if decision.method == TERNARY:
        most = 4
    if decision.method == "quads":
        most = min(most, 16)
    size = kernel.h * kernel.w * ceil_div(kernel.c, LANES)
    return accumulators <= most and (accumulators >= 3 or size < 16)


def as_sample(decision: Decision) -> tuple[int, ...]:
    """Return the knobs of a decision as numbers: what makes two decisions the same code."""
    return tuple(int(getattr(decision, name)) for name in _SAMPLED)


def _with(decision: Decision, values: dict[str, int]) -> Decision:
    flags = ("inner_o", "parallel")
    typed: dict[str, Any] = {k: bool(v) if k in flags else int(v) for k, v in values.items()}
    return replace(decision, **typed)


def stand_in(kernel: FusedKernel) -> tvm.IRModule:
    """Return the function that stands for a kernel's task in MetaSchedule's database.

    It has no parameters: the signature in its attribute tells the tensors in a tenth of the bytes.
    """
    block = SBlock([], [], [], _BLOCK, tirx.Evaluate(tirx.const(0)))
    root = SBlock([], [], [], "root", SBlockRealize([], True, block))
    func = tirx.PrimFunc([], SBlockRealize([], True, root)).with_attr(
        {"global_symbol": "main", "s_tir": True, f"{_PREFIX}kernel": signature(kernel)}
    )
    return tvm.IRModule({"main": func})


def schedule_function(
    space: Knobs, decision: Decision | None = None
) -> Callable[[Schedule], Schedule]:
    """Return a MetaSchedule schedule function that samples a decision on a `stand_in`.

    Parameters
    ----------
    space : dict
        Of `knobs`.
    decision : Decision, optional
        What to sample; at random by default.
    """

    def sample(schedule: Schedule) -> Schedule:
        block = schedule.get_sblock(_BLOCK)
        for name, values in space.items():
            offered = list(values)
            chosen = None
            if decision is not None:
                wanted = int(getattr(decision, name))
                if wanted not in offered:  # the heuristic is free to leave the space
                    offered.append(wanted)
                chosen = offered.index(wanted)
            odds = [1.0 / len(offered)] * len(offered)
            variable = schedule.sample_categorical(offered, odds, decision=chosen)
            schedule.annotate(block, _PREFIX + name, variable)
        return schedule

    return sample


def trace_of(kernel: FusedKernel, space: Knobs, decision: Decision, **notes: int | str) -> Any:
    """Return a decision as a MetaSchedule trace on the kernel's `stand_in`.

    Parameters
    ----------
    kernel : FusedKernel
    space : dict
        Of `knobs`.
    decision : Decision
    **notes
        What else the trace should say; `replay` gives it back.
    """
    schedule = schedule_function(space, decision)(Schedule(stand_in(kernel)))
    block = schedule.get_sblock(_BLOCK)
    for name, value in notes.items():
        schedule.annotate(block, _NOTE + name, value)
    return schedule.trace


def replay(
    trace: Any, module: tvm.IRModule, base: Decision
) -> tuple[Decision, dict[str, int | str]]:
    """Return the decision that a trace stands for, and its notes.

    Parameters
    ----------
    trace : tvm.s_tir.schedule.Trace
    module : IRModule
        The `stand_in` that it was made on.
    base : Decision
        The heuristic's, for what the trace does not say.
    """
    schedule = Schedule(module)
    trace.apply_to_schedule(schedule, remove_postproc=False)
    annotations = schedule.get(schedule.get_sblock(_BLOCK)).annotations
    values: dict[str, int] = {}
    notes: dict[str, int | str] = {}
    for key, value in annotations.items():
        if key.startswith(_NOTE):
            note = key.removeprefix(_NOTE)
            notes[note] = str(value) if isinstance(value, str) else int(value)
        elif key.startswith(_PREFIX):
            values[key.removeprefix(_PREFIX)] = int(value)
    return _with(base, values), notes

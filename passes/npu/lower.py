"""Lower fused programs to the command stream of an NPU.

Requires `FuseKernels`. Every composite becomes a PrimFunc of tiles, transfers and intrinsics
(`resq_tvm.schedules.npu`); what the machine does not have becomes a function of the host. Tensors
get their places, PrimFuncs their addresses, and the commands of a program one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import tvm

from resq_tvm.errors import CompileError
from resq_tvm.passes.fuse import FuseKernels
from resq_tvm.passes.npu.arrangement import Arrangement, ProgramArrangement
from resq_tvm.passes.npu.cascade import LENGTHS, Planner
from resq_tvm.passes.npu.lowering import LoweredNpu, Lowering, Source
from resq_tvm.passes.npu.support import absent_operators
from resq_tvm.passes.partition import Partition
from resq_tvm.schedules.choice import NETWORK, Chosen, Decider, by_rules
from resq_tvm.targets.npu.timing import simulate
from resq_tvm.targets.preset import Target

CASCADES: Final = ("auto", "on", "off", "search")


def lower_npu(
    mod: tvm.IRModule,
    target: Target,
    *,
    state_dtype: str,
    decide: Decider | None = None,
    observe: Any = None,
    state_memory: str = "auto",
    cascades: str = "off",
    find: Callable[[str], Arrangement | None] | None = None,
) -> LoweredNpu:
    """Partition, fuse and lower a calibrated module.

    Parameters
    ----------
    mod : IRModule
        Canonical ``main`` with `resq.layers` and `resq.scales`.
    target : Target
        An NPU.
    state_dtype : str
        How keyframe state is stored.
    decide : callable, optional
        Takes the decision about every kernel; the rules by default.
    observe : callable, optional
        Called with (phase, module) after every phase.
    state_memory : str
        ``"sram"``: keyframe state stays on the chip; ``"dram"``; ``"auto"``: on the chip if it
        takes half of what is there for tensors at most. State that the host reads or writes
        (outputs among it) lies in DRAM all the same.
    cascades : str
        Let kernels take turns band by band where that keeps tensors out of DRAM
        (`resq_tvm.passes.npu.cascade`): ``"on"``, ``"off"``; ``"auto"``: in those programs that
        the cycle model then finds faster; ``"search"``: tries cascades of several lengths.
    find : callable, optional
        Returns the arrangement that tuning found for a network, by its key (`Source.key`); it
        counts with ``cascades="auto"``.

    Raises
    ------
    CompileError
        If something cannot run there (all of it is listed), or does not fit.
    """
    if cascades not in CASCADES:
        raise CompileError(f"cascades {cascades!r} is unknown; use {', '.join(CASCADES)}")
    see = observe or (lambda _phase, _mod: None)
    source = read_source(
        mod,
        target,
        state_dtype=state_dtype,
        decide=decide or by_rules(target),
        state_memory=state_memory,
        observe=see,
    )
    recorded = None if find is None or cascades != "auto" else find(source.key)
    if recorded is not None:
        source.decide = _in_network(target)
        lowered = Lowering(source, recorded).run()
    elif cascades == "off":
        lowered = Lowering(source, Arrangement()).run()
    else:
        plans = arrangements(source, LENGTHS if cascades == "search" else LENGTHS[:1])
        lowered = Lowering(source, plans[0]).run() if cascades == "on" else _fastest(source, plans)
    see("lowered", lowered.module)
    return lowered


def read_source(
    mod: tvm.IRModule,
    target: Target,
    *,
    state_dtype: str,
    decide: Decider,
    state_memory: str,
    observe: Callable[[str, tvm.IRModule], None] = lambda _phase, _mod: None,
) -> Source:
    """Partition and fuse a calibrated module, and read its programs; as of `lower_npu`."""
    observe("calibrated", mod)
    partition: Any = Partition(state_dtype, False)
    mod = partition(mod)
    observe("partitioned", mod)
    assert target.npu is not None
    fuse: Any = FuseKernels(absent_operators(target.npu), together=False)
    mod = fuse(mod)
    observe("fused", mod)
    return Source(mod, target, decide, state_memory)


def _in_network(target: Target) -> Decider:
    """Return who decides what an arrangement leaves open: the rules, which won there."""
    rules = by_rules(target)
    return lambda kernel: Chosen(rules(kernel).decision, NETWORK)


def arrangements(source: Source, lengths: Sequence[int]) -> list[Arrangement]:
    """Return arrangements in cascades of at most these lengths, one for each."""
    planners = {name: source.planner(name, Arrangement()) for name in source.names}

    def part(planner: Planner, longest: int) -> ProgramArrangement:
        return ProgramArrangement(tuple(c.group for c in planner.plan(longest)))

    return [Arrangement({n: part(p, longest) for n, p in planners.items()}) for longest in lengths]


def _fastest(source: Source, plans: Sequence[Arrangement]) -> LoweredNpu:
    """Return the network with what takes every program the fewest simulated cycles."""
    npu = source.target.npu
    assert npu is not None
    best = Lowering(source, Arrangement()).run()
    cycles = {n: simulate(npu, best.stream, n).cycles for n in source.names}
    chosen: dict[str, ProgramArrangement] = {}
    mixed = False  # whether ``chosen`` was never lowered as a whole
    for plan in plans:
        tried = Lowering(source, plan).run()
        found = {n: simulate(npu, tried.stream, n).cycles for n in cycles}
        if all(found[name] < cycles[name] for name in cycles):
            best, cycles, chosen, mixed = tried, found, dict(plan.programs), False
            continue
        for name in cycles:
            if found[name] < cycles[name]:
                cycles[name], chosen[name], mixed = found[name], plan.program(name), True
    return Lowering(source, Arrangement(chosen)).run() if mixed else best

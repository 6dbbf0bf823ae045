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
from resq_tvm.passes.npu.cascade import LENGTHS, Cascade
from resq_tvm.passes.npu.lowering import LoweredNpu, Lowering, Plans
from resq_tvm.passes.npu.support import absent_operators
from resq_tvm.passes.partition import Partition
from resq_tvm.schedules.choice import Decider, by_rules
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

    Raises
    ------
    CompileError
        If something cannot run there (all of it is listed), or does not fit.
    """
    see = observe or (lambda _phase, _mod: None)
    see("calibrated", mod)
    partition: Any = Partition(state_dtype, False)
    mod = partition(mod)
    see("partitioned", mod)
    assert target.npu is not None
    fuse: Any = FuseKernels(absent_operators(target.npu))
    mod = fuse(mod)
    see("fused", mod)
    if cascades not in CASCADES:
        raise CompileError(f"cascades {cascades!r} is unknown; use {', '.join(CASCADES)}")

    def lowering(plans: Plans) -> LoweredNpu:
        return Lowering(mod, target, decide or by_rules(target), state_memory, plans).run()

    if cascades == "off":
        lowered = lowering({})
    else:
        scout = Lowering(mod, target, decide or by_rules(target), state_memory, {})
        lengths = LENGTHS if cascades == "search" else LENGTHS[:1]
        lowered = _fastest(lowering, scout.plans(lengths), target, cascades != "on")
    see("lowered", lowered.module)
    return lowered


def _fastest(
    lowering: Callable[[Plans], LoweredNpu], plans: Sequence[Plans], target: Target, measured: bool
) -> LoweredNpu:
    """Return the network with the plans that take every program the fewest simulated cycles.

    Without ``measured``: with the first.
    """
    if not measured:
        return lowering(plans[0])
    assert target.npu is not None
    best = lowering({})
    cycles = {n: simulate(target.npu, best.stream, n).cycles for n in best.stream.programs}
    chosen: dict[str, Sequence[Cascade]] = {}
    mixed = False  # whether ``chosen`` was never lowered as a whole
    for plan in plans:
        tried = lowering(plan)
        found = {n: simulate(target.npu, tried.stream, n).cycles for n in cycles}
        if all(found[name] < cycles[name] for name in cycles):
            best, cycles, chosen, mixed = tried, found, dict(plan), False
            continue
        for name in cycles:
            if found[name] < cycles[name]:
                cycles[name], chosen[name], mixed = found[name], plan[name], True
    return lowering(chosen) if mixed else best

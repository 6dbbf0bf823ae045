"""The compiler as a list of phases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from resq_tvm.errors import CompileError
from resq_tvm.passes.executable import link
from resq_tvm.passes.fuse import FuseKernels
from resq_tvm.passes.lower import Lowered, lower
from resq_tvm.passes.npu.arrangement import Arrangement
from resq_tvm.passes.npu.lower import LoweredNpu, lower_npu
from resq_tvm.passes.partition import Partition
from resq_tvm.passes.schedule_opaque import ScheduleOpaque
from resq_tvm.passes.trust import TrustTuples
from resq_tvm.passes.tuples import FoldTuples, KeepItems
from resq_tvm.schedules.choice import Decider
from resq_tvm.targets.preset import Target

Observer = Callable[[str, Any], None]


def dump_to(folder: Path) -> Observer:
    """Return an observer that writes each phase's module as TVMScript, numbered in order."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0

    def write(phase: str, mod: tvm.IRModule) -> None:
        nonlocal count
        (folder / f"{count:02d}_{phase}.py").write_text(mod.script())
        count += 1

    return write


def run_phases(
    mod: tvm.IRModule,
    target: Target,
    *,
    state_dtype: str,
    recurrent: bool,
    observe: Observer | None = None,
    decide: Decider | None = None,
    state_memory: str = "auto",
    cascades: str = "off",
    find: Callable[[str], Arrangement | None] | None = None,
) -> Lowered:
    """Partition → fuse → lower a calibrated module; for an NPU, to its commands.

    Parameters
    ----------
    mod : IRModule
        Canonical ``main`` with `resq.layers` and `resq.scales`.
    observe : callable, optional
        Called with (phase, module) after every phase.
    decide : callable, optional
        Takes the decision about every kernel; the target's rules by default.
    state_memory : str
        Of an NPU: where it keeps state (`resq_tvm.passes.npu.lower.lower_npu`).
    cascades : str
        Of an NPU: whether kernels take turns band by band of rows; ``"auto"``: where that is
        faster in the simulator.
    find : callable, optional
        Of an NPU: tells how tuning arranged a network (`resq_tvm.passes.npu.lower.lower_npu`).

    Raises
    ------
    CompileError
        If the target cannot run it.
    """
    if target.npu is not None:
        if recurrent:
            raise CompileError(
                f"residuals are recurrent, which {target.name} does not support: programs do not "
                "change their state there; calibrate with residual='pairwise'"
            )
        return lower_npu(
            mod,
            target,
            state_dtype=state_dtype,
            decide=decide,
            observe=observe,
            state_memory=state_memory,
            cascades=cascades,
            find=find,
        )
    if cascades in ("on", "search"):
        raise CompileError(f"cascades are for NPUs, and {target.name} is none; leave them out")
    if state_memory != "auto":
        raise CompileError(
            f"state memory {state_memory!r}: target {target.name} has but one memory; leave it out"
        )
    see = observe or (lambda _phase, _mod: None)
    see("calibrated", mod)
    # The pass decorator makes callables of these classes, which type checkers cannot see.
    partition: Any = Partition(state_dtype, recurrent)
    mod = partition(mod)
    see("partitioned", mod)
    fuse: Any = FuseKernels()
    mod = fuse(mod)
    see("fused", mod)
    lowered = lower(mod, target, decide)
    see("lowered", lowered.module)
    return lowered


def generate_code(lowered: Lowered, target: Target) -> Any:
    """Return the virtual machine's executable of a lowered module.

    An NPU's is that of the host's functions, None if there are none.
    """
    module = lowered.host if isinstance(lowered, LoweredNpu) else lowered.module
    if not module.get_global_vars():
        return None
    machine = tvm.target.Target(target.llvm)
    # Programs call kernels with the shapes that both were made for, and check their own arguments:
    # checks in every kernel cost a fifth of the compile time and a microsecond per call.
    config = {"tirx.disable_assert": True}
    with machine, tvm.transform.PassContext(opt_level=3, config=config):
        return link(build_pipeline()(module), machine, bytecode=target.arm)


def build_pipeline() -> tvm.transform.Pass:
    """Return the Relax passes from lowered module to virtual-machine code."""
    return tvm.transform.Sequential(
        [
            # A reshape of a plain tensor is a view: the virtual machine has a builtin for it.
            relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),
            ScheduleOpaque(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            FoldTuples(),
            relax.transform.KillAfterLastUse(),
            KeepItems(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            TrustTuples(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )

"""A candidate as machine code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from numpy.typing import NDArray

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.emit import emit
from resq_tvm.schedules.npu.emit import emit_npu
from resq_tvm.schedules.npu.single import lay_out
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.schedules.tuning.job import code_digest
from resq_tvm.targets.preset import Target

ENTRY = "main"  # the function's name in a candidate's library

# As for a network's programs: kernels do not check their arguments, who calls them does.
BUILD_CONFIG = {"tirx.disable_assert": True}


@dataclass(frozen=True, eq=False)
class Program:
    """A kernel, as TIR, with its packed constants."""

    kernel: FusedKernel
    module: tvm.IRModule
    constants: list[NDArray[Any]]
    digest: str


def program_of(kernel: FusedKernel, decision: Decision, target: Target) -> Program:
    """Write a kernel; equal digests mean equal machine code.

    Parameters
    ----------
    kernel : FusedKernel
    decision : Decision
    target : Target
    """
    write = emit if target.npu is None else emit_npu
    func, constants = write(kernel, decision, target)
    module = tvm.IRModule({ENTRY: func.with_attr("global_symbol", ENTRY)})
    shapes = [(a.shape, str(a.dtype)) for _, a in constants]
    text = f"{tvm_ffi.structural_hash(module)} {shapes} {target.name}"
    return Program(kernel, module, [a for _, a in constants], code_digest(text))


def machine_code(program: Program, target: Target) -> Any:
    """Return the built module of a program, not yet loaded; for an NPU its command stream."""
    if target.npu is not None:
        return lay_out(program.module[ENTRY], program.constants, program.kernel, target)
    machine = tvm.target.Target(target.llvm)
    with machine, tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        return tvm.tirx.build(program.module, target=machine)

"""The host's part of an NPU's programs: operators that the machine does not have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from resq_tvm.passes.graph import inputs_of, recall
from resq_tvm.schedules.emit import emit
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import CodeFormat, FusedKernel
from resq_tvm.targets.preset import Target, get_target

# Reshapes of dense tensors: the same bytes.
VIEWS = frozenset(
    {
        "relax.reshape",
        "relax.expand_dims",
        "relax.squeeze",
        "relax.flatten",
        "relax.nn.batch_flatten",
    }
)


def host_target() -> Target:
    """Return this CPU's target, with codes as an NPU stores them."""
    return replace(get_target("x86-generic"), code=CodeFormat("int8", 0))


def operator_function(builder: Any, name: str, call: Any) -> Any:
    """Add a function that runs one operator; its parameters are the variables that it reads.

    Parameters
    ----------
    builder : relax.BlockBuilder
    name : str
    call : relax.Call
    """
    reads = list(dict.fromkeys(inputs_of(call)))
    params = [relax.Var(v.name, v.ty) for v in reads]
    env = dict(zip(reads, params, strict=True))
    with builder.function(name, params):
        with builder.dataflow():
            made = builder.emit_output(builder.normalize(recall(call, env.__getitem__)))
        builder.emit_func_output(made)
    return reads


def kernel_function(builder: Any, name: str, kernel: FusedKernel) -> None:
    """Add a function that runs a kernel of ours on the host.

    Parameters
    ----------
    builder : relax.BlockBuilder
    name : str
    kernel : FusedKernel
        On plain tensors; its outputs are the function's.
    """
    target = host_target()
    prim, constants = emit(kernel, decide(kernel, target), target)
    handle = builder.add_func(prim.with_attr("global_symbol", f"{name}_kernel"), f"{name}_kernel")
    params = [relax.Var(s.name, relax.TensorType(s.shape, s.dtype)) for s in kernel.inputs]
    values = [relax.const(tvm.runtime.tensor(a), str(a.dtype)) for _, a in constants]
    types = [relax.TensorType(s.shape, s.dtype) for s in kernel.outputs]
    with builder.function(name, params):
        with builder.dataflow():
            call = relax.call_tir(handle, [*params, *values], out_ty=types)
            made = builder.emit_output(call)
        builder.emit_func_output(made)

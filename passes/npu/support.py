"""What an NPU cannot run, found before anything is written."""

from __future__ import annotations

from resq_tvm.schedules.spec import (
    Conv,
    FloatConv,
    FusedKernel,
    GlobalMean,
    Pool,
    Resize,
    Window,
)
from resq_tvm.targets.npu.description import Npu

# Relax operator → the function of the vector unit that it takes.
_FUNCTIONS = {
    "relax.divide": "div",
    "relax.exp": "exp",
    "relax.sigmoid": "sigmoid",
    "relax.nn.silu": "sigmoid",
    "relax.tanh": "tanh",
    "relax.sqrt": "sqrt",
    "relax.erf": "erf",
    "relax.nn.gelu": "erf",
}
_OPERATORS = {Pool: "pool", GlobalMean: "mean", Resize: "resize", Window: "window"}


def absent_operators(npu: Npu) -> frozenset[str]:
    """Return the elementwise Relax operators that an NPU does not have."""
    return frozenset(op for op, name in _FUNCTIONS.items() if name not in npu.vector.functions)


def misfits(kernel: FusedKernel, npu: Npu) -> list[str]:
    """Return what of a kernel an NPU does not have; empty if it can run there.

    Parameters
    ----------
    kernel : FusedKernel
    npu : Npu
    """
    found = []
    if isinstance(kernel.anchor, FloatConv):
        found.append("a float convolution")
    operator = _OPERATORS.get(type(kernel.anchor))
    if operator is not None and operator not in npu.vector.operators:
        found.append(operator)
    if kernel.gate is not None and "gate" not in npu.vector.operators:
        found.append("the gate of changed blocks")
    choices = [s.choice for s in kernel.stores if s.choice is not None]
    if choices and "choose" not in npu.vector.operators:
        found.append("the choice of bits")
    if any(c.keep for c in choices):
        found.append("a budget of blocks")
    return found


def can_move(kernel: FusedKernel) -> bool:
    """Return whether the host can run a kernel: plain float work, and codes at most written."""
    chosen = any(s.choice is not None for s in kernel.stores)
    return not isinstance(kernel.anchor, Conv) and kernel.gate is None and not chosen

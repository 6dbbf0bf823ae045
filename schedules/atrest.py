"""What a kernel stores where nothing changed: whether it is zero, whatever the keyframe was.

Differences to the keyframe are zero there, and codes of them. A tile of which all that would be
stored is zero as soon as the differences that it reads are need not be computed: it is left out, or
cleared where it held something.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from resq_tvm.schedules.spec import (
    Conv,
    FloatConv,
    FusedKernel,
    GlobalMean,
    Node,
    Pool,
    Resize,
    Window,
)

_ZERO: Final = ("zero",)
# Zero if their first argument is.
_KEEP_ZERO: Final = frozenset(
    "neg abs sqrt tanh erf round16 quantize prelu dequantize mul div".split()
)
_MAYBE_INFINITE: Final = frozenset({"exp", "div", "sqrt"})  # or not a number, of finite values


def rests_at_zero(kernel: FusedKernel, zeros: Collection[str]) -> bool:
    """Return whether all that a kernel stores is zero where some of its inputs are.

    Parameters
    ----------
    kernel : FusedKernel
    zeros : collection of str
        Names of these inputs; an anchor's, where they are zero in all of its receptive field. Of a
        kernel with a gate none matters: it leaves out tiles in which no block changed.

    Notes
    -----
    Values are compared as expressions: equal ones have the same bits, and their difference is zero
    if they are finite.
    """
    if kernel.gate is not None:
        zeros = ()
    elif not zeros:
        return False
    values: list[Any] = []
    for node in kernel.nodes:
        values.append(_value(kernel, node, [values[a] for a in node.args], zeros))
    return all(values[store.node] == _ZERO for store in kernel.stores)


def _value(kernel: FusedKernel, node: Node, args: list[Any], zeros: Collection[str]) -> Any:
    """Return what a node computes as an expression, simplified: ``(op, …, *arguments)``."""
    match node.op:
        case "anchor":
            return _ZERO if _anchor_is_zero(kernel, zeros) else ("anchor",)
        case "load":
            return _ZERO if node.name in zeros else ("load", node.name)
        case "scalar":
            return _ZERO if node.value == 0 else ("scalar", node.value)
        case "gate":  # nothing changed
            return args[1]
        case "add" if _ZERO in args:
            return args[1] if args[0] == _ZERO else args[0]
        case "sub" if args[1] == _ZERO:
            return args[0]
        case "sub" if args[0] == args[1] and _is_finite(args[0]):
            return _ZERO
        case "mul" if args[1] == _ZERO:
            return _ZERO
        case "max" | "min" if args[0] == args[1]:
            return args[0]
        case "max" | "min" if _ZERO in args:
            other = args[1] if args[0] == _ZERO else args[0]
            sign = 1 if node.op == "max" else -1
            if other[0] == "scalar" and sign * other[1] <= 0:
                return _ZERO
        case op if op in _KEEP_ZERO and args[0] == _ZERO:
            return _ZERO
    return (node.op, node.name, node.value, node.limit, *args)


def _is_finite(value: Any) -> bool:
    """Return whether an expression of finite values is finite."""
    if value[0] in _MAYBE_INFINITE:
        return False
    return all(_is_finite(part) for part in value if isinstance(part, tuple))


def _anchor_is_zero(kernel: FusedKernel, zeros: Collection[str]) -> bool:
    match kernel.anchor:
        case Conv() | FloatConv() as conv:
            return all(name in zeros for name in conv.inputs)
        case Pool() | GlobalMean() | Resize() as spatial:
            return spatial.input in zeros
        case Window() as window:
            return window.input in zeros and window.fill == 0
    return False

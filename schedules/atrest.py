"""What a kernel stores where nothing changed: whether it is zero, whatever the keyframe was.

Differences are: a tile of them that is to be reset need not be computed. Nodes that do the same to
the same are one value, and a value minus itself is zero; so is what a zero difference brings about.
"""

from __future__ import annotations

from typing import Any

from resq_tvm.schedules.spec import (
    Anchor,
    Conv,
    FloatConv,
    FusedKernel,
    GlobalMean,
    Pool,
    Resize,
    Walk,
    Window,
)

_ZERO = ("zero",)
# Of finite values these make finite ones.
_FINITE = frozenset(
    "load scalar vector dequantize add sub mul max min neg abs sigmoid tanh prelu round16 quantize "
    "anchor gate".split()
)
_KEEPS_ZERO = frozenset({"max", "min", "neg", "abs", "round16", "quantize"})
_PRODUCTS = frozenset({"mul", "dequantize", "prelu"})


def rests_at_zero(kernel: FusedKernel) -> bool:
    """Return whether everything that a sparse kernel stores is zero where nothing changed."""
    if kernel.sparse is None or any(n.op not in _FINITE for n in kernel.nodes):
        return False
    values: list[Any] = []
    for node in kernel.nodes:
        values.append(_at_rest(kernel, node, [values[a] for a in node.args]))
    return all(values[store.node] == _ZERO for store in kernel.stores)


def _at_rest(kernel: FusedKernel, node: Any, args: list[Any]) -> Any:
    """Return a node's value as something that equal values share."""
    sparse = kernel.sparse
    assert sparse is not None
    other = (node.op, node.name, node.value, node.limit, *args)
    match node.op:
        case "anchor":
            return _ZERO if _is_zero(kernel, kernel.anchor) else other
        case "load":
            return _ZERO if node.name in sparse.differences else other
        case "scalar":
            return _ZERO if node.value == 0 else other
        case "gate":
            return args[1]
        case "add" if _ZERO in args:
            return args[1] if args[0] == _ZERO else args[0]
        case "sub" if args[0] == args[1]:
            return _ZERO
        case "sub" if args[1] == _ZERO:
            return args[0]
    if node.op in _KEEPS_ZERO and all(a == _ZERO for a in args):
        return _ZERO
    return _ZERO if node.op in _PRODUCTS and _ZERO in args else other


def _is_zero(kernel: FusedKernel, anchor: Anchor) -> bool:
    """Return whether an anchor makes zero of zero differences, and gets nothing else."""
    sparse = kernel.sparse
    assert sparse is not None
    match anchor:
        case Conv() | FloatConv():
            return set(anchor.inputs) <= sparse.differences
        case Pool():
            return anchor.kind == "avg" and anchor.input in sparse.differences
        case Window():
            return anchor.fill == 0 and anchor.input in sparse.differences
        case GlobalMean() | Resize():
            return anchor.input in sparse.differences
        case Walk():
            return True

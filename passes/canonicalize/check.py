"""The list of canonical operators, and the check that nothing else is left.

Changes nothing: it raises one error that lists every operator without a canonical form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from resq_tvm.errors import UnsupportedOperatorError
from resq_tvm.passes.canonicalize.rewrite import BINARY, integers, per_channel
from resq_tvm.passes.graph import Graph, is_const, op_name, shape_of


def check_canonical(mod: tvm.IRModule, model: str) -> None:
    """Raise where ``main`` is not in canonical form.

    A function, since an error's class does not survive a pass of TVM.

    Parameters
    ----------
    mod : IRModule
        Canonicalized ``main``.
    model : str
        The model's name in the error message.

    Raises
    ------
    UnsupportedOperatorError
        Listing every operator without a canonical form, with its variable.
    """
    wrong = [
        (problem, var.name)
        for var, value in Graph.of(mod["main"]).bindings
        if isinstance(value, relax.Call | relax.TupleGetItem)
        and (problem := _problem(var, value)) is not None
    ]
    if wrong:
        raise UnsupportedOperatorError(model, wrong)


def _problem(var: Any, call: Any) -> str | None:
    """Return what is wrong with a binding: the operator, with the reason where it has one."""
    name = op_name(call).removeprefix("relax.") or "tuple access"
    if not isinstance(var.ty, relax.TensorType):
        return name
    if str(var.ty.dtype) != "float32":
        return f"{name} ({var.ty.dtype!s}; only float32 is known)"
    rule = _CHECKS.get(name)
    if rule is None:
        return name
    reason = rule(var, call)
    return f"{name} ({reason})" if reason else None


Check = Callable[[Any, Any], str]


def _any(var: Any, call: Any) -> str:
    return ""


def _layer(var: Any, call: Any) -> str:
    if not is_const(call.args[1]):
        return "weight is not constant"
    return "" if str(call.attrs.data_layout) == "NHWC" else f"layout {call.attrs.data_layout!s}"


def _dense(var: Any, call: Any) -> str:
    if not is_const(call.args[1]):
        return "product of two tensors"
    rows = shape_of(call.args[0])
    return "" if len(rows) == 2 and rows[0] == 1 else f"input of shape {rows} is not (1, K)"


def _binary(var: Any, call: Any) -> str:
    x, y = call.args
    if is_const(x):
        return "constant as first operand"
    if is_const(y):
        if op_name(call) not in ("relax.add", "relax.multiply"):
            return "constant operand"
        return "" if per_channel(y) else f"constant of shape {shape_of(y)}, neither (C,) nor ()"
    return "" if len(shape_of(x)) == len(shape_of(y)) else "operands of different rank"


def _prelu(var: Any, call: Any) -> str:
    last = int(call.attrs.axis) == len(shape_of(var)) - 1
    return "" if last and is_const(call.args[1]) else "slope is not one constant per channel"


def _pool(var: Any, call: Any) -> str:
    if str(call.attrs.layout) != "NHWC":
        return f"layout {call.attrs.layout!s}"
    return "ceil_mode that counts padding" if bool(call.attrs.ceil_mode) else ""


def _mean(var: Any, call: Any) -> str:
    axes = integers(call.attrs.axis) if call.attrs.axis is not None else []
    spatial = len(shape_of(call.args[0])) == 4 and axes == [1, 2] and bool(call.attrs.keepdims)
    return "" if spatial else f"over axes {axes}, not height and width"


def _resize(var: Any, call: Any) -> str:
    method = str(call.attrs.method)
    return "" if method in ("linear", "nearest_neighbor") else f"method {method}"


def _pad(var: Any, call: Any) -> str:
    mode = str(call.attrs.pad_mode)
    return "" if mode == "constant" else f"mode {mode}"


def _slice(var: Any, call: Any) -> str:
    forward = all(s > 0 for group in call.args[4:] for s in integers(group))
    return "" if forward else "negative stride"


_CHECKS: dict[str, Check] = {
    **dict.fromkeys(
        (
            "nn.relu", "clip", "nn.leakyrelu", "sigmoid", "tanh", "exp", "nn.softmax", "abs",
            "negative", "sqrt", "nn.gelu", "erf", "concat", "reshape", "permute_dims",
        ),
        _any,
    ),
    **{name.removeprefix("relax."): _binary for name in BINARY},
    "nn.conv2d": _layer,
    "nn.conv2d_transpose": _layer,
    "matmul": _dense,
    "nn.prelu": _prelu,
    "nn.max_pool2d": _pool,
    "nn.avg_pool2d": _pool,
    "mean": _mean,
    "image.resize2d": _resize,
    "nn.pad": _pad,
    "strided_slice": _slice,
}  # fmt: skip
"""Canonical operator → what else must hold."""

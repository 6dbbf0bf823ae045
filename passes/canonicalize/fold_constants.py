"""Evaluate constant subexpressions with NumPy.

Runs first (weights arrive under casts and transposes) and needs nothing before it. Only operators
that frontends put on constants are known; others stay. Takes milliseconds where compiling every
subexpression would take seconds. Operands that broadcast stay small: `broadcast_to` gives a view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.passes.canonicalize.rewrite import Rewriter, integers, rewritten
from resq_tvm.passes.graph import const_value, is_const, op_name

Array = NDArray[Any]


@tvm.transform.module_pass(opt_level=0, name="FoldConstants")
class FoldConstants:
    """Replace every known operator on constants by its value."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with constants folded."""
        return rewritten(mod, _Folder)


def _permute(call: Any, x: Array) -> Array:
    axes = call.attrs.axes
    return np.transpose(x, None if axes is None else [int(a) for a in axes])


def _squeeze(call: Any, x: Array) -> Array:
    axes = call.attrs.axis
    return np.squeeze(x, None if axes is None else tuple(int(a) for a in axes))


def _expand(call: Any, x: Array) -> Array:
    return np.expand_dims(x, tuple(int(a) for a in call.attrs.axis))


def _slice(call: Any, x: Array) -> Array:
    axes, begin, end, *rest = (integers(a) for a in call.args[1:])
    strides = rest[0] if rest else [1] * len(axes)
    where = [slice(None)] * x.ndim
    for axis, first, last, step in zip(axes, begin, end, strides, strict=True):
        where[axis] = slice(first, last, step)
    return x[tuple(where)]


_FOLDS: dict[str, Callable[..., Array]] = {
    "relax.astype": lambda call, x: x.astype(str(call.attrs.dtype)),
    "relax.reshape": lambda call, x: x.reshape(integers(call.args[1])),
    "relax.flatten": lambda call, x: x.reshape(-1),
    "relax.broadcast_to": lambda call, x: np.broadcast_to(x, integers(call.args[1])),
    "relax.permute_dims": _permute,
    "relax.squeeze": _squeeze,
    "relax.expand_dims": _expand,
    "relax.strided_slice": _slice,
    "relax.concat": lambda call, *xs: np.concatenate(xs, int(call.attrs.axis)),
    "relax.add": lambda call, x, y: x + y,
    "relax.subtract": lambda call, x, y: x - y,
    "relax.multiply": lambda call, x, y: x * y,
    "relax.divide": lambda call, x, y: x / y,
    "relax.power": lambda call, x, y: np.power(x, y),
    "relax.maximum": lambda call, x, y: np.maximum(x, y),
    "relax.minimum": lambda call, x, y: np.minimum(x, y),
    "relax.negative": lambda call, x: -x,
    "relax.abs": lambda call, x: np.abs(x),
    "relax.sqrt": lambda call, x: np.sqrt(x),
    "relax.rsqrt": lambda call, x: 1 / np.sqrt(x),
    "relax.exp": lambda call, x: np.exp(x),
}
"""Operator → its value from the call and the operands' values."""


class _Folder(Rewriter):
    def rewrite(self, var: Any, value: Any) -> Any:
        fold = _FOLDS.get(op_name(value))
        operands = value.args[0].fields if isinstance(value.args[0], relax.Tuple) else value.args
        tensors = [a for a in operands if is_const(a)]
        others = [a for a in operands if not is_const(a)]
        if fold is None or not tensors or any(_is_tensor(a) for a in others):
            return value
        arrays = [const_value(a) for a in tensors]
        folded = np.asarray(fold(value, *arrays))
        # NumPy widens where a scalar meets an array of another kind; Relax's type is the rule.
        return relax.const(
            np.ascontiguousarray(folded).reshape(folded.shape),
            str(arrays[0].dtype) if op_name(value) != "relax.astype" else str(folded.dtype),
        )


def _is_tensor(expr: Any) -> bool:
    return isinstance(expr, relax.Var | relax.Call | relax.TupleGetItem)

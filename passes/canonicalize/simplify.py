"""Remove operators that do nothing and chains that come from converters.

Reshapes and permutations in a row become one or none; clips become `nn.relu` or vanish; a PReLU
that a converter flattened (reshape, `prelu` along axis 0 with a slope per element, reshape) becomes
a PReLU per channel. Works before and after the change of layout. Constants must have been folded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.passes.canonicalize.rewrite import Rewriter, constant, integers, rewritten
from resq_tvm.passes.graph import const_value, imm_value, is_const, op_name, shape_of

op = relax.op

_LARGEST = float(np.finfo(np.float32).max)


@tvm.transform.module_pass(opt_level=0, name="Simplify")
class Simplify:
    """Remove identities."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module without identity operators."""
        return rewritten(mod, _Simplifier)


class _Simplifier(Rewriter):
    def rewrite(self, var: Any, value: Any) -> Any:
        rule = _RULES.get(op_name(value))
        return value if rule is None else rule(self, value)


def _reshape(self: _Simplifier, call: Any) -> Any:
    x, shape = call.args[0], tuple(integers(call.args[1]))
    inner = self.made_by(x, "relax.reshape")
    if inner is not None:
        x = inner.args[0]
    return x if shape_of(x) == shape else op.reshape(x, shape)


def _permute(self: _Simplifier, call: Any) -> Any:
    x = call.args[0]
    rank = len(shape_of(x))
    axes = integers(call.attrs.axes) if call.attrs.axes is not None else list(range(rank))[::-1]
    inner = self.made_by(x, "relax.permute_dims")
    if inner is not None and inner.attrs.axes is not None:
        first = integers(inner.attrs.axes)
        x, axes = inner.args[0], [first[a] for a in axes]
    return x if axes == list(range(rank)) else op.permute_dims(x, axes)


def _clip(self: _Simplifier, call: Any) -> Any:
    x, low, high = call.args[0], imm_value(call.args[1]), imm_value(call.args[2])
    inner: Any = self.made.get(x)
    if op_name(inner) == "relax.nn.relu":
        x, low = inner.args[0], max(low, 0.0)
    elif op_name(inner) == "relax.clip" and imm_value(inner.args[1]) <= high:
        low = max(low, imm_value(inner.args[1]))
        high = min(high, imm_value(inner.args[2]))
        x = inner.args[0]
    if low == 0 and high >= _LARGEST:
        return op.nn.relu(x)
    if low <= -_LARGEST and high >= _LARGEST:
        return x
    # Infinite immediates do not survive printing.
    return op.clip(x, max(low, -_LARGEST), min(high, _LARGEST))


def _relu(self: _Simplifier, call: Any) -> Any:
    inner: Any = self.made.get(call.args[0])
    positive = op_name(inner) == "relax.nn.relu" or (
        op_name(inner) == "relax.clip" and imm_value(inner.args[1]) >= 0
    )
    return call.args[0] if positive else call


def _prelu(self: _Simplifier, call: Any) -> Any:
    x, slope = call.args
    inner = self.made_by(x, "relax.reshape")
    if inner is None or not is_const(slope) or len(shape_of(x)) != 1:
        return call
    shape = shape_of(inner.args[0])
    if len(shape) < 2 or const_value(slope).size != math.prod(shape):
        return call
    per_element = const_value(slope).reshape(-1, shape[-1])
    if not np.array_equal(per_element, np.broadcast_to(per_element[:1], per_element.shape)):
        return call
    made = op.nn.prelu(inner.args[0], constant(per_element[0]), axis=len(shape) - 1)
    return op.reshape(self.emit(made, "value"), shape_of(x))


def _neutral(number: float) -> Callable[[_Simplifier, Any], Any]:
    def rule(self: _Simplifier, call: Any) -> Any:
        x, y = call.args
        if is_const(y) and bool(np.all(const_value(y) == number)) and _spans(x, y):
            return x
        return call

    return rule


def _spans(x: Any, y: Any) -> bool:
    """Whether ``y`` broadcasts to ``x`` without changing its shape."""
    return np.broadcast_shapes(shape_of(x), shape_of(y)) == shape_of(x)


def _concat(self: _Simplifier, call: Any) -> Any:
    pieces = call.args[0]
    single = isinstance(pieces, relax.Tuple) and len(pieces.fields) == 1
    return pieces.fields[0] if single else call


def _slice(self: _Simplifier, call: Any) -> Any:
    x = call.args[0]
    axes, begin, end, *strides = (integers(a) for a in call.args[1:])
    shape = shape_of(x)
    whole = all(b == 0 and e >= shape[a] for a, b, e in zip(axes, begin, end, strict=True)) and all(
        s == 1 for group in strides for s in group
    )
    return x if whole else call


def _pad(self: _Simplifier, call: Any) -> Any:
    return call.args[0] if not any(integers(call.attrs.pad_width)) else call


def _resize(self: _Simplifier, call: Any) -> Any:
    # At the same size every coordinate mode maps a pixel to itself.
    layout = str(call.attrs.layout)
    shape = shape_of(call.args[0])
    same = (shape[layout.index("H")], shape[layout.index("W")]) == tuple(integers(call.args[1]))
    return call.args[0] if same else call


def _mean(self: _Simplifier, call: Any) -> Any:
    x = call.args[0]
    if call.attrs.axis is None or not bool(call.attrs.keepdims):
        return call
    return x if all(shape_of(x)[a] == 1 for a in integers(call.attrs.axis)) else call


_RULES: dict[str, Callable[[_Simplifier, Any], Any]] = {
    "relax.reshape": _reshape,
    "relax.permute_dims": _permute,
    "relax.clip": _clip,
    "relax.nn.relu": _relu,
    "relax.nn.prelu": _prelu,
    "relax.add": _neutral(0.0),
    "relax.multiply": _neutral(1.0),
    "relax.concat": _concat,
    "relax.strided_slice": _slice,
    "relax.nn.pad": _pad,
    "relax.image.resize2d": _resize,
    "relax.mean": _mean,
}

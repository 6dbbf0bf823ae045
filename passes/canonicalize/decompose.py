"""Spell composite operators out in canonical ones, and put constants second.

Batch norm becomes multiply and add, split becomes slices, ``x - c`` becomes ``x + (-c)``, SiLU
becomes ``x * sigmoid(x)``, operators that only change the shape become `reshape`. Constants must
have been folded. What has no canonical spelling is left for the final check to report.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.passes.canonicalize.rewrite import Rewriter, constant, integers, rewritten, with_args
from resq_tvm.passes.graph import const_value, is_const, op_name, shape_of

op = relax.op


@tvm.transform.module_pass(opt_level=0, name="Decompose")
class Decompose:
    """Replace composite operators by canonical ones."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with composites spelled out."""
        return rewritten(mod, _Decomposer)


class _Decomposer(Rewriter):
    def rewrite(self, var: Any, value: Any) -> Any:
        if op_name(value) in _RESHAPES:
            return op.reshape(value.args[0], shape_of(var))
        rule = _RULES.get(op_name(value))
        return value if rule is None else rule(self, value)

    def then(self, expr: Any) -> Any:
        """Bind an intermediate result."""
        return self.emit(expr, "value")


def _batch_norm(self: _Decomposer, call: Any) -> Any:
    x, *stats = call.args
    if not all(is_const(s) for s in stats) or bool(call.attrs.training):
        return call
    gamma, beta, mean, variance = (const_value(s).astype(np.float64) for s in stats)
    at = call.attrs
    scale = (gamma if bool(at.scale) else 1.0) / np.sqrt(variance + float(at.epsilon))
    shift = (beta if bool(at.center) else 0.0) - mean * scale
    rank = len(shape_of(x))
    shape = [-1 if d == int(at.axis) % rank else 1 for d in range(rank)]
    scaled = self.then(op.multiply(x, constant(scale.reshape(shape))))
    shifted = self.then(op.add(scaled, constant(shift.reshape(shape))))
    return relax.Tuple([shifted, stats[2], stats[3]])


def _split(self: _Decomposer, call: Any) -> Any:
    x = call.args[0]
    shape, axis = shape_of(x), int(call.attrs.axis)
    axis %= len(shape)
    given = call.attrs.indices_or_sections
    if hasattr(given, "__len__"):
        bounds = [0, *integers(given), shape[axis]]
    else:
        # A last piece may be smaller: the others are rounded up.
        size = -(-shape[axis] // int(getattr(given, "value", given)))
        bounds = [*range(0, shape[axis], size), shape[axis]]
    pieces = itertools.pairwise(bounds)
    return relax.Tuple([self.then(op.strided_slice(x, [axis], [a], [b])) for a, b in pieces])


def _dropout(self: _Decomposer, call: Any) -> Any:
    return relax.Tuple([call.args[0], call.args[0]])


def _subtract(self: _Decomposer, call: Any) -> Any:
    x, y = call.args
    if is_const(y):
        return op.add(x, constant(-const_value(y)))
    if is_const(x):
        return op.add(self.then(op.negative(y)), x)
    return call


def _divide(self: _Decomposer, call: Any) -> Any:
    x, y = call.args
    if is_const(y):
        return op.multiply(x, constant(1.0 / const_value(y).astype(np.float64)))
    return call


def _commutative(self: _Decomposer, call: Any) -> Any:
    x, y = call.args
    return with_args(call, y, x) if is_const(x) else call


def _extremum(self: _Decomposer, call: Any) -> Any:
    call = _commutative(self, call)
    x, y = call.args
    if not is_const(y) or const_value(y).size != 1:
        return call
    bound = float(const_value(y).reshape(()))
    if op_name(call) == "relax.maximum":
        return op.clip(x, bound, math.inf)
    return op.clip(x, -math.inf, bound)


def _silu(self: _Decomposer, call: Any) -> Any:
    return op.multiply(call.args[0], self.then(op.sigmoid(call.args[0])))


def _gelu_tanh(self: _Decomposer, call: Any) -> Any:
    x = call.args[0]
    square = self.then(op.multiply(x, x))
    inner = self.then(op.multiply(square, constant(0.044715 * math.sqrt(2 / math.pi))))
    inner = self.then(op.add(inner, constant(math.sqrt(2 / math.pi))))
    gate = self.then(op.tanh(self.then(op.multiply(inner, x))))
    gate = self.then(op.multiply(self.then(op.add(gate, constant(1.0))), constant(0.5)))
    return op.multiply(x, gate)


def _relu6(self: _Decomposer, call: Any) -> Any:
    return op.clip(call.args[0], 0, 6)


def _square(self: _Decomposer, call: Any) -> Any:
    return op.multiply(call.args[0], call.args[0])


def _power(self: _Decomposer, call: Any) -> Any:
    x, y = call.args
    if not is_const(y) or const_value(y).size != 1:
        return call
    exponent = float(const_value(y).reshape(()))
    if exponent == 2:
        return op.multiply(x, x)
    return op.sqrt(x) if exponent == 0.5 else call


def _astype(self: _Decomposer, call: Any) -> Any:
    x = call.args[0]
    return x if str(x.ty.dtype) == str(call.attrs.dtype) else call


def _where(self: _Decomposer, call: Any) -> Any:
    """``x > 0 ? x : slope * x`` is how torch.export spells PReLU."""
    condition, x, scaled = call.args
    test = self.made_by(condition, "relax.greater")
    product = self.made_by(scaled, "relax.multiply")
    if test is None or product is None or not is_const(product.args[1]):
        return call
    same = test.args[0].same_as(x) and product.args[0].same_as(x)
    if not same or not is_const(test.args[1]) or np.any(const_value(test.args[1]) != 0):
        return call
    slope = const_value(product.args[1])
    if slope.size == 1:
        return op.nn.leakyrelu(x, float(slope.reshape(())))
    axes = [a - slope.ndim for a, size in enumerate(slope.shape) if size > 1]
    if len(axes) > 1:
        return call
    return op.nn.prelu(x, constant(slope.reshape(-1)), axis=axes[0] + len(shape_of(x)))


def _adaptive_pool(self: _Decomposer, call: Any) -> Any:
    x, layout = call.args[0], str(call.attrs.layout)
    rows, columns = layout.index("H"), layout.index("W")
    height, width = shape_of(x)[rows], shape_of(x)[columns]
    out_h, out_w = integers(call.attrs.output_size) if call.attrs.output_size else (height, width)
    if (out_h, out_w) == (1, 1):
        return op.mean(x, [rows, columns], keepdims=True)
    if height % out_h or width % out_w:
        return call
    window = (height // out_h, width // out_w)
    return op.nn.avg_pool2d(x, window, window, layout=layout)


_RESHAPES = frozenset(
    f"relax.{name}" for name in ("squeeze", "expand_dims", "flatten", "nn.batch_flatten")
)

_RULES: dict[str, Callable[[_Decomposer, Any], Any]] = {
    "relax.nn.batch_norm": _batch_norm,
    "relax.split": _split,
    "relax.nn.dropout": _dropout,
    "relax.subtract": _subtract,
    "relax.divide": _divide,
    "relax.add": _commutative,
    "relax.multiply": _commutative,
    "relax.maximum": _extremum,
    "relax.minimum": _extremum,
    "relax.nn.silu": _silu,
    "relax.nn.gelu_tanh": _gelu_tanh,
    "relax.nn.relu6": _relu6,
    "relax.square": _square,
    "relax.power": _power,
    "relax.astype": _astype,
    "relax.where": _where,
    "relax.nn.adaptive_avg_pool2d": _adaptive_pool,
}

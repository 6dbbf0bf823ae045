"""The operator table: what the partition may assume of every canonical operator.

*Linear* operators commute with differences (constants that they add drop out), so a residual
program keeps them in delta form. Everything else needs the full value of its inputs. *Local*
operators are cheap enough, value by value, to be computed twice rather than stored as state.
"""

from __future__ import annotations

from typing import Any

from resq_tvm.passes.graph import is_const, is_linear_layer, op_name

_LOCAL_SHAPE = frozenset(
    f"relax.{name}" for name in ("concat", "strided_slice", "reshape", "permute_dims", "nn.pad")
)
_LINEAR_LOCAL = _LOCAL_SHAPE | {"relax.subtract", "relax.add", "relax.negative"}
_LINEAR_WIDE = frozenset(f"relax.{name}" for name in ("nn.avg_pool2d", "mean", "image.resize2d"))

ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        "add", "subtract", "multiply", "divide", "maximum", "minimum", "negative", "abs", "exp",
        "sqrt", "sigmoid", "tanh", "erf", "clip", "nn.relu", "nn.prelu", "nn.leakyrelu", "nn.gelu",
        "nn.silu",
    )
)  # fmt: skip


def is_linear(call: Any) -> bool:
    """Whether ``op(a) − op(b) == op'(a − b)`` where op' is op without its added constants."""
    name = op_name(call)
    if name == "relax.multiply":
        return is_const(call.args[1])
    return is_linear_layer(call) or name in _LINEAR_LOCAL or name in _LINEAR_WIDE


def is_local(call: Any) -> bool:
    """Whether an operator works value by value (or only moves values).

    The keyframe's result of such an operator is recomputed from the keyframe's inputs; that of
    others (max pooling, softmax, …) is state, since recomputing it costs a kernel.
    """
    return op_name(call) in ELEMENTWISE or op_name(call) in _LOCAL_SHAPE


def is_recomputed(call: Any) -> bool:
    """Whether a linear operator is so cheap that it is computed on full values, too.

    Holds for elementwise and shape operators; not for layers, pooling and resizing, whose
    keyframe value is state where it is needed.
    """
    name = op_name(call)
    return is_linear(call) and (name in _LINEAR_LOCAL or name == "relax.multiply")

"""Write zero for constants whose products are subnormal numbers.

Training with weight decay leaves dead channels: weights, scales and biases of 1e-39. They do
nothing but cost time, since Intel cores take some 150 cycles for an operation on a subnormal
number. Single numbers stay: they may keep a divisor from being zero. Runs after the folds, which
multiply constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm

from resq_tvm.passes.canonicalize.rewrite import Rewriter, constant, rewritten, with_args
from resq_tvm.passes.graph import const_value, is_const, op_name

TINY = 2.0**-100  # far above subnormal numbers, and far below what float32 sums can tell from zero

_FLUSHED = frozenset(
    f"relax.{name}"
    for name in (
        "add", "subtract", "multiply", "matmul", "nn.prelu", "nn.conv2d", "nn.conv2d_transpose",
    )
)  # fmt: skip


@tvm.transform.module_pass(opt_level=0, name="FlushTiny")
class FlushTiny:
    """Replace what is smaller than `TINY` in weights, factors, summands and slopes by zero."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module without tiny constants."""
        return rewritten(mod, _Flusher)


class _Flusher(Rewriter):
    def rewrite(self, var: Any, value: Any) -> Any:
        if op_name(value) not in _FLUSHED or not is_const(value.args[1]):
            return value
        array = const_value(value.args[1])
        tiny = np.abs(array) < TINY
        if array.size == 1 or not (tiny & (array != 0)).any():
            return value
        flushed = constant(np.where(tiny, 0, array))
        return with_args(value, value.args[0], flushed, *value.args[2:])

"""Write constants of elementwise operators as ``(C,)`` or ``()``.

Frontends give a bias as ``(1, C, 1, 1)``, ``(1, 1, 1, C)``, ``(1, C)`` … depending on the source.
Runs after the change of layout, when channels are last. A constant that differs from pixel to pixel
has no canonical form and is left for the final check to report.
"""

from __future__ import annotations

from typing import Any

import tvm

from resq_tvm.passes.canonicalize.rewrite import BINARY, Rewriter, constant, rewritten, with_args
from resq_tvm.passes.graph import const_value, is_const, op_name, shape_of


@tvm.transform.module_pass(opt_level=0, name="UnifyConstants")
class UnifyConstants:
    """Give elementwise constants their canonical shape."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with per-channel and scalar constants."""
        return rewritten(mod, _Unifier)


class _Unifier(Rewriter):
    def rewrite(self, var: Any, value: Any) -> Any:
        if op_name(value) not in BINARY or not is_const(value.args[1]):
            return value
        x, given = value.args[0], const_value(value.args[1])
        return with_args(value, x, constant(_unified(given, shape_of(x)[-1:])))


def _unified(value: Any, channels: tuple[int, ...]) -> Any:
    if value.size == 1:
        return value.reshape(())
    if channels and value.size == channels[0] == value.shape[-1]:
        return value.reshape(-1)
    return value

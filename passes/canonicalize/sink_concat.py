"""Move a concat along channels below elementwise operators, so that it feeds convolutions.

``relu(concat(a, b))`` becomes ``concat(relu(a), relu(b))``; constants per channel are cut up; an
elementwise operator of two concats that are split alike becomes a concat. A kernel that reads
several tensors as one never needs the concatenation in memory. Requires NHWC and unified constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.passes.canonicalize.rewrite import (
    BINARY,
    UNARY,
    Rewriter,
    constant,
    per_channel,
    rewritten,
    with_args,
)
from resq_tvm.passes.graph import const_value, is_const, op_name, shape_of

op = relax.op


@tvm.transform.module_pass(opt_level=0, name="SinkConcat")
class SinkConcat:
    """Apply elementwise operators to the pieces of a concat."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with concats moved down."""
        return rewritten(mod, _Sinker)


class _Sinker(Rewriter):
    def rewrite(self, var: Any, value: Any) -> Any:
        pieces = self._pieces(value.args[0]) if value.args else None
        if pieces is None:
            return value
        name = op_name(value)
        if name in UNARY:
            made = [with_args(value, p, *value.args[1:]) for p in pieces]
        elif name == "relax.nn.prelu" and int(value.attrs.axis) == 3:
            cuts = _cut(value.args[1], pieces)
            made = [op.nn.prelu(p, c, axis=3) for p, c in zip(pieces, cuts, strict=True)]
        elif name in BINARY:
            others = self._others(value.args[1], pieces)
            if others is None:
                return value
            made = [with_args(value, p, o) for p, o in zip(pieces, others, strict=True)]
        else:
            return value
        return op.concat([self.emit(m, "value") for m in made], axis=3)

    def _pieces(self, expr: Any) -> list[Any] | None:
        """Return the pieces of a value that is a concat along channels, nested ones taken apart."""
        made = self.made_by(expr, "relax.concat")
        if made is None or len(shape_of(expr)) != 4 or int(made.attrs.axis) != 3:
            return None
        fields = list(made.args[0].fields)
        if any(is_const(f) for f in fields):
            return None
        return [piece for f in fields for piece in self._pieces(f) or [f]]

    def _others(self, second: Any, pieces: list[Any]) -> list[Any] | None:
        """Return the second operand cut like the first; None where it cannot be."""
        if is_const(second):
            return _cut(second, pieces) if per_channel(second) else None
        others = self._pieces(second)
        if others is None or [shape_of(o) for o in others] != [shape_of(p) for p in pieces]:
            return None
        return others


def _cut(expr: Any, pieces: list[Any]) -> list[Any]:
    """Cut a constant per channel along the pieces; a scalar goes to each."""
    value = const_value(expr)
    if value.size == 1:
        return [expr] * len(pieces)
    ends = np.cumsum([shape_of(p)[3] for p in pieces])[:-1]
    return [constant(part) for part in np.split(value, ends)]

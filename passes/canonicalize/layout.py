"""Turn every 4-D value to NHWC by propagation.

Each value carries its *order*: how the source model's axes lie in memory. A channel-first value
is stored channel-last and remembered as such, so that convolutions, pooling and elementwise
operators need no data movement; a `permute_dims` of the source mostly changes the order only. Real
permutations remain where the source mixes layouts. A flattened channel-first value stays in NHWC
order as long as only elementwise operators and a dense layer follow, whose weight is permuted.

Reads and writes the function attributes ``resq.inputs`` and ``resq.outputs``. Composites must have
been decomposed; unknown operators get their operands in source order.
"""

from __future__ import annotations

import json
from typing import Any

import tvm
from tvm import relax

from resq_tvm.passes.canonicalize.layout_rules import RULES
from resq_tvm.passes.canonicalize.order import AS_IS, CHANNELS_FIRST, Flat, Order
from resq_tvm.passes.canonicalize.rewrite import (
    CHANNEL_FIRST,
    CHANNEL_LAST,
    Rewriter,
    integers,
    rewritten,
    with_args,
)
from resq_tvm.passes.graph import op_name, shape_of

op = relax.op


@tvm.transform.module_pass(opt_level=0, name="ToChannelsLast")
class ToChannelsLast:
    """Store all 4-D values as NHWC, weights as OHWI."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module in NHWC."""
        return rewritten(mod, LayoutRewriter)


class LayoutRewriter(Rewriter):
    """Keeps the order of every old variable; the rules live in `layout_rules`."""

    def __init__(self, func: Any) -> None:
        super().__init__(func)
        self.order: dict[Any, Order] = {}
        attrs = func.attrs or {}
        self._inputs = _described(attrs, "resq.inputs", func.params)
        self._outputs = _described(attrs, "resq.outputs", self.results)
        self._params = 0

    def param(self, var: Any) -> Any:
        """Store a channel-first input channel-last."""
        entry = self._inputs[self._params]
        self._params += 1
        shape = shape_of(var)
        if len(shape) != 4:
            entry["layout"] = ""
            return var
        if entry["layout"] == "NCHW" and self._read_as_nhwc(var):
            entry["layout"] = "NHWC"
        if entry["layout"] != "NCHW":
            entry["layout"] = "NHWC"
            return var
        self.order[var] = CHANNELS_FIRST
        last = [shape[a] for a in CHANNEL_LAST]
        return relax.Var(var.name, relax.TensorType(last, str(var.ty.dtype)))

    def output(self, index: int, value: Any) -> Any:
        """Record the layout of a 4-D output; give others in source order."""
        old = self.results[index]
        entry = self._outputs[index]
        entry["layout"] = ""
        if len(shape_of(old)) != 4:
            return self.in_source_order(old)
        entry["layout"] = "NCHW" if self.order_of(old) is CHANNELS_FIRST else "NHWC"
        return value

    def attributes(self) -> dict[str, Any]:
        """Return the descriptions of inputs and outputs with their layouts."""
        return {
            "resq.inputs": json.dumps(self._inputs),
            "resq.outputs": json.dumps(self._outputs),
        }

    def rewrite(self, var: Any, value: Any) -> Any:
        """Apply the operator's rule, or give it its operands in source order."""
        old = self.graph.producers[var]
        rule = RULES.get(op_name(value))
        made = rule(self, var, old) if rule is not None else None
        if made is None:
            made = with_args(old, *[self._source_operand(a) for a in old.args])
        return made

    def order_of(self, old: Any) -> Order:
        """Return the order of an old operand."""
        return self.order.get(old, AS_IS) if isinstance(old, relax.Var) else AS_IS

    def in_source_order(self, old: Any) -> Any:
        """Return the operand's value with its axes as in the source model."""
        value, order = self.mapped(old), self.order_of(old)
        if order is CHANNELS_FIRST:
            return self.moved(value, CHANNEL_FIRST)
        if isinstance(order, Flat):
            image = self.emit(op.reshape(value, order.channel_last), "value")
            return self.emit(op.reshape(self.moved(image, CHANNEL_FIRST), shape_of(old)), "value")
        return value

    def channels_last(self, old: Any) -> Any:
        """Return the operand of a channel-first operator as NHWC."""
        value = self.mapped(old)
        if self.order_of(old) is CHANNELS_FIRST:
            return value
        return self.moved(value, CHANNEL_LAST)

    def as_order(self, old: Any, order: Order) -> Any:
        """Return a 4-D operand's value stored in ``order``."""
        return self.channels_last(old) if order is CHANNELS_FIRST else self.in_source_order(old)

    def moved(self, value: Any, axes: tuple[int, ...]) -> Any:
        """Permute a new value's axes; a reshape where only axes of size one move."""
        shape = shape_of(value)
        target = [shape[a] for a in axes]
        kept = [a for a in axes if shape[a] != 1]
        if kept == sorted(kept):
            return self.emit(op.reshape(value, target), "value")
        return self.emit(op.permute_dims(value, list(axes)), "value")

    def _source_operand(self, old: Any) -> Any:
        if isinstance(old, relax.Tuple):
            return relax.Tuple([self._source_operand(f) for f in old.fields])
        return self.in_source_order(old)

    def _read_as_nhwc(self, param: Any) -> bool:
        """Whether the model itself turns this input to channel-first before anything else."""
        readers = self.graph.consumers().get(param, [])
        calls = [self.graph.producers[v] for v in readers]
        return bool(calls) and all(
            op_name(c) == "relax.permute_dims"
            and c.attrs.axes is not None
            and tuple(integers(c.attrs.axes)) == CHANNEL_FIRST
            for c in calls
        )


def _described(attrs: Any, key: str, values: Any) -> list[dict[str, Any]]:
    """Return the attribute's entries; names and shapes of the values where it is absent."""
    if key in attrs:
        return list(json.loads(str(attrs[key])))
    return [
        {"name": getattr(v, "name", f"{i}"), "shape": list(shape_of(v)), "layout": "NHWC"}
        for i, v in enumerate(values)
    ]

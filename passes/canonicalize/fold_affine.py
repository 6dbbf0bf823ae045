"""Fold chains of per-channel multiply and add into the layer before them.

``add(multiply(conv(x, w), s), b)`` becomes ``add(conv(x, w·s), b)`` where nothing else reads the
values in between; chains that follow no layer become at most one multiply and one add. Requires
NHWC and unified constants. Layers keep their names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.passes.canonicalize.rewrite import (
    Rewriter,
    constant,
    per_channel,
    rewritten,
    with_args,
)
from resq_tvm.passes.graph import const_value, is_linear_layer, op_name, shape_of

op = relax.op


@tvm.transform.module_pass(opt_level=0, name="FoldAffine")
class FoldAffine:
    """Merge scales into weights and shifts into one bias."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with affine chains folded."""
        return rewritten(mod, _Folder)


class _Folder(Rewriter):
    def __init__(self, func: Any) -> None:
        super().__init__(func)
        self._next = {v: u for v, u in self._sole_readers().items() if self._is_affine(v, u)}
        self._folded: set[Any] = set()

    def rewrite(self, var: Any, value: Any) -> Any:
        if var in self._folded:
            return self.env[var]
        chain = self._chain(var)
        layer = is_linear_layer(value)
        if not layer and not (self._starts(value) and chain):
            return value
        members = chain if layer else [var, *chain]
        if not members:
            return value
        scale, shift = self._affine(members)
        result = value if layer else value.args[0]
        if scale is not None:
            result = _scaled(value, scale) if layer else op.multiply(result, constant(scale))
        if shift is not None:
            result = self.emit(result, var.name) if isinstance(result, relax.Call) else result
            result = op.add(result, constant(shift))
        result = self.emit(result, var.name if shift is None else "value")
        self.uses[result] = self._readers.get(members[-1], 0)
        for member in members:
            self.env[member] = result
            self._folded.add(member)
        return result

    def _sole_readers(self) -> dict[Any, Any]:
        """Return variable → its only reader."""
        consumers = self.graph.consumers()
        only = {}
        for var, readers in consumers.items():
            live = [r for r in readers if r in self._live]
            if len(live) == 1 and self._readers.get(var) == 1:
                only[var] = live[0]
        return only

    def _is_affine(self, var: Any, reader: Any) -> bool:
        call = self.graph.producers[reader]
        return self._starts(call) and call.args[0] is not None and call.args[0].same_as(var)

    def _starts(self, call: Any) -> bool:
        """Whether the call multiplies by, or adds, a constant per channel."""
        return (
            op_name(call) in ("relax.add", "relax.multiply")
            and per_channel(call.args[1])
            and const_value(call.args[1]).size in (1, shape_of(call.args[0])[-1])
        )

    def _chain(self, var: Any) -> list[Any]:
        chain = []
        while var in self._next:
            var = self._next[var]
            chain.append(var)
        return chain

    def _affine(self, members: list[Any]) -> tuple[Any, Any]:
        """Return the chain as scale and shift (float64, scalar or per channel; None: absent)."""
        scale: Any = None
        shift: Any = None
        for var in members:
            call = self.graph.producers[var]
            number = const_value(call.args[1]).astype(np.float64)
            if op_name(call) == "relax.multiply":
                scale = number if scale is None else scale * number
                shift = None if shift is None else shift * number
            else:
                shift = number if shift is None else shift + number
        channels = shape_of(members[-1])[-1]
        if shift is not None:
            shift = np.broadcast_to(shift, (channels,)) if np.ndim(shift) else shift
        return scale, shift


def _scaled(layer: Any, scale: Any) -> Any:
    """Return the layer with its output channels scaled."""
    weight = const_value(layer.args[1]).astype(np.float64)
    # Output channels are a dense weight's columns, and the first axis of a convolution's.
    if op_name(layer) == "relax.matmul" or np.ndim(scale) == 0:
        return with_args(layer, layer.args[0], constant(weight * scale))
    return with_args(layer, layer.args[0], constant(weight * scale.reshape(-1, 1, 1, 1)))

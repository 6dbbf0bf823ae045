"""The physical layout of every value of a fused program: halos, padded channels, plain tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from resq_tvm.passes.fuse import plane_of
from resq_tvm.passes.graph import Graph, inputs_of, is_linear_layer, op_name, shape_of
from resq_tvm.passes.kernel_spec import required_halo
from resq_tvm.schedules.spec import TensorSpec
from resq_tvm.targets.preset import Target

GRANULE = 8  # channels are padded to half vectors: c = 8 and 24 are common


class Plan:
    """The physical layout of every value of one fused program."""

    def __init__(self, mod: tvm.IRModule, program: str, target: Target) -> None:
        self.mod, self.program, self.target = mod, program, target
        self.func = mod[program]
        self.graph = Graph.of(self.func)
        self.producers = self.graph.producers
        body = self.graph.result
        frames = int(self.func.attrs["num_input"])
        self.frames = list(self.func.params)[:frames]
        self.state_in = list(self.func.params)[frames:]
        self.outputs = list(body.fields[0].fields)
        self.state_out = list(body.fields[1].fields)
        self.plain = self._plain()
        self.halos: dict[Any, tuple[int, int, int, int]] = {}
        for _, call in self.composite_calls():
            self._note_halos(call)

    def composite_calls(self) -> list[tuple[Any, Any]]:
        """Return the calls of composite functions as (variable, call), in order."""
        return [(v, e) for v, e in self.graph.bindings if self.composite(e) is not None]

    def composite(self, expr: Any) -> Any:
        """Return the composite function that a call runs, else None."""
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.GlobalVar):
            return self.mod[expr.op]
        return None

    def results(self, var: Any) -> list[Any]:
        """Return the variables that hold a composite call's results, in order."""
        if not isinstance(var.ty, relax.TupleType):
            return [var]
        items: dict[int, Any] = {}
        for v, e in self.graph.bindings:
            if isinstance(e, relax.TupleGetItem) and e.tuple_value.same_as(var):
                items[int(e.index)] = v
        return [items[i] for i in range(len(var.ty.fields))]

    def _plain(self) -> set[Any]:
        plain = {*self.frames, *self.outputs}
        for var, expr in self.graph.bindings:
            if op_name(expr):
                plain |= {var, *inputs_of(expr)}
        return plain

    def _note_halos(self, call: Any) -> None:
        func = self.composite(call)
        inner = Graph.of(func)
        outer = dict(zip(func.params, call.args, strict=True))
        for _, expr in inner.bindings:
            if not is_linear_layer(expr) or str(expr.args[0].ty.dtype) != "int8":
                continue
            cat = inner.producers.get(expr.args[0])
            for piece in inputs_of(cat) if cat is not None else [expr.args[0]]:
                old = self.halos.get(outer[piece], (0, 0, 0, 0))
                new = required_halo(expr)
                top, left, bottom, right = (max(a, b) for a, b in zip(old, new, strict=True))
                self.halos[outer[piece]] = (top, left, bottom, right)

    def spec(self, var: Any) -> TensorSpec:
        """Return the physical tensor of a variable."""
        h, w, c = plane_of(var)
        dtype = str(var.ty.dtype)
        if self.target.npu is not None:  # its transfers pad and cut
            return TensorSpec(var.name, h, w, c, dtype, c)
        if dtype == "int8":
            c_phys = 4 if c <= 4 else _padded(c)
            halo = self.halos.get(var, (0, 0, 0, 0))
            return TensorSpec(var.name, h, w, c, self.target.code.dtype, c_phys, halo)
        c_phys = c if var in self.plain or c <= 4 else _padded(c)
        return TensorSpec(var.name, h, w, c, dtype, c_phys)

    def physical_type(self, var: Any) -> tuple[tuple[int, ...], str]:
        """Return the shape and dtype under which the program holds a variable."""
        spec = self.spec(var)
        return (shape_of(var) if var in self.plain else spec.shape), spec.dtype


def agree_on_state(plans: dict[str, Plan]) -> None:
    """Give each state tensor one layout in both programs."""
    if "residual" not in plans:
        return
    key, res = plans["keyframe"], plans["residual"]
    for made, read, new in zip(key.state_out, res.state_in, res.state_out, strict=True):
        if made in key.plain or read in res.plain or new in res.plain:
            key.plain.add(made)
            res.plain |= {read, new}


def renamed(spec: TensorSpec, taken: set[str]) -> TensorSpec:
    """Return the tensor under a name that no input has (a copied frame keeps its name)."""
    return replace(spec, name=f"{spec.name}_copy") if spec.name in taken else spec


def _padded(c: int) -> int:
    return -(-c // GRANULE) * GRANULE

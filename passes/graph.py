"""Reading a canonical Relax function: bindings, producers, consumers, constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import ir, relax

LINEAR_OPS = ("relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.matmul")


def op_name(expr: Any) -> str:
    """Return the operator's name of a call (``""`` for anything else).

    Operators of ours (``resq.choose``, ``resq.gate``) are calls of pure packed functions.
    """
    if isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op):
        if expr.op.name == "relax.call_pure_packed":
            return str(expr.args[0].global_symbol)
        return str(expr.op.name)
    return ""


def is_const(expr: Any) -> bool:
    """Whether the expression is a tensor constant."""
    return isinstance(expr, ir.GenericConst)


def const_value(expr: Any) -> np.ndarray:
    """Return a tensor constant's value as a NumPy array."""
    return np.asarray(expr.value.numpy())


def imm_value(expr: Any) -> float:
    """Return the number in an immediate or a scalar tensor constant."""
    if is_const(expr):
        return float(const_value(expr))
    if isinstance(expr, int | float):
        return float(expr)
    return float(getattr(expr, "value", expr))


def shape_of(expr: Any) -> tuple[int, ...]:
    """Return the static shape of a tensor expression."""
    return tuple(int(d) for d in expr.ty.shape)


def is_linear_layer(expr: Any) -> bool:
    """Whether the expression is a linear layer: a linear operator with constant weights."""
    return op_name(expr) in LINEAR_OPS and is_const(expr.args[1])


def concat_pieces(value: Any, producers: dict[Any, Any]) -> list[Any]:
    """Return what a concatenation along channels is made of, nested ones taken apart.

    Anything else is a list of itself.
    """
    call: Any = producers.get(value)
    if op_name(call) != "relax.concat" or not isinstance(call.args[0], relax.Tuple):
        return [value]
    rank = len(shape_of(value))
    if int(call.attrs.axis) % rank != rank - 1:
        return [value]
    return [p for field in call.args[0].fields for p in concat_pieces(field, producers)]


@dataclass(frozen=True)
class Graph:
    """The bindings of a function with one dataflow block, in order."""

    func: Any
    bindings: tuple[tuple[Any, Any], ...]  # (var, value)
    body: Any

    @classmethod
    def of(cls, func: Any) -> Graph:
        """Read a function whose body is a sequence of binding blocks."""
        pairs = [(b.var, b.value) for block in func.body.blocks for b in block.bindings]
        return cls(func, tuple(pairs), func.body.body)

    @property
    def producers(self) -> dict[Any, Any]:
        """Variable → the expression bound to it."""
        return dict(self.bindings)

    def consumers(self) -> dict[Any, list[Any]]:
        """Variable → the variables whose expressions read it (in order, outputs not counted)."""
        users: dict[Any, list[Any]] = {v: [] for v in self.func.params}
        for var, value in self.bindings:
            users.setdefault(var, [])
            for arg in inputs_of(value):
                users.setdefault(arg, []).append(var)
        return users

    @property
    def result(self) -> Any:
        """The body: a variable or a tuple, with the variables that name a tuple resolved."""
        body = self.body
        producers = self.producers
        while isinstance(body, relax.Var) and isinstance(
            producers.get(body), relax.Tuple | relax.Var
        ):
            body = producers[body]
        return body

    def outputs(self) -> list[Any]:
        """Return the output variables, a single tensor as a list of one."""
        body = self.result
        producers = self.producers
        fields = list(body.fields) if isinstance(body, relax.Tuple) else [body]
        resolved = []
        for item in fields:
            while isinstance(item, relax.Var) and isinstance(producers.get(item), relax.Var):
                item = producers[item]
            resolved.append(item)
        return resolved

    def behind(self, values: Iterable[Any]) -> set[Any]:
        """Return the values that some values depend on, these included."""
        producers, pending, found = self.producers, list(values), set[Any]()
        while pending:
            value = pending.pop()
            if value not in found:
                found.add(value)
                pending += inputs_of(producers[value]) if value in producers else []
        return found

    def layers(self) -> list[tuple[Any, Any]]:
        """Return the linear layers as (variable, call), in order."""
        return [(v, e) for v, e in self.bindings if is_linear_layer(e)]


def map_variables(arg: Any, change: Callable[[Any], Any]) -> Any:
    """Map the variables of an argument, tuples included."""
    if isinstance(arg, relax.Tuple):
        return relax.Tuple([map_variables(f, change) for f in arg.fields])
    return change(arg) if isinstance(arg, relax.Var) else arg


def recall(call: Any, change: Callable[[Any], Any]) -> Any:
    """Return the same operator, attributes and constants on changed variables."""
    args = [map_variables(a, change) for a in call.args]
    return relax.Call(call.op, args, call.attrs, call.ty_args)


def inputs_of(expr: Any) -> list[Any]:
    """Return the variables that an expression reads (tuples flattened, constants left out)."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Tuple):
        return [v for f in expr.fields for v in inputs_of(f)]
    if isinstance(expr, relax.TupleGetItem):
        return inputs_of(expr.tuple_value)
    if isinstance(expr, relax.Call):
        return [v for a in expr.args for v in inputs_of(a)]
    return []

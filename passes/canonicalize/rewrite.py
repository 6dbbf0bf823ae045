"""Re-emitting ``main`` binding by binding: the frame that every canonicalization pass fills in.

Requires one dataflow block without control flow. A rewriter visits the live bindings in order, so
dead code disappears with every pass, and tuples are resolved on the way: what indexes a tuple
reads its field.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.passes.graph import Graph, inputs_of, is_const, op_name, shape_of

CHANNEL_LAST = (0, 2, 3, 1)
CHANNEL_FIRST = (0, 3, 1, 2)

UNARY = frozenset(
    f"relax.{name}"
    for name in (
        "abs", "negative", "sqrt", "exp", "sigmoid", "tanh", "erf", "clip", "nn.relu",
        "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.silu",
    )
)  # fmt: skip
"""Elementwise operators of one tensor (`clip` takes immediate bounds beside it)."""

BINARY = frozenset(
    f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum")
)
"""Elementwise operators of two tensors that broadcast."""


def constant(value: Any) -> Any:
    """Return a float32 tensor constant."""
    # Not ascontiguousarray, which turns scalars into vectors.
    return relax.const(np.asarray(value, dtype=np.float32, order="C"))


def with_args(call: Any, *args: Any) -> Any:
    """Return the same operator with the same attributes on other operands."""
    return relax.Call(call.op, list(args), call.attrs, call.ty_args)


def integers(expr: Any) -> list[int]:
    """Return a tuple of immediates, a shape or an attribute array as integers."""
    values = getattr(expr, "fields", None)
    if values is None:
        values = getattr(expr, "values", expr)
    return [int(getattr(v, "value", v)) for v in values]


class Rewriter:
    """Rebuilds a function; subclasses override `rewrite` and, rarely, `param` and `output`."""

    def __init__(self, func: Any) -> None:
        self.func = func
        self.graph = Graph.of(func)
        self.results = self.graph.outputs()
        self.builder = relax.BlockBuilder()
        self.env: dict[Any, Any] = {}
        self.made: dict[Any, Any] = {}
        self.uses: dict[Any, int] = {}
        """New variable → how often the old variable that it stands for was read."""
        self._live, self._readers = self._analyse()

    def rewrite(self, var: Any, value: Any) -> Any:
        """Return what ``var`` is bound to: an expression, a variable, a constant or a tuple.

        ``value`` is the old expression with its operands replaced by the new ones.
        """
        return value

    def param(self, var: Any) -> Any:
        """Return the new parameter for an old one."""
        return relax.Var(var.name, var.ty)

    def output(self, index: int, value: Any) -> Any:
        """Return the new result for the rewritten one."""
        return value

    def emit(self, expr: Any, name: str) -> Any:
        """Bind an intermediate expression and return its variable (one reader is assumed)."""
        var = self.builder.emit(expr, name_hint=name)
        self.made[var] = expr
        self.uses[var] = 1
        return var

    def made_by(self, expr: Any, name: str = "") -> Any:
        """Return the call bound to a new variable if its operator is ``name`` (else None)."""
        found = self.made.get(expr) if isinstance(expr, relax.Var) else None
        return found if found is not None and name in ("", op_name(found)) else None

    def only_reader(self, expr: Any) -> bool:
        """Whether the variable is read once, so that its producer may be absorbed."""
        return self.uses.get(expr, 2) == 1

    def run(self) -> Any:
        """Return the rewritten function."""
        params = [self.param(p) for p in self.func.params]
        for old, new in zip(self.func.params, params, strict=True):
            self.env[old] = new
            self.uses[new] = self._readers.get(old, 0)
        with self.builder.function("main", params):
            with self.builder.dataflow():
                for var, value in self.graph.bindings:
                    if var in self._live:
                        self._bind(var, value)
                outputs = [self.output(i, self.mapped(v)) for i, v in enumerate(self.results)]
                result = self.builder.emit_output(relax.Tuple(outputs))
            self.builder.emit_func_output(result)
        func = self.builder.finalize()["main"]
        attrs = {k: v for k, v in (self.func.attrs or {}).items() if k != "global_symbol"}
        attrs |= {**self.attributes(), "global_symbol": "main"}
        return func.with_attrs({k: v for k, v in attrs.items() if v is not None})

    def attributes(self) -> dict[str, Any]:
        """Return function attributes that the pass adds or changes (None: removes)."""
        return {}

    def mapped(self, expr: Any) -> Any:
        """Return an old expression with all variables replaced by new ones."""
        if isinstance(expr, relax.Var):
            return self.env[expr]
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.mapped(f) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            source = self.mapped(expr.tuple_value)
            if isinstance(source, relax.Tuple):
                return source.fields[int(expr.index)]
            return relax.TupleGetItem(source, expr.index)
        if isinstance(expr, relax.Call):
            return with_args(expr, *[self.mapped(a) for a in expr.args])
        return expr

    def _bind(self, var: Any, value: Any) -> None:
        new = self.mapped(value)
        if isinstance(new, relax.Call):
            new = self.rewrite(var, new)
        if isinstance(new, relax.Call | relax.TupleGetItem):
            made = self.emit(new, var.name)
            self.uses[made] = self._readers.get(var, 0)
            new = made
        elif isinstance(new, relax.Var):
            self.uses[new] = self.uses.get(new, 0) + self._readers.get(var, 0)
        self.env[var] = new

    def _analyse(self) -> tuple[set[Any], dict[Any, int]]:
        """Return the live variables, and how often live expressions and results read each."""
        readers: dict[Any, int] = {}
        for var in self.results:
            readers[var] = readers.get(var, 0) + 1
        live = {v for v in self.results if isinstance(v, relax.Var)}
        for var, value in reversed(self.graph.bindings):
            if var in live:
                for read in inputs_of(value):
                    live.add(read)
                    readers[read] = readers.get(read, 0) + 1
        return live, readers


def rewritten(mod: tvm.IRModule, rewriter: type[Rewriter]) -> tvm.IRModule:
    """Return the module with ``main`` rewritten."""
    return tvm.IRModule({"main": rewriter(mod["main"]).run()})


def per_channel(expr: Any) -> bool:
    """Whether the expression is a constant of shape ``(C,)`` or ``()``."""
    return is_const(expr) and len(shape_of(expr)) <= 1

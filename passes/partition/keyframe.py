"""The keyframe program of a partition."""

from __future__ import annotations

from typing import Any

from tvm import relax

from resq_tvm.passes.graph import is_linear_layer, op_name, recall
from resq_tvm.passes.partition.program import Program, Settings


class Keyframe(Program):
    """Every frame on its own, at keyframe precision; hands out the state."""

    program = "keyframe"

    def __init__(self, settings: Settings, state: list[Any]) -> None:
        super().__init__(settings)
        self.state_values = state
        self.env: dict[Any, Any] = {}
        self.stored: dict[Any, Any] = {}

    def build(self) -> Any:
        """Return the function."""
        graph = self.s.graph
        params = [relax.Var(p.name, p.ty) for p in graph.func.params]
        with self.bb.function(self.program, params):
            with self.bb.dataflow():
                for source, param in zip(graph.func.params, params, strict=True):
                    self.define(source, param)
                for var, call in graph.bindings:
                    if op_name(call):
                        self.define(var, self.visit(var, call))
                result = self.finish(
                    [self.env[v] for v in graph.outputs()],
                    [self.stored[v] for v in self.state_values],
                )
            self.bb.emit_func_output(result)
        return self.result()

    def define(self, source: Any, value: Any) -> None:
        """Bind a source value; as state it is rounded first."""
        if source in self.state_values:
            self.stored[source], value = self.rounded(source, value)
        self.env[source] = value

    def visit(self, var: Any, call: Any) -> Any:
        """Emit one operator at keyframe precision."""
        if is_linear_layer(call):
            bits = self.s.bits(var.name, self.program)
            if bits is not None:
                return self.quantized_layer(var, call, self.env.__getitem__, "", bits)
        return self.emit(recall(call, self.env.__getitem__), var.name)

"""The residual program of a partition, and the state that it needs."""

from __future__ import annotations

import json
from typing import Any

from tvm import relax

from resq_tvm.passes.graph import inputs_of, is_const, is_linear_layer, op_name, recall, shape_of
from resq_tvm.passes.operators import is_linear
from resq_tvm.passes.partition.program import Program, Settings
from resq_tvm.passes.policy import gate


class Residual(Program):
    """A frame relative to its keyframe, at residual precision."""

    program = "residual"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._deltas: dict[Any, Any] = {}
        self._fulls: dict[Any, Any] = {}
        self._keys: dict[Any, Any] = {}
        self._frames: dict[Any, Any] = {}
        self._state: dict[Any, Any] = {}
        self._narrowed: dict[Any, Any] = {}  # recurrent: a full value as it is stored
        self.state_values: list[Any] = []

    def build(self) -> Any:
        """Return the function."""
        graph = self.s.graph
        needed = needed_state(self.s)
        order = [*graph.func.params, *(v for v, _ in graph.bindings)]
        self.state_values = [v for v in order if v in needed]
        params = [relax.Var(p.name, p.ty) for p in graph.func.params]
        state = [
            relax.Var(f"{v.name}_key", relax.TensorType(shape_of(v), self.s.state_dtype_of(v)))
            for v in self.state_values
        ]
        with self.bb.function(self.program, params + state):
            with self.bb.dataflow():
                self._frames = dict(zip(graph.func.params, params, strict=True))
                self._state = dict(zip(self.state_values, state, strict=True))
                for var, call in graph.bindings:
                    if is_linear_layer(call) and var in self.s.live:
                        self.delta(var)
                outputs = [
                    self.key(v) if v in self.s.held else self.full(v) for v in graph.outputs()
                ]
                new_state = [self.stored(v) for v in self.state_values]
                result = self.finish(outputs, new_state)
            self.bb.emit_func_output(result)
        func = self.result()
        if not self.s.choices:
            return func
        # What is zero where nothing changed: execution by tiles relies on it.
        return func.with_attr("resq.deltas", json.dumps([v.name for v in self._deltas.values()]))

    def stored(self, value: Any) -> Any:
        """Return the state that is handed on: unchanged, or of this frame if recurrent."""
        if not self.s.recurrent:
            return self._state[value]
        full = self.full(value)
        return full if self.s.state_dtype_of(value) == "float32" else self._narrowed[value]

    def delta(self, value: Any) -> Any:
        """Emit (once) the difference of a source value to its keyframe value."""
        if value not in self._deltas:
            self._deltas[value] = self._make_delta(value)
        return self._deltas[value]

    def _make_delta(self, value: Any) -> Any:
        name = f"d_{value.name}"
        call = self.s.producers.get(value)
        if call is None or not is_linear(call):
            return self.emit(relax.op.subtract(self.full(value), self.key(value)), name)
        if is_linear_layer(call):
            bits = self.s.bits(value.name, self.program)
            if bits is not None:
                return self.quantized_layer(value, call, self.delta, "d_", bits)
        if op_name(call) in ("relax.add", "relax.subtract") and is_const(call.args[1]):
            return self.delta(call.args[0])
        if op_name(call) == "relax.nn.pad":
            at = call.attrs
            return self.emit(relax.op.nn.pad(self.delta(call.args[0]), list(at.pad_width)), name)
        return self.emit(recall(call, self.delta), name)

    def full(self, value: Any) -> Any:
        """Emit (once) a source value of this frame."""
        if value not in self._fulls:
            call = self.s.producers.get(value)
            if call is None:
                full = self._frames[value]
            elif self.s.is_rooted(value):
                full = self.emit(recall(call, self.full), value.name)
            else:
                full = self.emit(relax.op.add(self.key(value), self.delta(value)), value.name)
            # What is compared with rounded state is rounded alike; a sum with the state is not,
            # unless it is the next state.
            if value in self._state and (self.s.is_rooted(value) or self.s.recurrent):
                full = self._continue(value, full)
            if call is None and value in self._state and value.name in self.s.gates:
                settings = self.s.gates[value.name]
                full = self.emit(gate(full, self.key(value), settings), f"{value.name}_gated")
            self._fulls[value] = full
        return self._fulls[value]

    def _continue(self, value: Any, full: Any) -> Any:
        stored, rounded = self.rounded(value, full)
        self._narrowed[value] = stored
        return rounded

    def key(self, value: Any) -> Any:
        """Emit (once) a source value of the keyframe."""
        if value not in self._keys:
            call: Any = self.s.producers.get(value)
            name = f"k_{value.name}"
            if not self.s.is_state(value):
                key = self.emit(recall(call, self.key), name)
            else:
                key = self._state[value]
                if self.s.state_dtype_of(value) != "float32":
                    key = self.emit(relax.op.astype(key, "float32"), name)
            self._keys[value] = key
        return self._keys[value]


def needed_state(settings: Settings) -> set[Any]:
    """Return the source values whose keyframe value the residual program needs."""
    need: set[Any] = set(settings.held)
    seen: set[tuple[str, Any]] = set()
    stack = [("full", v) for v in settings.graph.outputs() if v not in settings.held]
    stack += [("delta", v) for v, _ in settings.graph.layers() if v in settings.live]
    while stack:
        item = stack.pop()
        if item in seen:
            continue
        seen.add(item)
        form, value = item
        call = settings.producers.get(value)
        rooted = settings.is_rooted(value)
        if form == "key":
            if settings.is_state(value):
                need.add(value)
            else:
                stack += [("key", v) for v in inputs_of(call)]
        elif form == "full":
            if call is not None:
                if rooted:
                    stack += [("full", v) for v in inputs_of(call)]
                else:
                    stack += [("key", value), ("delta", value)]
        elif call is None or not is_linear(call):
            stack += [("full", value), ("key", value)]
        else:
            stack += [("delta", v) for v in inputs_of(call)]
    return need

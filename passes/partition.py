"""Partition a quantization-annotated ``main`` into a keyframe and a residual program.

Requires canonical form, `resq.layers` and `resq.scales` (see docs/architecture.md). Produces
``keyframe(x…) -> ((y…), (state…))`` and, unless the scheme is frame quantization,
``residual(x…, state…) -> ((y…), (state…))``; ``main`` stays as it is.

In the residual program every value has up to three forms, made on demand:

* *delta* ``v_t − v_k``: linear operators map deltas to deltas; a linear layer takes the quantized
  delta of its input (eq. 4 of the paper); other operators give ``g(u_t) − g(u_k)``;
* *full* ``v_t``: ``v_k + delta`` behind linear layers, ``g(u_t)`` behind other operators;
* *key* ``v_k``: recomputed from the keyframe values before it behind nonlinear and elementwise
  operators, otherwise it is state.

State is therefore exactly what turns deltas into full values. Control flow and symbolic shapes
are not handled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.passes.graph import Graph, concat_pieces, is_const, is_linear_layer, op_name, shape_of
from resq_tvm.passes.operators import is_linear, is_recomputed
from resq_tvm.passes.quantizers import quant_points
from resq_tvm.passes.weights import quantize_weight
from resq_tvm.scheme import Bits, Scheme, code_limit


@tvm.transform.module_pass(opt_level=0, name="Partition")
class Partition:
    """Split ``main`` into ``keyframe`` and ``residual``.

    Parameters
    ----------
    state_dtype : str
        ``"float32"`` or ``"float16"``: how state is stored. Both programs continue from the
        rounded value, so that a frame equal to its keyframe gives the keyframe's output exactly.
    recurrent : bool
        Residuals against the previous frame instead of the keyframe; the residual program then
        returns a new state.
    """

    def __init__(self, state_dtype: str = "float32", recurrent: bool = False) -> None:
        self.state_dtype = state_dtype
        self.recurrent = recurrent

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with the two programs added."""
        main = mod["main"]
        settings = _Settings(main, self.state_dtype, self.recurrent)
        programs: dict[str, Any] = {}
        if settings.has_residual:
            residual = _Residual(settings)
            programs["residual"] = residual.build()
            state = residual.state_values
        else:
            state = []
        programs["keyframe"] = _Keyframe(settings, state).build()
        out = tvm.IRModule(dict(mod.functions_items()))
        for name in ("keyframe", "residual"):
            if name in programs:
                out[name] = programs[name].with_attr("global_symbol", name)
        return out


class _Settings:
    """What both programs read: the graph, precisions, scales, state dtype."""

    def __init__(self, main: Any, state_dtype: str, recurrent: bool) -> None:
        self.graph = Graph.of(main)
        self.producers = self.graph.producers
        self.state_dtype = state_dtype
        self.recurrent = recurrent
        self.layers: dict[str, str] = json.loads(str(main.attrs["resq.layers"]))
        options = (
            json.loads(str(main.attrs["resq.options"])) if "resq.options" in main.attrs else {}
        )
        self.granularity = options.get("granularity", "channel")
        scales = json.loads(str(main.attrs["resq.scales"]))
        self.scales: dict[tuple[str, str, int], float] = {}
        for program in ("keyframe", "residual"):
            for point in quant_points(main, self.layers, program):
                for value in point.values:
                    self.scales[program, value, point.bits] = scales[program][point.name]
        self.has_residual = all(
            t == "float" or Scheme.parse(t).residual is not None for t in self.layers.values()
        )

    def bits(self, layer: str, program: str) -> Bits | None:
        """Return a layer's bits in a program, None where it stays float."""
        text = self.layers[layer]
        if text == "float":
            return None
        scheme = Scheme.parse(text)
        return scheme.key if program == "keyframe" else scheme.residual


class _Program:
    """Emission shared by both programs."""

    program = ""

    def __init__(self, settings: _Settings) -> None:
        self.s = settings
        self.bb = relax.BlockBuilder()
        self._codes: dict[tuple[Any, int, float], Any] = {}

    def emit(self, expr: Any, name: str) -> Any:
        return self.bb.emit(expr, name_hint=name)

    def recall(self, call: Any, args: list[Any], name: str) -> Any:
        """Emit the same operator on other arguments."""
        return self.emit(relax.Call(call.op, args, call.attrs, call.ty_args), name)

    def codes(
        self, value: Any, form: Callable[[Any], Any], prefix: str, bits: int, scale: float
    ) -> Any:
        """Emit the codes of a source value in the form given; a concat is quantized by pieces."""
        key = (value, bits, scale)
        if key not in self._codes:
            name = f"{prefix}{value.name}_q{bits}"
            sources = concat_pieces(value, self.s.producers)
            if sources != [value]:
                pieces = [self.codes(p, form, prefix, bits, scale) for p in sources]
                expr = relax.op.concat(pieces, axis=len(shape_of(value)) - 1)
            else:
                q = relax.op.quantize(
                    form(value),
                    relax.const(np.float32(scale)),
                    relax.const(np.int8(0)),
                    axis=-1,
                    out_dtype="int8",
                )
                limit = code_limit(bits)
                expr = relax.op.clip(self.emit(q, f"{name}_raw"), -limit, limit)
            self._codes[key] = self.emit(expr, name)
        return self._codes[key]

    def quantized_layer(
        self, var: Any, call: Any, form: Callable[[Any], Any], prefix: str, bits: Bits
    ) -> Any:
        """Emit quantize → integer layer → dequantize."""
        value = call.args[0]
        scale = self.s.scales[self.program, value.name, bits.activation]
        codes = self.codes(value, form, prefix, bits.activation, scale)
        name = op_name(call)
        weight, weight_scale = quantize_weight(
            np.asarray(call.args[1].value.numpy()), name, bits.weight, self.s.granularity
        )
        at = call.attrs
        w = relax.const(weight)
        if name == "relax.nn.conv2d":
            acc = relax.op.nn.conv2d(
                codes, w, list(at.strides), list(at.padding), list(at.dilation), int(at.groups),
                at.data_layout, at.kernel_layout, out_dtype="int32",
            )  # fmt: skip
        elif name == "relax.nn.conv2d_transpose":
            acc = relax.op.nn.conv2d_transpose(
                codes, w, list(at.strides), list(at.padding), list(at.output_padding),
                list(at.dilation), int(at.groups), at.data_layout, at.kernel_layout,
                out_dtype="int32",
            )  # fmt: skip
        else:
            acc = relax.op.matmul(codes, w, out_dtype="int32")
        acc = self.emit(acc, f"{prefix}{var.name}_acc")
        out_scale = (np.float32(scale) * weight_scale).astype(np.float32)
        return self.emit(
            relax.op.dequantize(
                acc,
                relax.const(out_scale),
                relax.const(np.zeros(out_scale.shape, np.int8)),
                axis=len(shape_of(var)) - 1,
                out_dtype="float32",
            ),
            f"{prefix}{var.name}",
        )

    def rounded(self, value: Any, name: str) -> tuple[Any, Any]:
        """Return (what is stored, the float32 value to continue from)."""
        if self.s.state_dtype == "float32":
            return value, value
        stored = self.emit(relax.op.astype(value, self.s.state_dtype), f"{name}_state")
        return stored, self.emit(relax.op.astype(stored, "float32"), f"{name}_rounded")

    def finish(self, outputs: list[Any], state: list[Any]) -> Any:
        """End the dataflow block with ((outputs…), (state…))."""
        return self.bb.emit_output(relax.Tuple([relax.Tuple(outputs), relax.Tuple(state)]))

    def result(self) -> Any:
        """Return the function, dead bindings removed."""
        mod = relax.transform.DeadCodeElimination([self.program])(self.bb.finalize())
        return mod[self.program].with_attr("num_input", len(self.s.graph.func.params))


class _Keyframe(_Program):
    """Every frame on its own, at keyframe precision; hands out the state."""

    program = "keyframe"

    def __init__(self, settings: _Settings, state: list[Any]) -> None:
        super().__init__(settings)
        self.state_values = state
        self.env: dict[Any, Any] = {}
        self.stored: dict[Any, Any] = {}

    def build(self) -> Any:
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
        if source in self.state_values:
            self.stored[source], value = self.rounded(value, source.name)
        self.env[source] = value

    def visit(self, var: Any, call: Any) -> Any:
        if is_linear_layer(call):
            bits = self.s.bits(var.name, self.program)
            if bits is not None:
                return self.quantized_layer(var, call, self.env.__getitem__, "", bits)
        return self.recall(call, [_map(a, self.env.__getitem__) for a in call.args], var.name)


class _Residual(_Program):
    """A frame relative to its keyframe, at residual precision."""

    program = "residual"

    def __init__(self, settings: _Settings) -> None:
        super().__init__(settings)
        self._deltas: dict[Any, Any] = {}
        self._fulls: dict[Any, Any] = {}
        self._keys: dict[Any, Any] = {}
        self._frames: dict[Any, Any] = {}
        self._state: dict[Any, Any] = {}
        self.state_values: list[Any] = []

    def build(self) -> Any:
        graph = self.s.graph
        self.state_values = [v for v in _definitions(graph) if v in _needed_state(self.s)]
        params = [relax.Var(p.name, p.ty) for p in graph.func.params]
        state = [
            relax.Var(f"{v.name}_key", relax.TensorType(shape_of(v), self.s.state_dtype))
            for v in self.state_values
        ]
        with self.bb.function(self.program, params + state):
            with self.bb.dataflow():
                self._frames = dict(zip(graph.func.params, params, strict=True))
                self._state = dict(zip(self.state_values, state, strict=True))
                for var, call in graph.bindings:
                    if is_linear_layer(call):
                        self.delta(var)
                outputs = [self.full(v) for v in graph.outputs()]
                new_state = [self.stored(v) for v in self.state_values]
                result = self.finish(outputs, new_state)
            self.bb.emit_func_output(result)
        return self.result()

    def stored(self, value: Any) -> Any:
        """Return the state that is handed on: unchanged, or of this frame if recurrent."""
        if not self.s.recurrent:
            return self._state[value]
        full = self.full(value)
        return full if self.s.state_dtype == "float32" else self._narrowed[value]

    @property
    def _narrowed(self) -> dict[Any, Any]:
        return self.__dict__.setdefault("_narrowed_values", {})

    def delta(self, value: Any) -> Any:
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
        return self.recall(call, [_map(a, self.delta) for a in call.args], name)

    def full(self, value: Any) -> Any:
        if value not in self._fulls:
            call = self.s.producers.get(value)
            if call is None:
                full = self._frames[value]
                if value in self._state:
                    full = self._continue(value, full)
            elif _is_rooted(self.s, value):
                full = self.recall(call, [_map(a, self.full) for a in call.args], value.name)
            else:
                full = self.emit(relax.op.add(self.key(value), self.delta(value)), value.name)
                if self.s.recurrent:
                    full = self._continue(value, full)
            self._fulls[value] = full
        return self._fulls[value]

    def _continue(self, value: Any, full: Any) -> Any:
        stored, rounded = self.rounded(full, value.name)
        self._narrowed[value] = stored
        return rounded

    def key(self, value: Any) -> Any:
        if value not in self._keys:
            call = self.s.producers.get(value)
            name = f"k_{value.name}"
            if call is not None and _is_rooted(self.s, value):
                key = self.recall(call, [_map(a, self.key) for a in call.args], name)
            else:
                key = self._state[value]
                if self.s.state_dtype != "float32":
                    key = self.emit(relax.op.astype(key, "float32"), name)
            self._keys[value] = key
        return self._keys[value]


def _is_rooted(settings: _Settings, value: Any) -> bool:
    """Whether a value's full form is computed from full forms, not as key + delta."""
    call = settings.producers.get(value)
    if call is None or not is_linear(call):
        return True
    if not is_recomputed(call):
        return False
    return all(_is_rooted(settings, v) for v in _arguments(call))


def _needed_state(settings: _Settings) -> set[Any]:
    """Return the source values whose keyframe value the residual program needs."""
    need: set[Any] = set()
    seen: set[tuple[str, Any]] = set()
    stack = [("full", v) for v in settings.graph.outputs()]
    stack += [("delta", v) for v, _ in settings.graph.layers()]
    while stack:
        item = stack.pop()
        if item in seen:
            continue
        seen.add(item)
        form, value = item
        call = settings.producers.get(value)
        rooted = _is_rooted(settings, value)
        if form == "key":
            if call is None or not rooted:
                need.add(value)
            else:
                stack += [("key", v) for v in _arguments(call)]
        elif form == "full":
            if call is not None:
                if rooted:
                    stack += [("full", v) for v in _arguments(call)]
                else:
                    stack += [("key", value), ("delta", value)]
        elif call is None or not is_linear(call):
            stack += [("full", value), ("key", value)]
        else:
            stack += [("delta", v) for v in _arguments(call)]
    return need


def _definitions(graph: Graph) -> list[Any]:
    return [*graph.func.params, *(v for v, _ in graph.bindings)]


def _arguments(call: Any) -> list[Any]:
    found = []
    for arg in call.args:
        fields = arg.fields if isinstance(arg, relax.Tuple) else [arg]
        found += [f for f in fields if isinstance(f, relax.Var)]
    return found


def _map(arg: Any, change: Callable[[Any], Any]) -> Any:
    """Map the variables of an argument, tuples included."""
    if isinstance(arg, relax.Tuple):
        return relax.Tuple([_map(f, change) for f in arg.fields])
    return change(arg) if isinstance(arg, relax.Var) else arg

"""What the two programs of a partition share: settings, codes, quantized layers, state."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from resq_tvm.passes.graph import Graph, concat_pieces, inputs_of, op_name, shape_of
from resq_tvm.passes.held import held_values, live_values
from resq_tvm.passes.operators import is_linear, is_local, is_recomputed
from resq_tvm.passes.policy import (
    Choice,
    Gate,
    choice_name,
    choose,
    is_dynamic,
    weight_norms,
)
from resq_tvm.passes.quantizers import quant_points
from resq_tvm.passes.weights import layer_codes
from resq_tvm.scheme import Bits, Scheme, code_limit, split


class Settings:
    """What both programs read: the graph, precisions, scales, state dtype."""

    def __init__(self, main: Any, state_dtype: str, recurrent: bool) -> None:
        self.graph = Graph.of(main)
        self.producers = self.graph.producers
        self.held = held_values(main)  # outputs that are state, float32 as they are
        self.live = live_values(main)
        self._rooted: dict[Any, bool] = {}
        self.state_dtype = state_dtype
        self.recurrent = recurrent
        self.layers: dict[str, str] = json.loads(str(main.attrs["resq.layers"]))
        options = (
            json.loads(str(main.attrs["resq.options"])) if "resq.options" in main.attrs else {}
        )
        self.granularity = options.get("granularity", "channel")
        scales = json.loads(str(main.attrs["resq.scales"]))
        dynamic = json.loads(str(main.attrs["resq.dynamic"])) if is_dynamic(main) else {}
        self.gates = {
            name: Gate(
                float(np.float32(1) / np.float32(g["scale"])),
                float(np.float32(g["threshold"])),
                g["block"],
                g["reach"],
            )
            for name, g in dynamic.get("gates", {}).items()
        }
        self.scales: dict[tuple[str, str, Any], float] = {}
        # Of a value that is quantized at several scales the coarsest sets the threshold, which
        # counts codes: none of its readers then loses more than tau allows.
        coarsest: dict[tuple[str, tuple[int, ...]], float] = {}
        for program in ("keyframe", "residual"):
            for point in quant_points(main, self.layers, program):
                scale = scales[program][point.name]
                for value in point.values:
                    self.scales[program, value, point.pool or point.bits] = scale
                    for piece in self._pieces(value) if point.pool else ():
                        before = coarsest.get((piece, point.pool), 0.0)
                        coarsest[piece, point.pool] = max(before, scale)
        norms = weight_norms(main, self.layers, self.granularity) if dynamic else {}
        self.choices: dict[str, Choice] = {}
        for (piece, pool), scale in coarsest.items():
            name = choice_name(piece, pool)
            entry = dynamic["choices"][name]
            with np.errstate(over="ignore"):
                threshold = np.float32(entry["tau"]) / np.float32(scale * max(norms[name], 1e-30))
            # Not infinite, so that a session can scale it with 0.
            threshold = min(threshold, np.finfo(np.float32).max)
            self.choices[name] = Choice(
                pool,
                tuple(entry["shifts"]),
                float(np.float32(threshold)),
                float(dynamic.get("budget") or 0.0),
            )
        if not self.choices:
            self.gates = {}  # a residual program without layers is not executed by tiles
        self.has_residual = all(
            t == "float" or Scheme.parse(t).residual is not None for t in self.layers.values()
        )

    def _pieces(self, value: str) -> list[str]:
        variables = {v.name: v for v in (*self.graph.func.params, *self.producers)}
        return [p.name for p in concat_pieces(variables[value], self.producers)]

    def bits(self, layer: str, program: str) -> Bits | None:
        """Return a layer's bits in a program, None where it stays float."""
        text = self.layers[layer]
        if text == "float":
            return None
        scheme = Scheme.parse(text)
        return scheme.key if program == "keyframe" else scheme.residual

    def is_state(self, value: Any) -> bool:
        """Whether a value's keyframe form, where it is needed, is state and not recomputed."""
        if value in self.held:
            return True
        call = self.producers.get(value)
        return call is None or not is_local(call) or not self.is_rooted(value)

    def state_dtype_of(self, value: Any) -> str:
        """Return how a value's keyframe form is stored."""
        return "float32" if value in self.held else self.state_dtype

    def is_rooted(self, value: Any) -> bool:
        """Whether a value's full form is computed from full forms, not as key + delta."""
        if value not in self._rooted:
            call = self.producers.get(value)
            self._rooted[value] = (
                call is None
                or not is_linear(call)
                or (is_recomputed(call) and all(self.is_rooted(v) for v in inputs_of(call)))
            )
        return self._rooted[value]


class Program:
    """Emission shared by both programs."""

    program = ""

    def __init__(self, settings: Settings) -> None:
        self.s = settings
        self.bb = relax.BlockBuilder()
        self._codes: dict[tuple[Any, ...], Any] = {}

    def emit(self, expr: Any, name: str) -> Any:
        """Bind an expression to a variable of that name."""
        return self.bb.emit(expr, name_hint=name)

    def codes(
        self, value: Any, form: Callable[[Any], Any], prefix: str, bits: Bits, scale: float
    ) -> Any:
        """Emit the codes of a source value in the form given; a concat is quantized by pieces."""
        key = (value, bits.activation, bits.pool, scale)
        if key not in self._codes:
            name = f"{prefix}{value.name}_q{'_'.join(map(str, bits.pool or (bits.activation,)))}"
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
                limit = code_limit(bits.activation)
                expr = relax.op.clip(self.emit(q, f"{name}_raw"), -limit, limit)
                if bits.pool:
                    choice = self.s.choices[choice_name(value.name, bits.pool)]
                    expr = choose(self.emit(expr, f"{name}_fine"), choice)
            self._codes[key] = self.emit(expr, name)
        return self._codes[key]

    def quantized_layer(
        self, var: Any, call: Any, form: Callable[[Any], Any], prefix: str, bits: Bits
    ) -> Any:
        """Emit quantize → integer layer → dequantize, once per code of the input; their sum."""
        value = call.args[0]
        scale = self.s.scales[self.program, value.name, bits.pool or bits.activation]
        total = None
        for activation, step in split(bits.activation, scale):
            one = replace(bits, activation=activation)
            term = self._term(var, call, self.codes(value, form, prefix, one, step), prefix, step)
            total = term if total is None else self.emit(relax.op.add(total, term), var.name)
            form, prefix = self._rest(form, prefix, one, step), f"rest_{prefix}"
        return total

    def _rest(
        self, form: Callable[[Any], Any], prefix: str, bits: Bits, scale: float
    ) -> Callable[[Any], Any]:
        """Return the form of values that is left of another one by its codes."""

        def rest(value: Any) -> Any:
            codes = self.codes(value, form, prefix, bits, scale)
            coarse = _dequantize(codes, np.float32(scale))
            coarse = self.emit(coarse, f"{prefix}{value.name}_coarse")
            return self.emit(relax.op.subtract(form(value), coarse), f"{prefix}{value.name}_rest")

        return rest

    def _term(self, var: Any, call: Any, codes: Any, prefix: str, scale: float) -> Any:
        """Emit an integer layer on codes → dequantize."""
        name = op_name(call)
        bits = self.s.bits(var.name, self.program)
        assert bits is not None
        weight, weight_scale = layer_codes(
            self.s.graph.func, var.name, call, bits.weight, self.s.granularity
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
        return self.emit(_dequantize(acc, out_scale), f"{prefix}{var.name}")

    def rounded(self, source: Any, value: Any) -> tuple[Any, Any]:
        """Return (what is stored of a source value, the float32 value to continue from)."""
        name, dtype = source.name, self.s.state_dtype_of(source)
        if dtype == "float32":
            return value, value
        # Beyond its range float16 would give infinity, and infinity − infinity NaN.
        limit = float(np.finfo(dtype).max)
        inside = self.emit(relax.op.clip(value, -limit, limit), f"{name}_inside")
        stored = self.emit(relax.op.astype(inside, dtype), f"{name}_state")
        return stored, self.emit(relax.op.astype(stored, "float32"), f"{name}_rounded")

    def finish(self, outputs: list[Any], state: list[Any]) -> Any:
        """End the dataflow block with ((outputs…), (state…))."""
        return self.bb.emit_output(relax.Tuple([relax.Tuple(outputs), relax.Tuple(state)]))

    def result(self) -> Any:
        """Return the function, dead bindings removed."""
        mod = relax.transform.DeadCodeElimination([self.program])(self.bb.finalize())
        return mod[self.program].with_attr("num_input", len(self.s.graph.func.params))


def _dequantize(codes: Any, scale: Any) -> Any:
    """Return codes, or accumulators by channels, as float32: one scale, or one per channel."""
    zero = relax.const(np.zeros(scale.shape, np.int8))
    axis = len(shape_of(codes)) - 1
    return relax.op.dequantize(codes, relax.const(scale), zero, axis=axis, out_dtype="float32")

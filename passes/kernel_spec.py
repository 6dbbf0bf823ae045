"""Read a composite function into the `FusedKernel` that the schedules emit.

The composite holds at most one anchor, or the two of a layer that reads two codes; what follows
becomes the epilogue's nodes one to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.errors import CompileError
from resq_tvm.passes import policy
from resq_tvm.passes.fuse import ANCHORS, plane_of
from resq_tvm.passes.graph import Graph, const_value, imm_value, inputs_of, is_const, op_name
from resq_tvm.schedules.spec import (
    Anchor,
    Choice,
    CodeFormat,
    Conv,
    FloatConv,
    FusedKernel,
    Gate,
    GlobalMean,
    Node,
    Phase,
    Pool,
    Resize,
    Store,
    TensorSpec,
    Walk,
    Window,
)

_BINARY = {
    "relax.add": "add",
    "relax.subtract": "sub",
    "relax.multiply": "mul",
    "relax.divide": "div",
    "relax.maximum": "max",
    "relax.minimum": "min",
}
_UNARY = {
    "relax.negative": "neg",
    "relax.abs": "abs",
    "relax.exp": "exp",
    "relax.sqrt": "sqrt",
    "relax.sigmoid": "sigmoid",
    "relax.tanh": "tanh",
    "relax.erf": "erf",
}


def conv_phases(call: Any) -> tuple[tuple[Phase, ...], tuple[int, int], tuple[int, int]]:
    """Return the phases, input stride and output stride of a convolution or matmul.

    A transposed convolution with stride s becomes s × s ordinary ones, one per output phase: the
    output pixel ``oy + s·i`` sums the taps with ``(oy + pad − ky·dilation)`` divisible by s.
    """
    name = op_name(call)
    if name == "relax.matmul":
        return (Phase(0, 0, ((0, 0, 0, 0),)),), (1, 1), (1, 1)
    at = call.attrs
    weight = const_value(call.args[1])
    kh, kw = weight.shape[1], weight.shape[2]
    sy, sx = (int(s) for s in at.strides)
    dy, dx = (int(d) for d in at.dilation)
    top, left = int(at.padding[0]), int(at.padding[1])
    if name == "relax.nn.conv2d":
        taps = tuple(
            (ky, kx, ky * dy - top, kx * dx - left) for ky in range(kh) for kx in range(kw)
        )
        return (Phase(0, 0, taps),), (sy, sx), (1, 1)
    phases = []
    for oy in range(sy):
        for ox in range(sx):
            taps = tuple(
                (ky, kx, (oy + top - ky * dy) // sy, (ox + left - kx * dx) // sx)
                for ky in range(kh)
                for kx in range(kw)
                if (oy + top - ky * dy) % sy == 0 and (ox + left - kx * dx) % sx == 0
            )
            phases.append(Phase(oy, ox, taps))
    return tuple(phases), (1, 1), (sy, sx)


def required_halo(call: Any) -> tuple[int, int, int, int]:
    """Return the halo (top, left, bottom, right) that a layer needs around its input."""
    phases, (sy, sx), (ty, tx) = conv_phases(call)
    h, w, _ = plane_of(call.args[0])
    out_h, out_w, _ = plane_of(call)
    top = left = bottom = right = 0
    for phase in phases:
        last_y = (out_h - 1 - phase.oy) // ty * sy
        last_x = (out_w - 1 - phase.ox) // tx * sx
        if last_y < 0 or last_x < 0:
            continue
        for _, _, dy, dx in phase.taps:
            top, left = max(top, -dy), max(left, -dx)
            bottom, right = max(bottom, last_y + dy - h + 1), max(right, last_x + dx - w + 1)
    return top, left, bottom, right


def read_kernel(
    name: str,
    func: Any,
    reads: list[TensorSpec],
    exports: list[TensorSpec],
    code: CodeFormat,
    thresholds: Thresholds,
) -> FusedKernel:
    """Translate a composite function.

    Parameters
    ----------
    name : str
        The PrimFunc's name.
    func : relax.Function
        The composite; its parameters correspond to ``reads``, its results to ``exports``.
    thresholds : Thresholds
        Takes the thresholds of choices and gates.
    """
    return _Reader(name, func, reads, exports, code, thresholds).read()


class Thresholds:
    """The thresholds of a program, by the name of the value that they decide on."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, name: str, value: float) -> int:
        """Return the index of a new threshold."""
        self.values[name] = value
        return len(self.values) - 1


class _Reader:
    def __init__(
        self,
        name: str,
        func: Any,
        reads: list[TensorSpec],
        exports: list[TensorSpec],
        code: CodeFormat,
        thresholds: Thresholds,
    ) -> None:
        self.name = name
        self.thresholds = thresholds
        self.choices: dict[Any, Choice] = {}
        self.gate: Gate | None = None
        self.kind = str(func.attrs["Composite"])
        self.graph = Graph.of(func)
        self.reads = dict(zip(func.params, reads, strict=True))
        self.exports = exports
        self.code = code
        self.nodes: list[Node] = []
        self.index: dict[Any, int] = {}
        self.cache: dict[Node, int] = {}
        self.vectors: dict[str, NDArray[np.float32]] = {}
        self.plane = (1, 1, 1)
        self.raw: dict[Any, Any] = {}  # quantize calls that await their clip

    def read(self) -> FusedKernel:
        anchor: Anchor = Walk()
        results = self.graph.outputs()
        self.plane = plane_of(results[0])
        for var, call in self.graph.bindings:
            if not op_name(call):
                continue
            if op_name(call) in ANCHORS and isinstance(anchor, Conv):
                anchor = replace(anchor, rest=self._codes(call))
                self.index[var] = self._node(Node("rest"))
            elif op_name(call) in ANCHORS:
                anchor = self._anchor(call)
                self.index[var] = self._node(Node("anchor"))
            elif op_name(call) != "relax.concat":
                self._elementwise(var, call)
        stores = tuple(
            Store(self._value(v), spec.name, self.choices.get(v))
            for v, spec in zip(results, self.exports, strict=True)
        )
        h, w, c = self.plane
        return FusedKernel(
            self.name, anchor, h, w, c, tuple(self.reads.values()), tuple(self.exports),
            tuple(self.nodes), stores, self.code, self.vectors, gate=self.gate,
        )  # fmt: skip

    # Nodes -----------------------------------------------------------------------------------

    def _node(self, node: Node) -> int:
        if node not in self.cache:
            self.cache[node] = len(self.nodes)
            self.nodes.append(node)
        return self.cache[node]

    def _value(self, expr: Any) -> int:
        if is_const(expr):
            array = const_value(expr).astype(np.float32)
            if array.size == 1:
                return self._scalar(float(array.reshape(())))
            name = f"v{len(self.vectors)}"
            for known, value in self.vectors.items():
                if np.array_equal(value, array.reshape(-1)):
                    name = known
            self.vectors[name] = array.reshape(-1)
            return self._node(Node("vector", name=name))
        if expr not in self.index:
            self.index[expr] = self._node(Node("load", name=self.reads[expr].name))
        return self.index[expr]

    def _scalar(self, value: float) -> int:
        return self._node(Node("scalar", value=float(np.float32(value))))

    def _elementwise(self, var: Any, call: Any) -> None:
        name = op_name(call)
        if name == "relax.quantize":
            self.raw[var] = call
            return
        if name == "relax.clip" and call.args[0] in self.raw:
            quantize = self.raw[call.args[0]]
            scale = np.float32(imm_value(quantize.args[1]))
            node = Node(
                "quantize",
                (self._value(quantize.args[0]),),
                value=float(np.float32(1) / scale),
                limit=int(imm_value(call.args[2])),
            )
            self.index[var] = self._node(node)
            return
        if name == policy.CHOOSE:
            choice = policy.choice_of(call)
            index = self.thresholds.add(var.name, choice.threshold)
            self.choices[var] = Choice(choice.pool, choice.shifts, index, policy.keep_of(call))
            self.index[var] = self._value(call.args[1])
            return
        if name == policy.GATE:
            gate = policy.gate_of(call)
            index = self.thresholds.add(var.name, gate.threshold)
            self.gate = Gate(gate.reciprocal, index, gate.block, gate.reach)
            args = tuple(self._value(a) for a in call.args[1:3])
            self.index[var] = self._node(Node("gate", args))
            return
        self.index[var] = self._plain(name, call, self._value(call.args[0]))

    def _plain(self, name: str, call: Any, a: int) -> int:
        if name == "relax.dequantize":
            return self._node(Node("dequantize", (a, self._value(call.args[1]))))
        if name in _BINARY:
            return self._node(Node(_BINARY[name], (a, self._value(call.args[1]))))
        if name in _UNARY:
            return self._node(Node(_UNARY[name], (a,)))
        if name == "relax.nn.relu":
            return self._node(Node("max", (a, self._scalar(0.0))))
        if name == "relax.clip":
            low = self._node(Node("max", (a, self._scalar(imm_value(call.args[1])))))
            return self._node(Node("min", (low, self._scalar(imm_value(call.args[2])))))
        if name == "relax.nn.prelu":
            return self._node(Node("prelu", (a, self._value(call.args[1]))))
        if name == "relax.nn.leakyrelu":
            return self._node(Node("prelu", (a, self._scalar(float(call.attrs.alpha)))))
        if name == "relax.nn.silu":
            return self._node(Node("mul", (a, self._node(Node("sigmoid", (a,))))))
        if name == "relax.nn.gelu":
            scaled = self._node(Node("mul", (a, self._scalar(2.0**-0.5))))
            erf = self._node(Node("erf", (scaled,)))
            half = self._node(Node("mul", (a, self._scalar(0.5))))
            return self._node(Node("mul", (half, self._node(Node("add", (erf, self._scalar(1)))))))
        if name == "relax.astype":
            dtype = str(call.attrs.dtype)
            return self._node(Node("round16", (a,))) if dtype == "float16" else a
        raise CompileError(f"kernel {self.name}: no epilogue form of operator {name}; report it")

    # Anchors ---------------------------------------------------------------------------------

    def _anchor(self, call: Any) -> Anchor:
        readers: dict[str, Callable[[Any], Anchor]] = {
            "resq.conv": self._conv,
            "resq.pool": self._pool,
            "resq.mean": lambda c: GlobalMean(self._input(c)),
            "resq.resize": self._resize,
            "resq.window": self._window,
        }
        return readers[self.kind](call)

    def _input(self, call: Any) -> str:
        return self.reads[call.args[0]].name

    def _codes(self, call: Any) -> tuple[str, ...]:
        """Return the inputs of a convolution or matmul; concatenated ones by themselves."""
        source = call.args[0]
        cat = self.graph.producers.get(source)
        pieces = inputs_of(cat) if cat is not None else [source]
        return tuple(self.reads[p].name for p in pieces)

    def _conv(self, call: Any) -> Anchor:
        weight = const_value(call.args[1])
        if op_name(call) == "relax.matmul":
            weight = np.ascontiguousarray(weight.T)[:, None, None, :]
        phases, in_stride, out_stride = conv_phases(call)
        groups = 1 if op_name(call) == "relax.matmul" else int(call.attrs.groups)
        kind = Conv if weight.dtype == np.int8 else FloatConv
        return kind(self._codes(call), weight, phases, in_stride, out_stride, groups)

    def _pool(self, call: Any) -> Anchor:
        at = call.attrs
        return Pool(
            self._input(call),
            "max" if op_name(call) == "relax.nn.max_pool2d" else "avg",
            _pair(at.pool_size),
            _pair(at.strides),
            tuple(int(p) for p in at.padding),  # type: ignore[arg-type]
            _pair(at.dilation),
            bool(at.count_include_pad),
        )

    def _resize(self, call: Any) -> Anchor:
        at = call.attrs
        return Resize(
            self._input(call),
            str(at.method),
            str(at.coordinate_transformation_mode),
            str(at.rounding_method),
        )

    def _window(self, call: Any) -> Anchor:
        if op_name(call) == "relax.nn.pad":
            width = [int(p) for p in call.attrs.pad_width]
            fill = float(call.attrs.pad_value)
            return Window(self._input(call), (-width[2], -width[4], -width[6]), (1, 1), fill)
        rank = len(call.args[0].ty.shape)
        begin, step = [0] * rank, [1] * rank
        axes = _numbers(call.args[1])
        steps = _numbers(call.args[4]) if len(call.args) > 4 else [1] * len(axes)
        for axis, start, stride in zip(axes, _numbers(call.args[2]), steps, strict=True):
            size = int(call.args[0].ty.shape[axis])
            begin[axis % rank] = min(start + size if start < 0 else start, size)
            step[axis % rank] = stride
        return Window(self._input(call), (begin[1], begin[2], begin[3]), (step[1], step[2]))


def _pair(values: Any) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _numbers(expr: Any) -> list[int]:
    fields = expr.fields if isinstance(expr, relax.Tuple) else expr
    return [int(imm_value(v)) for v in fields]

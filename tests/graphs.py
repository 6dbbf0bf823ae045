"""Random canonical networks: every operator, odd shapes, shared values, several outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.passes.graph import Graph, concat_pieces
from resq_tvm.passes.policy import choice_name
from resq_tvm.passes.quantizers import quant_points
from resq_tvm.scheme import Scheme

op = relax.op


class NetworkBuilder:
    """Draws operators over a pool of 4-D values."""

    planes = ((5, 7), (8, 8), (9, 13))  # rows and columns of inputs

    def __init__(self, seed: int, layers_only: bool = False) -> None:
        self.random = Random(seed)
        self.rng = np.random.default_rng(seed)
        self.bb = relax.BlockBuilder()
        self.count = 0
        self.layers_only = layers_only
        self.pool: list[Any] = []

    def constant(self, *shape: int, scale: float = 0.3) -> Any:
        return relax.const((self.rng.standard_normal(shape) * scale).astype("float32"))

    def emit(self, expr: Any, kind: str) -> Any:
        self.count += 1
        var = self.bb.emit(expr, name_hint=f"{kind}_{self.count}")
        self.pool.append(var)
        return var

    def pick(self, fits: Callable[[Any], bool] = lambda v: True) -> Any:
        # Late values are likelier, so that graphs grow deep; early ones make skip connections.
        candidates = [v for v in self.pool if fits(v)]
        return candidates[max(self.random.randrange(len(candidates)) for _ in range(2))]

    def shape(self, v: Any) -> tuple[int, ...]:
        return tuple(int(d) for d in v.ty.shape)

    def conv(self) -> Any:
        x = self.pick()
        _, h, w, c = self.shape(x)
        k = self.random.choice([1, 1, 2, 3, 3, 5])
        dilation = self.random.choice([1, 1, 2])
        stride = self.random.choice([1, 1, 1, 2, 3])
        pads = [self.random.randint(0, (k - 1) * dilation) for _ in range(4)]
        if h + pads[0] + pads[2] < (k - 1) * dilation + 1:
            pads = [(k - 1) * dilation] * 4
        if w + pads[1] + pads[3] < (k - 1) * dilation + 1:
            pads = [(k - 1) * dilation] * 4
        kind = self.random.choice(["dense", "dense", "depthwise", "grouped"])
        if kind == "grouped" and c % 2 == 0 and c > 2:
            groups, out, per = 2, 2 * self.random.randint(1, 9), c // 2
        elif kind == "depthwise" and c > 1:
            groups, out, per = c, c, 1
        else:
            groups, out, per = 1, self.random.choice([1, 3, 7, 12, 16, 19, 25, 33]), c
        weight = self.constant(out, k, k, per, scale=1.0 / (k * np.sqrt(per)))
        return self.emit(
            op.nn.conv2d(
                x, weight, [stride, stride], pads, [dilation, dilation], groups, "NHWC", "OHWI"
            ),
            "conv",
        )

    def transposed(self) -> Any:
        x = self.pick(lambda v: self.shape(v)[1] <= 12)
        c = self.shape(x)[3]
        k = self.random.choice([2, 3, 4])
        stride = self.random.choice([1, 2])
        pad = self.random.randint(0, 1) if min(self.shape(x)[1:3]) > 1 else 0
        extra = self.random.randint(0, stride - 1)
        weight = self.constant(self.random.choice([2, 9, 17]), k, k, c, scale=0.5 / np.sqrt(c))
        return self.emit(
            op.nn.conv2d_transpose(
                x, weight, [stride, stride], [pad] * 4, [extra, extra], [1, 1], 1, "NHWC", "OHWI"
            ),
            "deconv",
        )

    def bias(self) -> Any:
        x = self.pick()
        return self.emit(op.add(x, self.constant(self.shape(x)[3])), "bias")

    def scale(self) -> Any:
        x = self.pick()
        return self.emit(op.multiply(x, self.constant(self.shape(x)[3])), "scale")

    def activation(self) -> Any:
        x = self.pick()
        c = self.shape(x)[3]
        made = {
            "relu": lambda: op.nn.relu(x),
            "relu6": lambda: op.clip(x, 0, 6),
            "prelu": lambda: op.nn.prelu(x, self.constant(c), axis=3),
            "leaky": lambda: op.nn.leakyrelu(x, 0.1),
            "sigmoid": lambda: op.sigmoid(x),
            "tanh": lambda: op.tanh(x),
        }
        kind = self.random.choice(list(made))
        return self.emit(made[kind](), kind)

    def binary(self) -> Any:
        x = self.pick()
        # x ∘ x only where there is no other: TVM simplifies max(x, x) and then (k + d) − k to d.
        same = [v for v in self.pool if self.shape(v) == self.shape(x) and not v.same_as(x)]
        if not same:
            return self.activation()
        y = self.random.choice(same)
        kind, make = self.random.choice(
            [("sum", op.add), ("diff", op.subtract), ("product", op.multiply), ("max", op.maximum)]
        )
        return self.emit(make(x, y), kind)

    def pool2d(self) -> Any:
        x = self.pick(lambda v: min(self.shape(v)[1:3]) >= 2)
        k = self.random.choice([2, 3]) if min(self.shape(x)[1:3]) >= 3 else 2
        pad = self.random.randint(0, k // 2)
        if self.random.random() < 0.5:
            made = op.nn.max_pool2d(x, [k, k], [2, 2], [pad] * 4, layout="NHWC")
            return self.emit(made, "maxpool")
        inside = self.random.random() < 0.5
        made = op.nn.avg_pool2d(
            x, [k, k], [2, 2], [pad] * 4, layout="NHWC", count_include_pad=inside
        )
        return self.emit(made, "avgpool")

    def mean(self) -> Any:
        x = self.pick()
        return self.emit(op.mean(x, [1, 2], keepdims=True), "mean")

    def resize(self) -> Any:
        x = self.pick(lambda v: self.shape(v)[1] <= 16)
        _, h, w, _ = self.shape(x)
        size = (self.random.randint(1, 2 * h + 1), self.random.randint(1, 2 * w + 1))
        made = op.image.resize2d(
            x,
            size,
            layout="NHWC",
            method="linear",
            coordinate_transformation_mode=self.random.choice(["half_pixel", "align_corners"]),
        )
        return self.emit(made, "resize")

    def concat(self) -> Any:
        x = self.pick()
        y = self.pick(lambda v: self.shape(v)[1:3] == self.shape(x)[1:3])
        return self.emit(op.concat([x, y], axis=3), "concat")

    def slice(self) -> Any:
        x = self.pick()
        _, h, w, c = self.shape(x)
        begin = [self.random.randrange(d) for d in (h, w, c)]
        end = [self.random.randint(b + 1, d) for b, d in zip(begin, (h, w, c), strict=True)]
        return self.emit(op.strided_slice(x, [1, 2, 3], begin, end), "slice")

    def pad(self) -> Any:
        x = self.pick()
        width = [0, 0, *(self.random.randint(0, 2) for _ in range(6))]
        return self.emit(op.nn.pad(x, width), "pad")

    def layers_then(self) -> Any:
        """Layer, bias, activation: the usual run."""
        self.conv()
        self.pool = [*self.pool, self.pool[-1]]
        self.bias()
        return self.activation()

    def build(self, operators: int) -> tvm.IRModule:
        h, w = self.random.choice(self.planes)
        c = self.random.choice([3, 4, 16])
        x = relax.Var("x", relax.TensorType((1, h, w, c), "float32"))
        choices = [
            self.layers_then, self.layers_then, self.conv, self.transposed, self.bias, self.scale,
            self.activation, self.binary, self.pool2d, self.mean, self.resize, self.concat,
            self.slice, self.pad,
        ]  # fmt: skip
        with self.bb.function("main", [x]):
            with self.bb.dataflow():
                self.pool = [x]
                self.conv()
                for _ in range(operators):
                    self.random.choice(choices)()
                outputs = list(dict.fromkeys(self.pool[-self.random.randint(1, 3) :]))
                result = self.bb.emit_output(relax.Tuple(outputs))
            self.bb.emit_func_output(result)
        return relax.transform.DeadCodeElimination(["main"])(self.bb.finalize())


def random_network(seed: int, operators: int = 8) -> tvm.IRModule:
    """Return a random canonical module with function ``main``."""
    return NetworkBuilder(seed).build(operators)


def annotated(mod: tvm.IRModule, scheme: str, scale: float = 0.05) -> tvm.IRModule:
    """Attach a scheme to every layer, and scales that make most codes small but not all."""
    main = mod["main"]
    layers = {v.name: scheme for v, _ in Graph.of(main).layers()}
    scales = {
        p: {q.name: scale * 2 ** (8 - q.bits) / 4 for q in quant_points(main, layers, p)}
        for p in ("keyframe", "residual")
    }
    out = tvm.IRModule(dict(mod.functions_items()))
    out["main"] = main.with_attrs(
        {"resq.layers": json.dumps(layers), "resq.scales": json.dumps(scales)}
    )
    return out


def frames(mod: tvm.IRModule, count: int, seed: int = 0) -> list[np.ndarray]:
    """Return ``count`` similar random frames for the module's input."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(d) for d in mod["main"].params[0].ty.shape)
    first = rng.standard_normal(shape).astype("float32")
    return [first] + [
        first + 0.2 * rng.standard_normal(shape).astype("float32") for _ in range(count - 1)
    ]


def with_policy(
    mod: tvm.IRModule, tau: float, gate: dict[str, float] | None = None
) -> tvm.IRModule:
    """Attach a policy to an annotated module: the same tau everywhere, steps as wide as codes."""
    main = mod["main"]
    layers = json.loads(str(main.attrs["resq.layers"]))
    graph = Graph.of(main)
    choices = {}
    for var, call in graph.layers():
        pool = Scheme.parse(layers[var.name]).residual.pool
        shifts = [pool[-1] - bits if bits else 0 for bits in pool]
        for piece in concat_pieces(call.args[0], graph.producers):
            choices[choice_name(piece.name, pool)] = {"shifts": shifts, "tau": tau}
    gates = {} if gate is None else {graph.func.params[0].name: gate}
    out = tvm.IRModule(dict(mod.functions_items()))
    policy = json.dumps({"choices": choices, "gates": gates})
    out["main"] = main.with_attr("resq.dynamic", policy)
    return out

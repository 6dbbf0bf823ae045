import json

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from resq_tvm.errors import UnsupportedOperatorError
from resq_tvm.passes.canonicalize.check import check_canonical
from resq_tvm.passes.canonicalize.decompose import Decompose
from resq_tvm.passes.canonicalize.layout import ToChannelsLast
from resq_tvm.passes.canonicalize.name_layers import NameLayers, fingerprint, layer_name
from resq_tvm.passes.canonicalize.name_values import NameValues
from resq_tvm.passes.canonicalize.simplify import Simplify
from resq_tvm.passes.canonicalize.sink_concat import SinkConcat
from resq_tvm.passes.canonicalize.unify_constants import UnifyConstants
from resq_tvm.passes.graph import Graph
from tests.passes.canonicalize.compare import expect

S = np.arange(1, 9, dtype="float32")


def test_batch_norm_split_and_constants_are_spelled_out() -> None:
    mean, variance = S, S + 1
    scale = (S / np.sqrt(variance.astype("float64") + 0.5)).astype("float32").reshape(1, -1, 1, 1)
    scale64 = S.astype("float64") / np.sqrt(variance.astype("float64") + 0.5)
    shift = (S - mean.astype("float64") * scale64).astype("float32").reshape(1, -1, 1, 1)
    two, minus, half = np.float32(2), np.float32(-2), np.float32(0.5)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8, 5, 5), "float32")):
            with R.dataflow():
                t = R.nn.batch_norm(
                    x, R.const(S), R.const(S), R.const(mean), R.const(variance), axis=1,
                    epsilon=0.5, training=False,
                )  # fmt: skip
                n = t[0]
                s = R.split(n, 2, axis=1)
                a = R.subtract(s[0], R.const(two))
                b = R.divide(s[1], R.const(two))
                c = R.add(R.const(two), R.maximum(b, R.const(np.float32(0))))
                gv = (a, c)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 8, 5, 5), "float32")):
            with R.dataflow():
                m = R.multiply(x, R.const(scale))
                n = R.add(m, R.const(shift))
                s0 = R.strided_slice(n, [1], [0], [4])
                s1 = R.strided_slice(n, [1], [4], [8])
                a = R.add(s0, R.const(minus))
                b = R.multiply(s1, R.const(half))
                r = R.nn.relu(b)
                c = R.add(r, R.const(two))
                gv = (a, c)
                R.output(gv)
            return gv

    expect(lambda m: Simplify()(Decompose()(m)), Before, After)


def test_identities_vanish() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 8), "float32")):
            with R.dataflow():
                a = R.reshape(R.reshape(x, R.shape([200])), R.shape([1, 5, 5, 8]))
                b = R.permute_dims(R.permute_dims(a, [0, 2, 3, 1]), [0, 3, 1, 2])
                c = R.clip(R.nn.relu(b), -1, 6)
                d = R.add(R.multiply(c, R.const(np.float32(1))), R.const(np.float32(0)))
                e = R.nn.relu(R.nn.pad(d, [0, 0, 0, 0, 0, 0, 0, 0]))
                f = R.image.resize2d(e, (5, 5), layout="NHWC", method="linear")
                g = R.strided_slice(R.concat([f], axis=3), [1], [0], [5])
                gv = (g,)
                R.output(gv)
            return gv

    made = Simplify()(Simplify()(Before))
    assert [str(e.op.name) for _, e in Graph.of(made["main"]).bindings[:-1]] == ["relax.clip"]
    low, high = made["main"].body.blocks[0].bindings[0].value.args[1:]
    assert (float(low.value), float(high.value)) == (0, 6)


def test_flattened_prelu_becomes_one_per_channel() -> None:
    flat = np.broadcast_to(S, (5, 5, 8)).reshape(-1).copy()

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 8), "float32")):
            with R.dataflow():
                a = R.reshape(x, R.shape([200]))
                b = R.nn.prelu(a, R.const(flat), axis=0)
                c = R.reshape(b, R.shape([1, 5, 5, 8]))
                gv = (c,)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 8), "float32")):
            with R.dataflow():
                c = R.nn.prelu(x, R.const(S), axis=3)
                gv = (c,)
                R.output(gv)
            return gv

    # The reshape around it dies with the next pass.
    expect(lambda m: UnifyConstants()(Simplify()(m)), Before, After)


def _described(mod: tvm.IRModule, layout: str) -> tvm.IRModule:
    entry = [{"name": "x", "shape": [1, 2, 4, 6], "layout": layout}]
    return tvm.IRModule({"main": mod["main"].with_attr("resq.inputs", json.dumps(entry))})


def test_channel_first_becomes_channel_last_without_permutations() -> None:
    given = np.random.default_rng(2).standard_normal((8, 2, 2, 2)).astype("float32")
    dense = np.random.default_rng(1).standard_normal((8 * 3 * 5, 4)).astype("float32")
    permuted = dense.reshape(8, 3, 5, 4).transpose(1, 2, 0, 3).reshape(-1, 4)
    weight = given.transpose(0, 2, 3, 1)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 4, 6), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, R.const(given))
                b = R.add(y, R.const(S.reshape(1, 8, 1, 1)))
                f = R.reshape(R.nn.relu(b), R.shape([1, 120]))
                d = R.matmul(f, R.const(dense))
                p = R.permute_dims(b, [0, 2, 3, 1])
                gv = (d, p, b)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 2), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, R.const(weight), data_layout="NHWC", kernel_layout="OHWI")
                b = R.add(y, R.const(S))
                r = R.nn.relu(b)
                f = R.reshape(r, R.shape([1, 120]))
                d = R.matmul(f, R.const(permuted))
                gv = (d, b, b)
                R.output(gv)
            return gv

    made = UnifyConstants()(ToChannelsLast()(_described(Before, "NCHW")))
    layouts = [e["layout"] for e in json.loads(str(made["main"].attrs["resq.outputs"]))]
    assert layouts == ["", "NHWC", "NCHW"]
    expect(lambda m: m, made, After)


def test_input_that_the_model_itself_permutes_is_taken_as_nhwc() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 4, 6), "float32")):
            with R.dataflow():
                p = R.permute_dims(x, [0, 3, 1, 2])
                y = R.nn.max_pool2d(p, [2, 2])
                gv = (y,)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 2, 4, 6), "float32")):
            with R.dataflow():
                y = R.nn.max_pool2d(x, [2, 2], padding=[0, 0, 0, 0], layout="NHWC")
                gv = (y,)
                R.output(gv)
            return gv

    made = expect(ToChannelsLast(), _described(Before, "NCHW"), After)
    assert json.loads(str(made["main"].attrs["resq.inputs"]))[0]["layout"] == "NHWC"


def test_concat_sinks_below_elementwise_operators() -> None:
    low, high = S[:3].copy(), S[3:].copy()

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 3), "float32"), y: R.Tensor((1, 5, 5, 5), "float32")):
            with R.dataflow():
                c = R.concat([x, y], axis=3)
                m = R.multiply(c, R.const(S))
                p = R.nn.prelu(m, R.const(S), axis=3)
                a = R.add(p, c)
                gv = (a,)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 3), "float32"), y: R.Tensor((1, 5, 5, 5), "float32")):
            with R.dataflow():
                mx = R.multiply(x, R.const(low))
                my = R.multiply(y, R.const(high))
                px = R.nn.prelu(mx, R.const(low), axis=3)
                py = R.nn.prelu(my, R.const(high), axis=3)
                ax = R.add(px, x)
                ay = R.add(py, y)
                c = R.concat([ax, ay], axis=3)
                gv = (c,)
                R.output(gv)
            return gv

    expect(lambda m: UnifyConstants()(SinkConcat()(m)), Before, After)


def test_layers_are_named_after_their_weights() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 2, 3, 3)).astype("float32")
    names = json.dumps({fingerprint(weight.transpose(3, 1, 0, 2)): "stem.0.weight"})
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 9, 9, 2), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            layers = [
                bb.emit(
                    relax.op.nn.conv2d(x, relax.const(w), data_layout="NHWC", kernel_layout="OIHW"),
                    name_hint="stem_0",
                )
                for w in (weight + 1, weight, weight)
            ]
            gv = bb.emit_output(relax.Tuple([*layers, bb.emit(relax.op.nn.relu(x))]))
        bb.emit_func_output(gv)
    mod = bb.finalize()
    mod = tvm.IRModule({"main": mod["main"].with_attr("resq.names", names)})
    made = NameValues()(NameLayers()(mod))
    found = [v.name for v, _ in Graph.of(made["main"]).bindings[:-1]]
    assert found == ["conv2d_0", "stem_0", "stem_0_1", "relu_0"]
    assert "resq.names" not in made["main"].attrs


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("stem.0.weight", "stem_0"),
        ("encoder__level1__conv__weight", "encoder__level1__conv"),
        ("conv2d_1/Kernel", "conv2d_1"),
        ("depthwise_conv2d/depthwise", "depthwise_conv2d"),
        ("7/x:0", "layer_7_x_0"),
    ],
)
def test_layer_name(source: str, name: str) -> None:
    assert layer_name(source) == name


def test_what_has_no_canonical_form_is_listed_completely() -> None:
    per_pixel = np.ones((1, 4, 6, 2), "float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 2), "float32")):
            with R.dataflow():
                good = R.nn.relu(x)
                first = R.cos(good)
                second = R.add(first, R.const(per_pixel))
                third = R.mean(second, axis=[3], keepdims=True)
                gv = (third,)
                R.output(gv)
            return gv

    with pytest.raises(UnsupportedOperatorError) as caught:
        check_canonical(Before, "net.onnx")
    assert [place for _, place in caught.value.operators] == ["first", "second", "third"]
    assert str(caught.value).startswith("net.onnx: 3 unsupported operator(s): cos at first, add (")
    assert "\n" not in str(caught.value)

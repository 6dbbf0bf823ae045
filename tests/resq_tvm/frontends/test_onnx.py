"""ONNX models against ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from resq_tvm.errors import ModelError, UnsupportedOperatorError
from resq_tvm.network import load
from resq_tvm.passes.graph import Graph
from tests.data import data_path
from tests.resq_tvm.frontends.fidelity import close, run

RNG = np.random.default_rng(0)


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype("float32"), name)


def save(
    path: Path, nodes: list[Any], constants: list[Any], shape: list[Any], kind: int = 1
) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


def small_net(path: Path, shape: list[Any]) -> Path:
    """Convolution with auto padding, norm, PReLU, transposed convolution, resize, gemm."""
    sizes = numpy_helper.from_array(np.array([1, 1, 2, 2], "float32"), "scales")
    ones = np.abs(RNG.standard_normal(8)).astype("float32") + 0.5
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        helper.make_node("PRelu", ["n", "slope"], ["p"]),
        helper.make_node("ConvTranspose", ["p", "up.weight"], ["t"], strides=[2, 2]),
        helper.make_node("Resize", ["t", "", "scales"], ["r"], mode="linear"),
        helper.make_node("HardSigmoid", ["r"], ["h"], alpha=0.2, beta=0.4),
        helper.make_node("MaxPool", ["h"], ["x"], kernel_shape=[3, 3], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["x"], ["a"]),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "d"], ["out"], transB=1),
    ]
    constants = [
        weight("stem.weight", 8, 3, 3, 3),
        weight("b", 8),
        weight("g", 8),
        weight("m", 8),
        numpy_helper.from_array(ones, "v"),
        weight("slope", 8, 1, 1),
        weight("up.weight", 8, 4, 2, 2),
        sizes,
        weight("fc.weight", 5, 4),
        weight("d", 5),
    ]
    return save(path, nodes, constants, shape)


def reference(path: Path, x: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path)).run(None, {"image": x})


@pytest.mark.parametrize("shape", [[1, 3, 8, 10], ["batch", 3, 8, 10]])
def test_canonical_main_is_the_model(tmp_path: Path, shape: list[Any]) -> None:
    path = small_net(tmp_path / "small.onnx", shape)
    x = RNG.standard_normal((1, 3, 8, 10)).astype("float32")
    network = load(path)
    close(run(network, x)[0], reference(path, x)[0])
    assert (network.name, network.source) == ("small", "small.onnx")
    assert [v.name for v, _ in Graph.of(network.module["main"]).layers()] == ["stem", "up", "fc"]
    assert [t.name for t in (*network.inputs, *network.outputs)] == ["image", "out"]


def test_open_sizes_need_a_shape(tmp_path: Path) -> None:
    path = small_net(tmp_path / "open.onnx", ["n", 3, "h", "w"])
    with pytest.raises(ModelError, match=r"open shape \?x3x\?x\?.*--input-shape"):
        load(path)
    with pytest.raises(ModelError, match="not 1x4x8x10"):
        load(path, input_shape=(1, 4, 8, 10))
    x = RNG.standard_normal((1, 3, 6, 10)).astype("float32")
    close(run(load(path, input_shape=x.shape), x)[0], reference(path, x)[0])


def test_model_that_takes_nhwc(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["c"]),
        helper.make_node("Transpose", ["c"], ["out"], perm=[0, 2, 3, 1]),
    ]
    path = save(tmp_path / "last.onnx", nodes, [weight("w", 4, 3, 3, 3)], [1, 8, 9, 3])
    x = RNG.standard_normal((1, 8, 9, 3)).astype("float32")
    network = load(path)
    assert [t.layout for t in (*network.inputs, *network.outputs)] == ["NHWC", "NHWC"]
    assert len(Graph.of(network.module["main"]).bindings) == 2
    close(run(network, x)[0], reference(path, x)[0])


def test_unsupported_nodes_are_all_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["image"], ["d"], name="first"),
        helper.make_node("MyOp", ["d"], ["e"], domain="org.example"),
        helper.make_node("Relu", ["e"], ["out"]),
    ]
    path = save(tmp_path / "odd.onnx", nodes, [], [1, 3, 8, 8])
    with pytest.raises(UnsupportedOperatorError) as caught:
        load(path)
    assert caught.value.operators == [("Det", "first"), ("MyOp", "e")]


def test_integer_input_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["image"], ["out"], to=TensorProto.FLOAT)]
    path = save(tmp_path / "int.onnx", nodes, [], [1, 3, 8, 8], TensorProto.UINT8)
    with pytest.raises(ModelError, match="'image' is uint8"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07" * 50])
def test_what_is_not_a_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_espnet() -> None:
    path = data_path("models/espnet_camvid.onnx")
    network = load(path)
    x = (RNG.standard_normal((1, 3, 360, 480)) * 0.01).astype("float32")
    close(run(network, x)[0], reference(path, x)[0])
    layers = [v.name for v, _ in Graph.of(network.module["main"]).layers()]
    assert len(layers) == len(set(layers)) == 85
    assert layers[0] == "encoder__level1__conv"

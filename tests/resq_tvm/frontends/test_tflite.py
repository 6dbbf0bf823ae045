"""TFLite models against LiteRT."""

from pathlib import Path

import numpy as np
import pytest

from resq_tvm.errors import ModelError, UnsupportedOperatorError
from resq_tvm.network import load
from resq_tvm.passes.graph import Graph, op_name
from tests.data import data_path
from tests.resq_tvm.frontends.fidelity import close, run


def reference(path: Path, x: np.ndarray) -> list[np.ndarray]:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    kernels = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    model = interpreter.Interpreter(str(path), experimental_op_resolver_type=kernels)
    model.allocate_tensors()
    model.set_tensor(model.get_input_details()[0]["index"], x)
    model.invoke()
    return [model.get_tensor(o["index"]) for o in model.get_output_details()]


# BlazePose's mask amplifies rounding: LiteRT's own two sets of kernels differ by 1e-4 here.
@pytest.mark.parametrize(
    ("name", "layers", "tolerance"), [("blazepose_full", 96, 2e-4), ("face_landmark", 45, 2e-5)]
)
def test_canonical_main_is_the_model(name: str, layers: int, tolerance: float) -> None:
    path = data_path(f"models/{name}.tflite")
    network = load(path)
    x = np.random.default_rng(0).random(network.inputs[0].shape, dtype=np.float32)
    for got, want in zip(run(network, x), reference(path, x), strict=True):
        close(got, want, tolerance)
    names = [v.name for v, _ in Graph.of(network.module["main"]).layers()]
    assert len(names) == len(set(names)) == layers
    assert all(n.startswith(("conv", "depthwise_conv2d", "output_")) for n in names)
    assert network.inputs[0].layout == "NHWC"


def test_padding_and_prelu_are_canonical() -> None:
    graph = Graph.of(load(data_path("models/face_landmark.tflite")).module["main"])
    slopes = [e for _, e in graph.bindings if op_name(e) == "relax.nn.prelu"]
    assert len(slopes) == 23
    assert all(int(e.attrs.axis) == 3 for e in slopes)
    # What is left of padding adds channels.
    pads = [e for _, e in graph.bindings if op_name(e) == "relax.nn.pad"]
    assert all(not any(int(v) for v in e.attrs.pad_width[:6]) for e in pads)


def test_unsupported_operator_is_named_with_its_place() -> None:
    with pytest.raises(UnsupportedOperatorError) as caught:
        load(data_path("models/selfie_segmentation.tflite"))
    assert caught.value.operators == [("Convolution2DTransposeBias", "segment")]


def test_shape_must_be_the_models() -> None:
    with pytest.raises(ModelError, match="not 1x64x64x3"):
        load(data_path("models/face_landmark.tflite"), input_shape=(1, 64, 64, 3))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\0\0\0\0TFL3" + b"\xff" * 40])
def test_what_is_not_a_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.tflite") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_truncated_model(tmp_path: Path) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(data_path("models/face_landmark.tflite").read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"cut\.tflite"):
        load(path)

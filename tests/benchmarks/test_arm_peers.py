"""What the benchmark of peers on emulated boards rests on: the same network, counted alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import arm_peers
from benchmarks.arm_peers import Row, fastest, line, measure
from benchmarks.networks import Workload
from benchmarks.tflite_onnx import convert
from tests.data import data_path
from tests.tools import need
from tests.userlands import userland_or_skip

CHANNELS, SIZE = 16, 24


@pytest.mark.slow
def test_a_tflite_network_is_the_same_as_onnx(tmp_path: Path, rng: np.random.Generator) -> None:
    ort = pytest.importorskip("onnxruntime")
    source = data_path("models/blazepose_full.tflite")
    convert(source, tmp_path / "net.onnx")
    session = ort.InferenceSession(str(tmp_path / "net.onnx"))
    (entry,) = session.get_inputs()
    frame = rng.random(entry.shape, dtype=np.float32)
    found = session.run(None, {entry.name: frame})[0]
    expected = arm_peers.float_output(Workload("blazepose", "", source, []), frame)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_operators_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="operator PRELU cannot be written as ONNX"):
        convert(data_path("models/face_landmark.tflite"), tmp_path / "net.onnx")


def convolution(folder: Path, rng: np.random.Generator) -> tuple[Path, np.ndarray]:
    """Write a 1×1 convolution and return its weights, too."""
    weight = rng.standard_normal((CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
    shape = [1, CHANNELS, SIZE, SIZE]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx", weight[:, :, 0, 0]


@pytest.mark.slow
@pytest.mark.aarch64
def test_one_inference_is_counted(tmp_path: Path, rng: np.random.Generator) -> None:
    need("aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump")
    pytest.importorskip("onnxruntime")
    userland_or_skip("peers", "cortex-a72")
    model, weight = convolution(tmp_path, rng)
    frames = [rng.standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32) for _ in range(2)]
    load = Workload("net", "", model, frames)
    expected = np.einsum("oc,nchw->nohw", weight, frames[1])
    row = measure(load, "cortex-a72", "onnxruntime", model, expected)
    assert row.error < 1e-5
    # Four multiply-accumulates per instruction; a call from Python costs some 100 000.
    least = CHANNELS * CHANNELS * SIZE * SIZE / 4
    assert least < row.instructions < 100 * least
    assert row.instructions / 3 < row.cycles < 20 * row.instructions


def test_ours_are_related_to_the_faster_peer() -> None:
    rows = [
        Row("net", "cortex-a72", "one", 1, 3_000_000, 2.0, 0.1),
        Row("net", "cortex-a72", "other", 1, 2_000_000, 1.3, 0.1),
        Row("net", "cortex-a53", "other", 1, 1_000_000, 0.7, 0.1),
        Row("net", "cortex-a72", "ours", 1, 1_000_000, 0.7, 0.1, peer=False),
    ]
    assert fastest(rows, rows[3]) == 2_000_000
    assert line(rows[3], 2_000_000).endswith("| 0.7 | 2.00 | 0.100 |")
    assert fastest(rows, Row("net", "cortex-a76", "ours", 1, 1, 1.0, 0.0, peer=False)) is None

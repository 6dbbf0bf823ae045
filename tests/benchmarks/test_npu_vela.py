"""What the comparison with an independent estimator rests on: the same layers, told rightly."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import resq_tvm as resq
from benchmarks import npu_vela
from benchmarks.npu_tflite import NAME, Layer, network_of
from benchmarks.npu_vela import Estimate, Row, estimate_vela, layers_of, page, systolic_cycles
from resq_tvm import bops
from resq_tvm.targets.npu.description import read_npu

NPU = read_npu(npu_vela.MACHINE)
LAYERS = [
    Layer(9, 12, 3, 8, (3, 3), (2, 2)),
    Layer(9, 12, 16, 24, (1, 1)),
    Layer(9, 12, 8, 16, (3, 3), (1, 1), (2, 2)),
    Layer(8, 10, 16, 16, (3, 3), depthwise=True),
]


def alone(layer: Layer) -> Layer:
    """Return the layer without neighbours, so that its output is the network's."""
    return Layer(
        layer.h, layer.w, layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.dilation,
        layer.depthwise, reads_frame=True, writes_result=True,
    )  # fmt: skip


def expected(layer: Layer, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the layer on codes; sums are those of the integers."""
    taps = (
        weights[0].transpose(2, 0, 1)[:, None] if layer.depthwise else weights.transpose(0, 3, 1, 2)
    )
    pads = []
    for n in (1, 0):
        size, reach = (layer.h, layer.w)[n], (layer.kernel[n] - 1) * layer.dilation[n] + 1
        total = max(0, (-(-size // layer.stride[n]) - 1) * layer.stride[n] + reach - size)
        pads += [total // 2, total - total // 2]
    padded = F.pad(torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float64)), pads)
    groups = layer.outputs if layer.depthwise else 1
    sums = F.conv2d(
        padded, torch.from_numpy(taps.astype(np.float64)), None, layer.stride,
        dilation=layer.dilation, groups=groups,
    )  # fmt: skip
    return sums.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_tflite_network_is_the_layer(layer: Layer, rng: np.random.Generator) -> None:
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = runtime.Interpreter(model_content=network_of(alone(layer)))
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    x = rng.integers(-20, 21, source["shape"], np.int8)
    interpreter.set_tensor(source["index"], x)
    interpreter.invoke()
    found = interpreter.get_tensor(result["index"]).astype(np.float64)
    details = {d["name"]: d for d in interpreter.get_tensor_details()}
    sums = expected(layer, x, interpreter.get_tensor(details["weights"]["index"]))
    (weight_scale,) = set(details["weights"]["quantization_parameters"]["scales"].tolist())
    # Input and output have the same scale.
    np.testing.assert_allclose(found, np.clip(sums * weight_scale, 0, 127), atol=0.51)
    assert len(np.unique(found)) > 10
    assert found.shape[1] * found.shape[2] == layer.pixels


def test_neighbours_stand_around_a_layer_inside() -> None:
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = runtime.Interpreter(model_content=network_of(LAYERS[1]))
    names = [d["op_name"] for d in interpreter._get_ops_details()]
    assert names.count("MAX_POOL_2D") == 4
    assert names.count("CONV_2D") == 1
    assert NAME in {d["name"] for d in interpreter.get_tensor_details()}


@pytest.mark.slow
def test_layers_are_those_of_the_network() -> None:
    network = resq.load("zoo:ddrnet23_slim", input_shape=(1, 3, 128, 256))
    layers = layers_of(network)
    names = [name for alike in layers.values() for name in alike]
    costs = bops.count(network.module, 1)
    assert sorted(names) == sorted(cost.name for cost in costs.layers)
    assert sum(layer.macs * len(alike) for layer, alike in layers.items()) == costs.macs
    assert sum(layer.reads_frame for layer in layers) == 1
    assert sum(layer.writes_result for layer in layers) == 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (torch.nn.ConvTranspose2d(4, 4, 2, 2), r"is a relax\.nn\.conv2d_transpose"),
        (torch.nn.Conv2d(4, 8, 3, groups=2), "has groups"),
    ],
    ids=["transposed", "grouped"],
)
def test_layers_without_a_counterpart_are_refused(layer: torch.nn.Module, message: str) -> None:
    network = resq.load(torch.nn.Sequential(layer).eval(), input_shape=(1, 4, 8, 8))
    with pytest.raises(SystemExit, match=message):
        layers_of(network)


def test_the_systolic_formula() -> None:
    # 32 × 16 products: 36 terms are 2 passes, 40 outputs 3, 6 pixels + 2·32 + 16 − 2 cycles each.
    assert systolic_cycles(Layer(2, 3, 4, 40, (3, 3)), NPU) == 2 * 3 * 84
    # Depthwise: 9 terms, and a pass of its own for every output.
    assert systolic_cycles(Layer(2, 3, 40, 40, (3, 3), depthwise=True), NPU) == 40 * 84


@pytest.fixture
def vela() -> str:
    """Return the estimator of this environment."""
    path = Path(sys.executable).parent / "vela"
    if not path.is_file():
        pytest.skip("ethos-u-vela is not installed (pip install .[bench])")
    return str(path)


@pytest.mark.parametrize("depthwise", [False, True])
def test_vela_estimates_the_layer_and_not_its_neighbours(
    vela: str, tmp_path: Path, depthwise: bool
) -> None:
    low, high = (Layer(h, 32, 64, 64, (3, 3), depthwise=depthwise) for h in (16, 32))
    first, second = (estimate_vela(layer, vela, tmp_path) for layer in (low, high))
    for layer, estimate in ((low, first), (high, second)):
        assert estimate.parts["matrix"] >= layer.macs / NPU.macs_per_cycle
        assert estimate.cycles == max(estimate.parts.values())
    if not depthwise:  # the array is nearly full, and the poolings take more than what is missing
        assert first.parts["matrix"] < 1.1 * low.macs / NPU.macs_per_cycle
    assert second.parts["matrix"] == pytest.approx(2 * first.parts["matrix"], rel=0.1)


def test_a_missing_estimator_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="install ethos-u-vela"):
        npu_vela.version_of(str(tmp_path / "vela"))


def row(size: int, ours: float, its: float) -> Row:
    layer = Layer(size, size, 64, 64, (3, 3))
    return Row(
        layer,
        (f"a{size}", f"b{size}"),
        Estimate(ours, {"matrix": ours, "dram": 1.0}),
        Estimate(its, {"matrix": its / 2, "dram": its}),
        systolic_cycles(layer, NPU),
    )


def test_the_page_tells_order_sums_and_what_is_far_apart() -> None:
    rows = [row(8, 100, 100), row(16, 400, 500), row(24, 900, 2700), row(32, 1600, 2600)]
    text = "\n".join(page("net", rows, NPU))
    assert "ours and Vela 0.800" in text  # two neighbours of four change places: 1 − 6·2 / 60
    assert "ours and the formula 1.000" in text
    assert "ours 0.01, " in text  # 2 × 3000
    far = text.split("Farthest apart: ")[1]
    assert far.startswith("3×3, 64→64, 24×24 (0.33: ours is bound by matrix, Vela's by dram)")
    assert text.count("| 3×3, 64→64, ") == len(rows)

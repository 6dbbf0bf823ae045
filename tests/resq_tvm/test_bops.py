"""The accountant against counts by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tvm import relax

from resq_tvm import bops

R = relax.op
LAYOUT = {"data_layout": "NHWC", "kernel_layout": "OHWI"}


def weight(*shape: int) -> Any:
    return relax.const(np.ones(shape, np.float32))


def network(layers: dict[str, str] | None = None) -> Any:
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 10, 8, 6), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            y = bb.emit(R.nn.conv2d(x, weight(4, 3, 3, 6), [2, 2], [1] * 4, **LAYOUT), "strided")
            y = bb.emit(
                R.nn.conv2d(y, weight(4, 3, 3, 4), padding=[2] * 4, dilation=[2, 2], **LAYOUT),
                "dilated",
            )
            y = bb.emit(R.nn.conv2d(y, weight(4, 3, 3, 1), groups=4, **LAYOUT), "depth")
            y = bb.emit(R.nn.conv2d(y, weight(6, 1, 1, 2), groups=2, **LAYOUT), "group")
            y = bb.emit(R.nn.relu(y), "act")
            y = bb.emit(
                R.nn.conv2d_transpose(y, weight(5, 2, 2, 6), [2, 2], **LAYOUT), "transposed"
            )
            y = bb.emit(R.reshape(y, (1, -1)), "flat")
            y = bb.emit_output(R.matmul(y, weight(6 * 4 * 5, 7)), "dense")
        bb.emit_func_output(y)
    mod = bb.finalize()
    if layers is not None:
        mod["main"] = mod["main"].with_attr("resq.layers", json.dumps(layers))
    return mod


MACS = {
    "strided": 5 * 4 * 4 * 6 * 9,
    "dilated": 5 * 4 * 4 * 4 * 9,
    "depth": 3 * 2 * 4 * 9,
    "group": 3 * 2 * 6 * 2,
    "transposed": 3 * 2 * 6 * 5 * 4,
    "dense": 120 * 7,
}


def test_multiply_accumulates_by_hand() -> None:
    report = bops.count(network(), 1)
    assert {layer.name: layer.macs for layer in report.layers} == MACS
    assert [layer.op for layer in report.layers] == [
        "conv2d",
        "conv2d",
        "depthwise",
        "grouped",
        "conv2d_transpose",
        "matmul",
    ]
    assert report.macs == sum(MACS.values())


def test_bit_operations_are_weighted_and_amortized() -> None:
    layers = dict.fromkeys(MACS, "W8A8->W4A3") | {"dense": "float", "group": "W4A8->W2A8"}
    report = bops.count(network(layers), 4)
    plain = sum(MACS.values()) - MACS["dense"] - MACS["group"]
    key = 64 * plain + 32 * MACS["group"] + 1024 * MACS["dense"]
    residual = 12 * plain + 16 * MACS["group"] + 1024 * MACS["dense"]
    assert (report.bops_keyframe, report.bops_residual) == (key, residual)
    assert report.bops_amortized == pytest.approx((key + 3 * residual) / 4)
    assert report.peak == key
    assert report.float_layers == ("dense",)


def test_frame_quantization_costs_the_same_on_every_frame() -> None:
    report = bops.count(network(dict.fromkeys(MACS, "W8A4")), 3)
    assert report.bops_residual == report.bops_keyframe == 32 * sum(MACS.values())
    assert report.bops_amortized == report.bops_keyframe


def test_forms() -> None:
    report = bops.count(network(dict.fromkeys(MACS, "W8A8->W4A4") | {"dense": "float"}), 2)
    data = json.loads(report.to_json())
    assert {"macs", "bops_keyframe", "bops_residual", "bops_amortized", "peak"} <= data.keys()
    assert data["layers"][0]["name"] == "strided"
    assert data["layers"][0]["key_bits"] == "W8A8"
    text = report.to_text()
    assert "float (counted as 32 x 32 bits): dense" in text
    assert "depthwise" in text


def test_pools_count_with_the_most_bits_and_the_choice() -> None:
    layers = dict.fromkeys(MACS, "W8A8->W4A{0,4,8}") | {"dense": "float", "strided": "W8A8->W4A3"}
    report = bops.count(network(layers), 3)
    chosen = ("dilated", "depth", "group", "transposed")
    most = 32 * sum(MACS[name] for name in chosen) + 12 * MACS["strided"] + 1024 * MACS["dense"]
    # What the four layers read: 5x4x4, 5x4x4, 3x2x4 and 3x2x6 values, two candidates each.
    policy = 2 * 64 * (5 * 4 * 4 + 5 * 4 * 4 + 3 * 2 * 4 + 3 * 2 * 6)
    assert report.bops_policy == policy
    assert report.bops_residual == report.bops_residual_most == most + policy
    assert not report.measured
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["group"].residual_bits == "W4A{0,4,8}"
    assert by_name["strided"].bops_residual == 12 * MACS["strided"]
    assert report.to_dict()["policy"][0] == {
        "value": "strided", "pool": (0, 4, 8), "bops": 2 * 64 * 80
    }  # fmt: skip
    table = report.to_text().splitlines()
    assert len({len(line) for line in table[: 1 + len(MACS)]}) == 1  # columns stay aligned
    assert "upper bound" in table[-2]


def test_measured_bits_replace_the_most() -> None:
    layers = dict.fromkeys(MACS, "W8A8->W8A{0,8}") | {"strided": "W8A8->W8A8"}
    report = bops.count(network(layers), 2, {"dilated": 0.5, "depth": 0.0})
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["dilated"].bops_residual == MACS["dilated"] * 4
    assert by_name["depth"].bops_residual == 0
    assert by_name["group"].bops_residual == 64 * MACS["group"]
    saved = 60 * MACS["dilated"] + 64 * MACS["depth"]
    assert report.bops_residual_most - report.bops_residual == saved
    assert report.bops_amortized_most - report.bops_amortized == saved / 2
    assert report.peak == report.bops_residual_most  # one frame may still cost that much
    assert "most bits it would be" in report.to_text()


def test_static_schemes_say_nothing_of_a_policy() -> None:
    report = bops.count(network(dict.fromkeys(MACS, "W8A8->W4A4")), 2)
    assert report.policy == () and "bops_policy" not in report.totals()

"""What the page of networks on NPUs is made of."""

from __future__ import annotations

from typing import Any

import pytest

import resq_tvm as resq
from benchmarks import npu_networks
from benchmarks.npu_networks import UNITS, Figures, Network, Result, measure, roofline, table
from resq_tvm.targets.npu.description import preset_npus

NPU = preset_npus()["npu-mobile"]


def test_the_roofline_takes_the_slower_of_products_and_bytes(monkeypatch: Any) -> None:
    import torch

    # One layer that products bound (1·10⁶ pixels' worth of sums) and one that bytes bound.
    for layer, products in (
        (torch.nn.Conv2d(256, 256, 3, padding=1), True),
        (torch.nn.Conv2d(4, 4, 1), False),
    ):
        shape = (1, layer.in_channels, 16, 24)
        network = resq.load(torch.nn.Sequential(layer).eval(), input_shape=shape)
        frame = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
        quantized = resq.calibrate(network, [[frame]], "W4A4", period=1)
        if products:
            # W4A4 runs at twice the rate.
            cycles = 16 * 24 * 256 * 256 * 9 / (NPU.macs_per_cycle * 2)
        else:
            cycles = (4 * 4 + 2 * 16 * 24 * 4) * 0.5 / NPU.bytes_per_cycle
        assert roofline(quantized.module, NPU) == pytest.approx(cycles / NPU.clock_hz * 1e3)


def figures(ms: float, state: float = 0.0) -> Figures:
    bound = dict(zip(UNITS, (0.5, 0.25, 0.25, 0.0), strict=True))
    return Figures(ms, ms - state, dict.fromkeys(UNITS, ms / 2), bound, 0.0, 10.0, state)


def test_the_page_tells_means_ratios_and_differences() -> None:
    bops = {"keyframe": 100.0, "residual": 25.0, "amortized": 50.0}
    results = [
        Result("ddrnet", "W8A8", 4.0, 3.0, figures(4.2), None, bops),
        Result("ddrnet", "W8A8->W4A4", None, 3.0, figures(6.0, 0.3), figures(3.0, 0.9), bops),
        Result("hrnet", "W8A8", None, 3.0, figures(1.0), None, bops),
    ]
    lines = table(results, NPU)
    assert "simulated" in lines[0]
    (frame,) = [line for line in lines if line.startswith("| ddrnet | W8A8 |")]
    assert frame.startswith("| ddrnet | W8A8 | 4.20 | 4.00 | +5.0% | 3.00 |")
    pair = next(line for line in lines if line.startswith("| ddrnet | W8A8->W4A4 | 6.00"))
    # (6 + 2·3) / 3 = 4 of 4.2; without state (5.7 + 2·2.1) / 3 = 3.3.
    assert "| 3.00 (0.71) | 4.00 (0.95) | 0.50 | 3.30 (0.79) | 0.9 |" in pair
    assert "| ddrnet | W8A8->W4A4 | residual | 50% | 25% | 25% | 0% |" in lines
    assert any(line.startswith("| hrnet | W8A8 | 1.00 |  |  |") for line in lines)


@pytest.mark.slow
def test_a_network_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(npu_networks.NETWORKS, "tiny", Network("zoo:tiny_seg", (1, 3, 32, 48), {}))
    frame, pair = (measure("tiny", scheme, "npu-mobile") for scheme in ("W8A8", "W8A8->W4A4"))
    assert frame.residual is None
    assert frame.roofline < frame.keyframe.ms
    assert frame.bops["keyframe"] == pair.bops["keyframe"]
    assert pair.residual is not None
    assert pair.residual.state_megabytes >= 0
    assert pair.amortized(of_state=False) <= pair.amortized()
    assert sum(pair.keyframe.bound.values()) == pytest.approx(1)

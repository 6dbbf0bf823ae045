"""Bits of pixels: a network by hand, random networks, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tvm

from resq_tvm import bops
from resq_tvm.bitmaps import BitSession, measure_bits
from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.quantize.qnet import QuantizedNetwork
from tests.resq_tvm.dynamic_networks import A_BITS, FRAME, MACS, X_BITS, by_hand, clip


def test_bits_of_every_pixel() -> None:
    session = BitSession(by_hand())
    assert session(np.zeros_like(FRAME)) is None
    bits = session(FRAME)
    assert bits is not None
    first, second = session.layers
    assert (first.layer, first.values, first.channels) == ("first", ("x",), (2,))
    assert (second.layer, second.values, second.channels) == ("second", ("first", "x"), (1, 2))
    assert second.sites[1] == first.sites[0]
    np.testing.assert_array_equal(bits.maps[second.sites[0]], A_BITS)
    np.testing.assert_array_equal(bits.maps[second.sites[1]], X_BITS)
    np.testing.assert_array_equal(bits.changed["x"], FRAME[0].any(-1))


def test_without_0_bits_a_pixel_of_zeros_still_counts_as_0() -> None:
    session = BitSession(by_hand((4, 8)))
    session(np.zeros_like(FRAME))
    bits = session(FRAME)
    assert bits is not None
    np.testing.assert_array_equal(bits.maps[session.layers[0].sites[0]], X_BITS)
    statistics = measure_bits(BitSession(by_hand((4, 8))), clip())
    assert list(statistics.layers[0].shares) == [0, 4, 8]


def test_statistics_pool_frames_and_weigh_pieces_by_channels() -> None:
    seen = []
    statistics = measure_bits(
        BitSession(by_hand()), clip(), lambda n, bits: seen.append((n, bits is None))
    )
    assert seen == [(0, True), (1, False), (2, False), (3, False), (4, True)]
    assert statistics.frames == 3
    # One of the three residual frames is the keyframe: nothing changed, no bits.
    assert statistics.changed == {"x": pytest.approx(2 / 3 * 5 / 6)}
    first, second = statistics.layers
    assert first.mean_bits == pytest.approx(2 / 3 * X_BITS.mean())
    assert second.mean_bits == pytest.approx(2 / 3 * (A_BITS.mean() + 2 * X_BITS.mean()) / 3)
    for bits, share in second.shares.items():
        on_pieces = ((A_BITS == bits).mean() + 2 * (X_BITS == bits).mean()) / 3
        assert share == pytest.approx(2 / 3 * on_pieces + (1 / 3 if bits == 0 else 0))
    data = json.loads(json.dumps(statistics.to_dict()))
    assert data["residual_frames"] == 3
    assert data["layers"][1]["values"] == ["first", "x"]
    assert list(data["layers"][1]["shares"]) == ["0", "4", "8"]


def test_operations_of_the_bits_that_were_measured() -> None:
    qnet = by_hand()
    mean_bits = measure_bits(BitSession(qnet), clip()[:2]).mean_bits
    report = bops.count(qnet.module, 4, mean_bits)
    # Weights of 8 bits; per pixel the MACs of `second` split over three channels.
    pixels = 8 * 2 * X_BITS.sum() + 8 * (A_BITS.sum() + 2 * X_BITS.sum())
    # Two candidates below 8 bits, for 6 pixels of 2 and of 1 channels; x is chosen for once.
    policy = 2 * 6 * (2 + 1) * 64
    assert report.bops_policy == policy
    assert report.bops_residual == pixels + policy
    assert report.bops_residual_most == 64 * sum(MACS.values()) + policy
    assert report.bops_keyframe == 64 * sum(MACS.values())
    assert report.bops_amortized == (report.bops_keyframe + 3 * report.bops_residual) / 4
    assert report.measured


def test_one_layer_with_a_fixed_precision_has_no_map() -> None:
    qnet = by_hand()
    main = qnet.module["main"]
    static = "W8A8->W8A8"
    residual = {"x:8": 1.0, "both:0,4,8": 1.0}
    main = main.with_attr("resq.layers", json.dumps(qnet.layers | {"first": static}))
    main = main.with_attr("resq.scales", json.dumps(qnet.scales | {"residual": residual}))
    network = replace(qnet.network, module=tvm.IRModule({"main": main}))
    mixed = QuantizedNetwork(network, qnet.scheme)
    statistics = measure_bits(BitSession(mixed), clip())
    assert [la.layer for la in statistics.layers] == ["second"]
    report = bops.count(mixed.module, 4, statistics.mean_bits)
    assert report.layers[0].bops_residual == 64 * MACS["first"]
    assert report.bops_policy == 2 * 6 * (2 + 1) * 64


def test_without_gates_nothing_is_said_about_the_input() -> None:
    assert measure_bits(BitSession(by_hand(gates=False)), clip()).changed == {}


@pytest.mark.parametrize("state", ["float16", "float32"])
def test_a_frame_that_is_its_keyframe_needs_no_bits(state: str) -> None:
    session = BitSession(by_hand(), state_dtype=state, period=2)
    third = np.full_like(FRAME, 1 / 3)  # not a float16
    assert session(third) is None
    bits = session(third)
    assert bits is not None and not bits.changed["x"].any()
    assert not any(plane.any() for plane in bits.maps.values())
    assert session(third) is None


def test_a_network_without_pools_is_refused() -> None:
    qnet = by_hand()
    main = qnet.module["main"].without_attr("resq.dynamic")
    network = replace(qnet.network, module=tvm.IRModule({"main": main}))
    with pytest.raises(ConfigError, match=r"scheme W8A8->W8A8.*calibrate it with a pool"):
        BitSession(QuantizedNetwork(network, "W8A8->W8A8"))


def test_a_clip_of_keyframes_is_refused() -> None:
    with pytest.raises(ClipError, match="none of the 1 frames is a residual frame at period 4"):
        measure_bits(BitSession(by_hand()), clip()[:1])
    with pytest.raises(ClipError, match="5 frames is a residual frame at period 1"):
        measure_bits(BitSession(by_hand(), period=1), clip())

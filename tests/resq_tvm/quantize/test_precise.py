"""Which layers get 16 bits on keyframes."""

from __future__ import annotations

import pytest

from resq_tvm.errors import ConfigError
from resq_tvm.quantize.calibrate import calibrate
from resq_tvm.quantize.precise import LayerNoise, chosen
from tests.resq_tvm.quantize.networks import moving_clip, small_network

QUICK = {"candidates": 4, "period": 3}


def test_the_most_noise_per_work_comes_first_and_little_never() -> None:
    table = [
        LayerNoise("cheap", 0.3, 0.01),
        LayerNoise("dear", 0.6, 0.5),
        LayerNoise("medium", 0.2, 0.2),
        LayerNoise("quiet", 0.004, 1e-6),
    ]
    assert chosen(table, 1.0) == ["cheap", "dear", "medium"]
    assert chosen(table, 0.3) == ["cheap", "medium"]
    assert chosen(table, 0.005) == []


def test_noisy_layers_get_16_bits_on_keyframes_alone() -> None:
    net, clip = small_network(), [moving_clip(9)]
    some = calibrate(net, clip, "W8A8->W4A4", precise=0.5, **QUICK)
    every = calibrate(net, clip, "W8A8->W4A4", precise=1.0, overrides={"stem": "float"}, **QUICK)
    schemes = set(some.layers.values())
    assert schemes == {"W8A8->W4A4", "W8A16->W4A4"}
    assert every.layers["stem"] == "float"
    assert {s for n, s in every.layers.items() if n != "stem"} == {"W8A16->W4A4"}
    precise = {point for point in some.scales["keyframe"] if point.endswith(":16")}
    assert precise and set(some.scales["residual"]) == {"x:4", "act:4", "both:4"}


def test_layers_that_have_more_bits_already_keep_them() -> None:
    net, clip = small_network(), [moving_clip(9)]
    qnet = calibrate(
        net, clip, "W8A8->W8A4", precise=1.0, overrides={"head": "W8A12->W8A4"}, **QUICK
    )
    assert qnet.layers["head"] == "W8A12->W8A4"


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="use a share of 0 to 1"):
        calibrate(small_network(), [moving_clip(4)], "W8A8->W8A4", precise=share, **QUICK)


def test_layers_of_held_outputs_stay_as_they_are() -> None:
    net, clip = small_network(heads=2), [moving_clip(9)]
    given = {"precise": 1.0, **QUICK}
    usual = calibrate(net, clip, "W8A8->W8A{0,8}", **given)
    holding = calibrate(net, clip, "W8A8->W8A{0,8}", held=["mask"], **given)
    assert usual.layers["mask"] == holding.layers["stem"] == "W8A16->W8A{0,8}"
    assert holding.layers["mask"] == "W8A8->W8A{0,8}"
    assert holding.dynamic is not None and holding.dynamic["held"] == [1]
    with pytest.raises(ConfigError, match="leave one that frames compute"):
        calibrate(net, clip, "W8A8->W8A{0,8}", held=["y", "mask"], **given)

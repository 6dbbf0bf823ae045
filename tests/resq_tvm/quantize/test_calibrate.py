"""Calibration end to end on a small network, and every way in which clips can be wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from resq_tvm.errors import CalibrationError, ConfigError, SchemeError
from resq_tvm.passes.partition import Partition
from resq_tvm.quantize import calibrate as module
from resq_tvm.quantize.calibrate import calibrate
from resq_tvm.reference.executor import Executor
from tests.resq_tvm.quantize.networks import moving_clip, small_network

QUICK = {"candidates": 8, "period": 3}


def test_calibrated_programs_are_close_to_float() -> None:
    net, clip = small_network(), moving_clip(13)
    qnet = calibrate(net, [clip], "W8A8->W8A8", **QUICK)
    assert qnet.scheme == "W8A8->W8A8" and qnet.period == 3
    assert set(qnet.scales["keyframe"]) == {"x:8", "act:8", "both:8"}
    mod = Partition("float32", False)(qnet.module)
    key, delta = Executor(mod["keyframe"]), Executor(mod["residual"])
    exact = Executor(net.module["main"])
    first, second = (torch.from_numpy(f.transpose(0, 2, 3, 1).copy()) for f in clip[9:11])
    (y0,), state = key(first)
    (y1,), _ = delta(second, *state)
    assert float((y0 - exact(first)).norm() / exact(first).norm()) < 0.03
    assert float((y1 - exact(second)).norm() / exact(second).norm()) < 0.03


def test_residual_scales_follow_the_motion() -> None:
    slow = calibrate(small_network(), [moving_clip(9, speed=0.01)], "W8A8->W4A4", **QUICK)
    fast = calibrate(small_network(), [moving_clip(9, speed=0.1)], "W8A8->W4A4", **QUICK)
    for name, scale in slow.scales["residual"].items():
        assert 3 < fast.scales["residual"][name] / scale < 30


def test_recurrent_residuals_are_smaller_than_pairwise_ones() -> None:
    options = {"candidates": 8, "period": 6}
    clip = moving_clip(12)
    pairwise = calibrate(small_network(), [clip], "W8A8->W8A8", **options)
    recurrent = calibrate(small_network(), [clip], "W8A8->W8A8", residual="recurrent", **options)
    assert recurrent.options["residual"] == "recurrent"
    assert recurrent.scales["residual"]["x:8"] < 0.8 * pairwise.scales["residual"]["x:8"]


def test_small_groups_of_quantizers_give_the_same_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = moving_clip(6)
    whole = calibrate(small_network(), [clip], "W8A8->W4A4", **QUICK)
    monkeypatch.setattr(module, "_GROUP_BYTES", 1)
    assert calibrate(small_network(), [clip], "W8A8->W4A4", **QUICK).scales == whole.scales


def test_clips_are_read_no_further_than_needed() -> None:
    taken = []

    def endless() -> Iterator[np.ndarray]:
        for number in range(10**6):
            taken.append(number)
            yield moving_clip(1, number)[0]

    calibrate(small_network(), [endless(), endless()], "W8A8->W4A4", samples=5, **QUICK)
    assert len(taken) <= 12


def test_memory_bound_leaves_fewer_frames_per_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POINT_BYTES", 1)
    qnet = calibrate(small_network(), [moving_clip(9)], "W8A8->W4A4", **QUICK)
    assert all(scale > 0 for scale in qnet.scales["residual"].values())


def test_progress_names_every_quantizer() -> None:
    lines: list[str] = []
    calibrate(small_network(), [moving_clip(3)], "W8A8->W8A8", progress=lines.append, **QUICK)
    assert len(lines) == 6
    assert lines[-1].startswith("calibrate 6/6 ")


def test_overrides_and_float_layers_have_no_quantizer() -> None:
    qnet = calibrate(
        small_network(),
        [moving_clip(3)],
        "W8A8->W4A4",
        overrides={"depth": "W8A8->W8A8"},
        first_last="float",
        **QUICK,
    )
    assert qnet.layers["stem"] == qnet.layers["head"] == "float"
    assert set(qnet.scales["residual"]) == {"act:8", "act:4"}


BAD = {
    "no frame": ([[]], "hold no frame"),
    "no clip": ([], "hold no frame"),
    "single frames": ([moving_clip(1), moving_clip(1)], "none next to another"),
    "shape": ([[np.zeros((1, 3, 12, 11), np.float32)]], r"clip 0, frame 0: input image has shape"),
    "dtype": ([[np.zeros((1, 3, 12, 10), np.uint8)]], "dtype uint8"),
    "count": ([[(moving_clip(1)[0],) * 2]], r"2 array\(s\) given; small takes 1"),
    "NaN": ([[moving_clip(1)[0], np.full((1, 3, 12, 10), np.nan, np.float32)]], "frame 1.*NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_clips_are_named(case: str) -> None:
    clips, message = BAD[case]
    with pytest.raises(CalibrationError, match=message):
        calibrate(small_network(), clips, "W8A8->W4A4", **QUICK)


def test_bad_options_are_named() -> None:
    clip = [moving_clip(4)]
    with pytest.raises(CalibrationError, match="no residual frames"):
        calibrate(small_network(), clip, "W8A8->W4A4", period=1)
    with pytest.raises(ConfigError, match="period is 0"):
        calibrate(small_network(), clip, "W8A8", period=0)
    with pytest.raises(ConfigError, match="granularity 'row' is unknown"):
        calibrate(small_network(), clip, "W8A8", granularity="row")
    with pytest.raises(SchemeError, match="W9A8"):
        calibrate(small_network(), clip, "W9A8")

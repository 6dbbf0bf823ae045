"""Calibration end to end on a small network, and every way in which clips can be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from resq_tvm.errors import CalibrationError, ConfigError, SchemeError
from resq_tvm.passes.partition import Partition
from resq_tvm.quantize import calibrate as module
from resq_tvm.quantize.calibrate import calibrate
from resq_tvm.quantize.samples import FARTHEST, FrameGroups, read_groups
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
    usual = calibrate(small_network(), [clip], "W8A8->W8A8", **options)
    recurrent = calibrate(small_network(), [clip], "W8A8->W8A8", residual="recurrent", **options)
    assert recurrent.options["residual"] == "recurrent"
    assert recurrent.scales["residual"]["x:8"] < 0.8 * usual.scales["residual"]["x:8"]


def test_small_groups_of_quantizers_give_the_same_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = moving_clip(6)
    whole = calibrate(small_network(), [clip], "W8A8->W4A4", **QUICK)
    monkeypatch.setattr(module, "_GROUP_BYTES", 1)
    assert calibrate(small_network(), [clip], "W8A8->W4A4", **QUICK).scales == whole.scales


def numbered_clip(count: int, taken: list[int] | None = None) -> Iterator[np.ndarray]:
    """Frames whose first value tells their number."""
    frame = moving_clip(1)[0]
    for number in range(count):
        if taken is not None:
            taken.append(number)
        frame = frame.copy()
        frame.flat[0] = number
        yield frame


def numbers(groups: FrameGroups) -> list[list[int]]:
    return [[int(inputs[0].flatten()[0]) for inputs in run] for run in groups.groups]


def test_endless_clips_are_read_no_further_than_makes_sense() -> None:
    taken: list[int] = []
    clips = [numbered_clip(10**9, taken), numbered_clip(10**9, taken)]
    found = read_groups(small_network(), clips, 3, 5)
    assert found.residuals == 5
    assert len(taken) <= 2 * FARTHEST * 3 * 3 + 2


def test_runs_come_from_all_over_a_clip() -> None:
    net = small_network()
    found = numbers(read_groups(net, [numbered_clip(600)], 4, 30))
    assert [run[0] % 4 for run in found] == [0] * 10  # whole runs, as a session sees them
    assert all(run == list(range(run[0], run[0] + len(run))) for run in found)
    first = [run[0] for run in found]
    assert first == sorted(first) and first[0] < 200 and first[-1] >= 400
    assert found == numbers(read_groups(net, [numbered_clip(600)], 4, 30))


def test_short_clips_are_taken_whole_and_others_make_up_for_them() -> None:
    net = small_network()
    assert numbers(read_groups(net, [numbered_clip(9)], 4, 64)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    found = read_groups(net, [numbered_clip(2), numbered_clip(400)], 3, 21)
    assert found.residuals == 21 and numbers(found)[0] == [0, 1]
    several = [numbered_clip(400) for _ in range(4)]
    found = read_groups(net, several, 3, 16)
    starts = numbers(found)
    assert found.residuals == 16 and len(starts) == 8
    # Two from each clip: numbers fall where the next clip begins.
    assert sum(b[0] < a[0] for a, b in pairwise(starts)) <= 3


def test_runs_without_residual_frames_are_no_groups() -> None:
    clips = [numbered_clip(400), numbered_clip(3), numbered_clip(3)]
    found = read_groups(small_network(), clips, 8, 12)
    assert found.residuals == 12 and all(len(run) > 1 for run in found.groups)


def test_single_frames_are_drawn_from_all_over_a_clip() -> None:
    found = numbers(read_groups(small_network(), [numbered_clip(500)], 1, 20))
    assert len(found) == 20 and all(len(run) == 1 for run in found)
    assert found[0][0] < 150 and found[-1][0] >= 350


def test_memory_bound_leaves_fewer_frames_per_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POINT_BYTES", 1)
    qnet = calibrate(small_network(), [moving_clip(9)], "W8A8->W4A4", **QUICK)
    assert all(scale > 0 for scale in qnet.scales["residual"].values())


def test_progress_names_every_quantizer() -> None:
    lines: list[str] = []
    calibrate(small_network(), [moving_clip(3)], "W8A8->W8A8", progress=lines.append, **QUICK)
    lines = [line for line in lines if line.startswith("calibrate")]
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

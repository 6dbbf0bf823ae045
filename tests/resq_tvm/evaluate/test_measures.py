"""Errors of raw outputs: the same numbers as the metrics on predictions."""

from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.evaluate.measures import (
    class_error,
    error_against_float,
    float_outputs,
    label_error,
    landmark_error,
    output_error,
)
from resq_tvm.evaluate.metrics import LandmarkError
from resq_tvm.processing.config import LandmarksTask, RawTask, SegmentationTask
from tests.resq_tvm.quantize.networks import moving_clip, small_network

TASK = SegmentationTask(classes=("a", "b", "c"))


def test_landmarks(rng: np.random.Generator) -> None:
    task = LandmarksTask(output=1, count=5, dims=3, shown=4, visibility=2, coordinate_scale=2.0)
    exact = [(np.zeros(1, "f"), rng.standard_normal((1, 15)).astype("f")) for _ in range(3)]
    found = [(y, x + np.float32(0.5)) for y, x in exact]
    error = landmark_error(task, exact)
    assert (error.unit, error.outputs, error.frames) == ("px", (1,), 3)
    assert error(found, [1, 2]) == pytest.approx(np.sqrt(2), rel=1e-5)
    points = [2 * x.reshape(5, 3)[:4, :2] for _, x in exact]
    visible = [x.reshape(5, 3)[:4, 2] > 0 for _, x in exact]
    moved = [2 * x.reshape(5, 3)[:4, :2] for _, x in found]
    assert error(found, [0, 2]) == pytest.approx(LandmarkError(points, visible)(moved, [0, 2]))
    assert error.against(found)(found, [0, 1]) == 0.0


def test_class_maps_and_labels(rng: np.random.Generator) -> None:
    exact = [(rng.standard_normal((1, 3, 4, 5)).astype("f"),) for _ in range(2)]
    changed = [(y.copy(),) for (y,) in exact]
    top = int(exact[1][0][0, :, 2, 3].argmax())
    changed[1][0][0, (top + 1) % 3, 2, 3] = 9.0  # one of twenty pixels changes its class
    error = class_error(TASK, exact, ["NCHW"])
    assert error(changed, [0]) == 0.0
    assert error(changed, [1]) == pytest.approx(5.0)
    assert error(changed, [0, 1]) == pytest.approx(2.5)
    labels = [y[0].argmax(0).astype(np.uint8) for (y,) in exact]
    judged = label_error(TASK, labels, ["NCHW"])
    assert judged.unit == "100 - mIoU" and judged(exact, [0, 1]) == 0.0
    assert 0 < judged(changed, [1]) < 30
    assert judged.against(changed).unit == "% pixels"
    with pytest.raises(ClipError, match="resize the labels"):
        label_error(TASK, [labels[0][:2]], ["NCHW"])(exact, [0])
    with pytest.raises(ConfigError, match="classes"):
        label_error(SegmentationTask(), labels, ["NCHW"])


def test_raw_outputs() -> None:
    exact = [(np.full((1, 4), 2.0, "f"), np.zeros(3, "f")), (np.full((1, 4), 2.0, "f"),) * 2]
    exact[1] = (exact[1][0], np.zeros(3, "f"))
    error = output_error(exact)
    assert error(exact, [0, 1]) == 0.0
    wrong = [(y * np.float32(1.1), z) for y, z in exact]
    # Ten percent of one output, and the other, all zero, is right.
    assert error(wrong, [0, 1]) == pytest.approx(5.0, rel=1e-4)


def test_float_outputs_are_in_the_source_layout() -> None:
    net = small_network()
    clip = moving_clip(2)
    exact = float_outputs(net, clip)
    assert [y.shape for y in exact[1]] == [(1, 5, 10, 8)]
    error = error_against_float(net, RawTask(), exact)
    assert (error.unit, error.outputs) == ("% output", (0,))
    assert error_against_float(net, SegmentationTask(), exact).unit == "% pixels"
    assert error(exact, [0, 1]) == 0.0

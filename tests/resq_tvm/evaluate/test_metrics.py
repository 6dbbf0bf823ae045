"""Metrics against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.evaluate.metrics import (
    LandmarkError,
    SegmentationError,
    class_agreement,
    confusion,
    mean_iou,
)


def test_confusion_leaves_void_labels_out() -> None:
    labels = np.array([[0, 0, 1], [1, 2, 2]])
    predictions = np.array([[0, 1, 1], [2, 0, 2]])
    matrix = confusion(labels, predictions, 3, void=2)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert confusion(np.full((2, 2), 2), np.zeros((2, 2), int), 3, void=2).sum() == 0


def test_mean_iou_counts_void_predictions_as_missed() -> None:
    matrix = np.array([[3, 1, 0], [0, 2, 2], [0, 0, 0]])
    # class 0: 3 / (4 + 3 - 3), class 1: 2 / (4 + 3 - 2)
    assert mean_iou(matrix, void=2) == pytest.approx(100 * (3 / 4 + 2 / 5) / 2)


def test_mean_iou_skips_absent_classes() -> None:
    assert mean_iou(np.diag([5, 0, 2])) == pytest.approx(100.0)
    assert mean_iou(np.zeros((3, 3), int)) == 0.0


def test_segmentation_error_joins_frames_before_dividing() -> None:
    labels = [np.zeros((2, 2), int), np.ones((2, 2), int)]
    predictions = [np.zeros((2, 2), int), np.array([[1, 1], [1, 0]])]
    error = SegmentationError(labels, 2)
    assert error(predictions, [0]) == pytest.approx(0.0)
    assert error(predictions, [0, 1]) == pytest.approx(100 - 100 * (4 / 5 + 3 / 4) / 2)


def test_landmark_error_is_the_mean_distance_of_visible_points() -> None:
    reference = [np.zeros((3, 5)), np.zeros((3, 5))]
    moved = np.zeros((3, 5))
    moved[0, :2] = (3, 4)
    moved[1, :2] = (0, 1)
    moved[2] = 100
    visible = [np.array([True, True, False])] * 2
    error = LandmarkError(reference, visible)
    assert error([np.zeros((3, 5)), moved], [0, 1]) == pytest.approx((0 + 0 + 5 + 1) / 4)
    assert LandmarkError(reference)([moved, moved], [0]) > 40
    assert LandmarkError(reference, [np.zeros(3, bool)] * 2)([moved, moved], [0, 1]) == 0.0


def test_class_agreement() -> None:
    assert class_agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75

"""Errors of predictions: intersection over union, class agreement, landmark distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion(
    labels: NDArray[Any], predictions: NDArray[Any], classes: int, void: int | None = None
) -> NDArray[np.int64]:
    """Count (label, prediction) pairs over pixels whose label is not void.

    Parameters
    ----------
    labels, predictions : ndarray of int, same shape
        Classes ``0 … classes - 1``.
    classes : int
        Number of classes, void included if it has a number below.
    void : int, optional
        Label of pixels that do not count.

    Returns
    -------
    ndarray, int64, (classes, classes)
    """
    from sklearn.metrics import confusion_matrix

    counted = np.ones(labels.shape, bool) if void is None else labels != void
    if not counted.any():
        return np.zeros((classes, classes), np.int64)
    return np.asarray(
        confusion_matrix(labels[counted], predictions[counted], labels=np.arange(classes)),
        np.int64,
    )


def mean_iou(matrix: NDArray[np.int64], void: int | None = None) -> float:
    """Return the mean intersection over union, in percent, of the classes but void.

    A pixel predicted as void counts as missed. Classes that neither occur nor are predicted are
    left out of the mean.
    """
    kept = np.array([c for c in range(len(matrix)) if c != void])
    hits = np.diag(matrix)[kept]
    union = matrix[kept].sum(axis=1) + matrix[:, kept].sum(axis=0) - hits
    present = union > 0
    return float(100.0 * (hits[present] / union[present]).mean()) if present.any() else 0.0


def class_agreement(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the share of pixels with the same class."""
    return float((first == second).mean())


@dataclass(frozen=True)
class SegmentationError:
    """``100 - mIoU`` of class maps against labels, over any choice of frames.

    Parameters
    ----------
    labels : sequence of ndarray, uint8 (H, W)
        One per frame of the clip.
    classes : int
    void : int, optional
    """

    labels: Sequence[NDArray[Any]]
    classes: int
    void: int | None = None

    def __call__(self, predictions: Sequence[NDArray[Any]], frames: Sequence[int]) -> float:
        """Return the error in percent over ``frames``; ``predictions[i]`` belongs to frame i."""
        total = np.zeros((self.classes, self.classes), np.int64)
        for n in frames:
            total += confusion(self.labels[n], predictions[n], self.classes, self.void)
        return 100.0 - mean_iou(total, self.void)


@dataclass(frozen=True)
class LandmarkError:
    """Mean distance of landmarks to a reference, in pixels, over any choice of frames.

    Parameters
    ----------
    reference : sequence of ndarray, float (N, 2 or more)
        Per frame the x and y of N landmarks, in pixels.
    visible : sequence of ndarray of bool (N,), optional
        Per frame the landmarks that count; all by default.
    """

    reference: Sequence[NDArray[Any]]
    visible: Sequence[NDArray[np.bool_]] = field(default=())

    def __call__(self, predictions: Sequence[NDArray[Any]], frames: Sequence[int]) -> float:
        """Return the mean over all counted landmarks of ``frames``; 0 if none counts."""
        distances = []
        for n in frames:
            distance = np.linalg.norm(predictions[n][:, :2] - self.reference[n][:, :2], axis=1)
            distances.append(distance[self.visible[n]] if self.visible else distance)
        joined = np.concatenate(distances) if distances else np.zeros(0)
        return float(joined.mean()) if joined.size else 0.0

"""Network outputs to predictions: class maps and landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import ConfigError
from resq_tvm.processing.config import LandmarksTask, RawTask, SegmentationTask


@dataclass(frozen=True)
class ClassMap:
    """Segmentation: ``labels`` is uint8 ``(h, w)`` at the output's resolution."""

    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Landmarks:
    """``points`` is float32 ``(n, 2)``, x and y in network-input pixels; ``visible`` bool (n,)."""

    points: NDArray[np.float32]
    visible: NDArray[np.bool_]


Prediction = ClassMap | Landmarks | None


def class_map(
    task: SegmentationTask, outputs: Sequence[NDArray[np.float32]], layouts: Sequence[str]
) -> ClassMap:
    """Return the arg max over channels of the task's output, in the source layout."""
    scores = _pick(outputs, task.output)
    if scores.ndim != 4 or scores.shape[0] != 1:
        raise ConfigError(
            f"segmentation needs output {task.output} of four dimensions and batch 1, "
            f"it has shape {scores.shape}"
        )
    axis = 0 if layouts[task.output] == "NCHW" else 2
    return ClassMap(np.argmax(scores[0], axis=axis).astype(np.uint8))


def landmarks(task: LandmarksTask, outputs: Sequence[NDArray[np.float32]]) -> Landmarks:
    """Return the task's points."""
    flat = _pick(outputs, task.output).reshape(-1)
    if flat.size != task.count * task.dims:
        raise ConfigError(
            f"landmarks expect {task.count} points of {task.dims} numbers, output {task.output} "
            f"has {flat.size} numbers"
        )
    table = flat.reshape(task.count, task.dims)[: task.shown]
    points = np.ascontiguousarray(table[:, :2]) * np.float32(task.coordinate_scale)
    if task.visibility is None:
        visible = np.ones(len(table), dtype=np.bool_)
    else:
        # sigmoid(v) > 0.5 is v > 0
        visible = table[:, task.visibility] > 0
    return Landmarks(points, visible)


def interpret(
    task: RawTask | SegmentationTask | LandmarksTask,
    outputs: Sequence[NDArray[np.float32]],
    layouts: Sequence[str],
) -> Prediction:
    """Return the prediction that ``task`` makes of one frame's outputs (None for raw).

    Parameters
    ----------
    task : RawTask, SegmentationTask or LandmarksTask
        The task.
    outputs : sequence of ndarray
        The network's outputs in the source layout.
    layouts : sequence of str
        ``"NCHW"``, ``"NHWC"`` or ``""`` for every output.
    """
    if isinstance(task, SegmentationTask):
        return class_map(task, outputs, layouts)
    if isinstance(task, LandmarksTask):
        return landmarks(task, outputs)
    return None


def _pick(outputs: Sequence[NDArray[np.float32]], index: int) -> NDArray[np.float32]:
    if index >= len(outputs):
        raise ConfigError(f"the task reads output {index}, the network has {len(outputs)}")
    return outputs[index]

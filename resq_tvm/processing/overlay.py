"""Draw predictions over frames."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from numpy.typing import NDArray

from resq_tvm.processing.config import LandmarksTask, RawTask, SegmentationTask
from resq_tvm.processing.postprocess import ClassMap, Landmarks, Prediction

_POINT = (80, 255, 120)
_EDGE = (255, 180, 60)
_TEXT = (255, 255, 255)


def palette(task: SegmentationTask, classes: int) -> NDArray[np.uint8]:
    """Return ``(classes, 3)`` RGB colours: the task's, then well-spread hues."""
    hues = [colorsys.hsv_to_rgb((i * 0.618034) % 1, 0.75, 0.95) for i in range(classes)]
    colours = (np.array(hues).reshape(classes, 3) * 255).astype(np.uint8)
    known = min(len(task.palette), classes)
    if known:
        colours[:known] = np.array(task.palette[:known], dtype=np.uint8)
    return colours


def draw(
    frame: NDArray[np.uint8],
    prediction: Prediction,
    task: RawTask | SegmentationTask | LandmarksTask,
    input_size: tuple[int, int],
    caption: str = "",
) -> NDArray[np.uint8]:
    """Return a copy of an RGB frame with the prediction drawn over it.

    Parameters
    ----------
    frame : ndarray
        uint8 ``(h, w, 3)``: the picture that the network saw (cropped), at any size.
    prediction : ClassMap, Landmarks or None
        What to draw.
    task : task configuration
        Colours and edges.
    input_size : tuple of int
        The network input's height and width, in which landmarks are given.
    caption : str
        Text for the upper left corner.
    """
    canvas = np.ascontiguousarray(frame).copy()
    if isinstance(prediction, ClassMap) and isinstance(task, SegmentationTask):
        canvas = _paint(canvas, prediction, task)
    elif isinstance(prediction, Landmarks) and isinstance(task, LandmarksTask):
        _plot(canvas, prediction, task, input_size)
    if caption:
        size = max(0.35, canvas.shape[0] / 900)
        x, y = 6, int(16 + 24 * size)
        for shift, colour in ((1, (0, 0, 0)), (0, _TEXT)):
            place = (x + shift, y + shift)
            cv2.putText(canvas, caption, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1)
    return canvas


def _paint(
    canvas: NDArray[np.uint8], prediction: ClassMap, task: SegmentationTask
) -> NDArray[np.uint8]:
    labels = prediction.labels
    if labels.shape != canvas.shape[:2]:
        size = (canvas.shape[1], canvas.shape[0])
        labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST))
    colours = palette(task, 256)[labels]
    mixed = cv2.addWeighted(colours, task.opacity, canvas, 1 - task.opacity, 0)
    return np.asarray(mixed, dtype=np.uint8)


def _plot(
    canvas: NDArray[np.uint8], found: Landmarks, task: LandmarksTask, input_size: tuple[int, int]
) -> None:
    to_canvas = np.array([canvas.shape[1] / input_size[1], canvas.shape[0] / input_size[0]])
    pixels = np.rint(np.nan_to_num(found.points) * to_canvas).clip(-10000, 10000).astype(int)
    radius = max(1, round(canvas.shape[0] / (120 if len(pixels) < 100 else 400)))
    for a, b in task.edges:
        if a < len(pixels) and b < len(pixels) and found.visible[a] and found.visible[b]:
            start, end = tuple(map(int, pixels[a])), tuple(map(int, pixels[b]))
            cv2.line(canvas, start, end, _EDGE, radius, cv2.LINE_AA)
    for (x, y), visible in zip(pixels.tolist(), found.visible, strict=True):
        if visible:
            cv2.circle(canvas, (x, y), radius, _POINT, -1, cv2.LINE_AA)

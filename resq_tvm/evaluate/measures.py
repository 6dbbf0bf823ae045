"""Errors of a network's raw outputs: against the float network, or against labels.

`resq_tvm.evaluate.metrics` compares predictions; here a task makes predictions of outputs first,
so that whatever runs a network can be judged by its outputs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.evaluate.metrics import LandmarkError, SegmentationError, class_agreement
from resq_tvm.network import Network
from resq_tvm.processing.config import LandmarksTask, SegmentationTask, Task
from resq_tvm.processing.postprocess import class_map, landmarks
from resq_tvm.reference.executor import Executor

Outputs = Sequence[NDArray[np.float32]]
"""The outputs of one frame, in the source model's layout."""


@dataclass(frozen=True)
class OutputError:
    """The error of a network's outputs over a choice of frames.

    Parameters
    ----------
    measure : callable
        (outputs per frame of the clips, the frames that count) → error.
    unit : str
        ``"px"``, ``"% pixels"``, ``"100 - mIoU"`` or ``"% output"``.
    outputs : tuple of int
        Which of the network's outputs it reads.
    frames : int
        How many frames it has a reference for.
    against : callable
        Outputs per frame → how far outputs are from those, by the same kind of measure.
    """

    measure: Callable[[Sequence[Outputs], Sequence[int]], float]
    unit: str
    outputs: tuple[int, ...]
    frames: int
    against: Callable[[Sequence[Outputs]], OutputError]

    def __call__(self, outputs: Sequence[Outputs], frames: Sequence[int]) -> float:
        """Return the error over ``frames``; ``outputs[i]`` belongs to frame i."""
        return self.measure(outputs, frames)


def float_outputs(net: Network, frames: Iterable[NDArray[np.float32]]) -> list[Outputs]:
    """Run the float network in PyTorch on frames in the source layout."""
    executor = Executor(net.module["main"], watch=())
    found: list[Outputs] = []
    for frame in frames:
        result = executor(torch.from_numpy(np.ascontiguousarray(net.to_canonical(frame))))
        values = result if isinstance(result, tuple | list) else (result,)
        found.append([net.from_canonical(v.numpy(), i) for i, v in enumerate(values)])
    return found


def error_against_float(net: Network, task: Task, exact: Sequence[Outputs]) -> OutputError:
    """Return the task's error against the float network.

    Landmarks: mean distance in network-input pixels over visible points. Segmentation: share of
    pixels of another class, in percent. Raw: `output_error`.

    Parameters
    ----------
    net : Network
    task : Task
        What the outputs mean.
    exact : sequence
        The float network's outputs per frame (`float_outputs`).
    """
    if isinstance(task, LandmarksTask):
        return landmark_error(task, exact)
    if isinstance(task, SegmentationTask):
        return class_error(task, exact, [output.layout for output in net.outputs])
    return output_error(exact)


def landmark_error(task: LandmarksTask, exact: Sequence[Outputs]) -> OutputError:
    """Mean distance of landmarks to the float network's, in network-input pixels."""
    found = [landmarks(task, outputs) for outputs in exact]
    metric = LandmarkError([p.points for p in found], [p.visible for p in found])

    def measure(outputs: Sequence[Outputs], frames: Sequence[int]) -> float:
        points = {n: landmarks(task, outputs[n]).points for n in frames}
        return metric([points.get(n, p.points) for n, p in enumerate(found)], frames)

    return OutputError(
        measure, "px", (task.output,), len(found), lambda other: landmark_error(task, other)
    )


def class_error(
    task: SegmentationTask, exact: Sequence[Outputs], layouts: Sequence[str]
) -> OutputError:
    """Share of pixels whose class is not the float network's, in percent."""
    maps = [class_map(task, outputs, layouts).labels for outputs in exact]

    def measure(outputs: Sequence[Outputs], frames: Sequence[int]) -> float:
        agreements = [
            class_agreement(class_map(task, outputs[n], layouts).labels, maps[n]) for n in frames
        ]
        return 100.0 * (1.0 - float(np.mean(agreements)))

    return OutputError(
        measure,
        "% pixels",
        (task.output,),
        len(maps),
        lambda other: class_error(task, other, layouts),
    )


def label_error(
    task: SegmentationTask, labels: Sequence[NDArray[np.uint8]], layouts: Sequence[str]
) -> OutputError:
    """``100 - mIoU`` against label images, one per frame.

    Raises
    ------
    ConfigError
        If the task names no classes.
    """
    if not task.classes:
        raise ConfigError("labels need a segmentation task with classes; name them in --processing")
    metric = SegmentationError(labels, len(task.classes), task.void)

    def measure(outputs: Sequence[Outputs], frames: Sequence[int]) -> float:
        maps = {n: class_map(task, outputs[n], layouts).labels for n in frames}
        shapes = {labels[n].shape for n in frames} - {m.shape for m in maps.values()}
        if shapes:
            raise ClipError(
                f"labels are {shapes.pop()} pixels, class maps {next(iter(maps.values())).shape}; "
                "resize the labels"
            )
        return metric([maps.get(n, label) for n, label in enumerate(labels)], frames)

    return OutputError(
        measure,
        "100 - mIoU",
        (task.output,),
        len(labels),
        lambda other: class_error(task, other, layouts),
    )


def output_error(exact: Sequence[Outputs]) -> OutputError:
    """``||y - y_float|| / ||y_float||`` in percent: mean over outputs, norms over all frames."""

    def measure(outputs: Sequence[Outputs], frames: Sequence[int]) -> float:
        ratios = []
        for index in range(len(exact[0])):
            wrong = sum(float(np.square(outputs[n][index] - exact[n][index]).sum()) for n in frames)
            whole = sum(float(np.square(exact[n][index]).sum()) for n in frames)
            ratios.append(float(np.sqrt(wrong / whole)) if whole else float(wrong > 0))
        return 100.0 * float(np.mean(ratios))

    return OutputError(measure, "% output", tuple(range(len(exact[0]))), len(exact), output_error)

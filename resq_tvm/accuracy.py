"""How good is an artifact on a clip: against labels, or against the float network.

The verdict is the project's: the scheme's error beside those of frame quantization and of holding
the keyframe's output, on the same residual frames, and the recovery (`resq_tvm.evaluate.judge`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from resq_tvm.artifact import Artifact
from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.evaluate.judge import ErrorOf, Judgement, judge
from resq_tvm.evaluate.metrics import LandmarkError, SegmentationError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.manifest import Manifest
from resq_tvm.predict import Step, make_preprocessor, steps
from resq_tvm.processing.config import ProcessingConfig, RawTask, SegmentationTask
from resq_tvm.processing.postprocess import ClassMap, Landmarks, Prediction, interpret
from resq_tvm.session import Session
from resq_tvm.video.clip import Clip, FrameRange, Picture
from resq_tvm.video.decode import IMAGE_SUFFIXES, natural_key

if TYPE_CHECKING:
    from resq_tvm.network import Network

Plain = NDArray[Any]  # a class map, or the points of the landmarks


@dataclass(frozen=True)
class Reference:
    """What predictions are compared with, the error's unit, and how many frames it covers."""

    error: ErrorOf[Plain]
    unit: str
    frames: int


def float_predictions(
    net: Network, processing: ProcessingConfig, pictures: Sequence[Picture]
) -> Iterator[tuple[Prediction, float]]:
    """Run the float network in PyTorch; yield each picture's prediction and its milliseconds."""
    import torch

    from resq_tvm.reference.executor import Executor

    prepare = make_preprocessor(processing, net.inputs)
    executor = Executor(net.module["main"])
    layouts = [output.layout for output in net.outputs]
    with torch.inference_mode():
        for picture in pictures:
            frame = torch.from_numpy(np.ascontiguousarray(net.to_canonical(prepare(picture))))
            start = time.perf_counter()
            result = executor(frame)
            elapsed = (time.perf_counter() - start) * 1e3
            values = result if isinstance(result, tuple | list) else (result,)
            outputs = [net.from_canonical(v.numpy(), i) for i, v in enumerate(values)]
            yield interpret(processing.task, outputs, layouts), elapsed


def artifact_predictions(session: Session, clip: Clip) -> list[Prediction]:
    """Run an artifact over a clip and return the prediction of every frame."""
    manifest = session.artifact.manifest
    return [_interpret(manifest, step) for step in steps(session, clip)]


def _interpret(manifest: Manifest, step: Step) -> Prediction:
    layouts = [entry.layout for entry in manifest.outputs]
    return interpret(_processing(manifest).task, step.outputs, layouts)


def against_labels(folder: Path, manifest: Manifest) -> Reference:
    """Compare class maps with label images (one channel, class numbers; natural order).

    Raises
    ------
    ConfigError
        If the artifact's task is not segmentation.
    ClipError
        If the folder has no images, or one is not of one channel.
    """
    task = _processing(manifest).task
    if not isinstance(task, SegmentationTask) or not task.classes:
        raise ConfigError("labels need an artifact whose processing is segmentation with classes")
    labels = read_labels(folder)
    return Reference(
        SegmentationError(labels, len(task.classes), task.void), "100 - mIoU", len(labels)
    )


def read_labels(folder: Path) -> list[NDArray[np.uint8]]:
    """Read label images (one channel, class numbers) in natural order, one per frame.

    Raises
    ------
    ClipError
        If the folder has no images, or one is not of one channel.
    """
    if not folder.is_dir():
        raise ClipError(f"labels {str(folder)!r} are not a folder; give one with an image a frame")
    paths = sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=natural_key
    )
    if not paths:
        raise ClipError(f"labels {str(folder)!r} hold no image; give a folder with one a frame")
    return [_read_label(path) for path in paths]


def against_float(net: Network, manifest: Manifest, clip: Clip) -> Reference:
    """Compare predictions with the float network's on the same clip.

    Landmarks: mean distance in network-input pixels over visible points. Class maps: the share of
    pixels of another class, in percent.

    Raises
    ------
    ConfigError
        If the artifact's task is raw.
    """
    processing = _processing(manifest)
    if isinstance(processing.task, RawTask):
        raise ConfigError("raw outputs have no error measure; compile with --processing for a task")
    pictures = [picture for picture in clip if picture is not None]
    exact = [prediction for prediction, _ in float_predictions(net, processing, pictures)]
    if isinstance(exact[0], Landmarks):
        found = [p for p in exact if isinstance(p, Landmarks)]
        error = LandmarkError([p.points for p in found], [p.visible for p in found])
        return Reference(error, "px", len(found))
    maps = [p.labels for p in exact if isinstance(p, ClassMap)]

    def disagreement(predictions: Sequence[Plain], frames: Sequence[int]) -> float:
        return float(np.mean([(predictions[n] != maps[n]).mean() for n in frames]) * 100)

    return Reference(disagreement, "% pixels", len(maps))


def evaluate(
    artifact: Artifact,
    frame_artifact: Artifact,
    clip: Clip,
    reference: Reference,
    *,
    period: int | None = None,
    keyframes: KeyframePolicy | None = None,
    counted: FrameRange | None = None,
    threads: int | None = None,
) -> Judgement:
    """Judge an artifact on a clip.

    Parameters
    ----------
    artifact : Artifact
        The scheme.
    frame_artifact : Artifact
        The same network frame-quantized (usually W8A8): gives F, and H by holding.
    clip : Clip
        The frames, from the first keyframe on.
    reference : Reference
        `against_labels` or `against_float`.
    period : int, optional
        Keyframe period; the artifact's by default.
    keyframes : KeyframePolicy, optional
        How keyframes are chosen; by default every so many frames, whatever they cost. Otherwise
        the frames that were computed on their own are those that are held, too; but where outputs
        are repeated, what is held is every so many frames again: repeating is not judged by itself.
    counted : FrameRange, optional
        Positions in the clip that count; all by default.
    threads : int, optional
        Threads per frame.

    Raises
    ------
    ConfigError
        If the frame artifact has residual frames, the task is raw, or nothing can be judged.
    ClipError
        If the labels are fewer than the frames.
    """
    if frame_artifact.manifest.has_residual:
        raise ConfigError(
            f"artifact {str(frame_artifact.path)!r} has scheme {frame_artifact.manifest.scheme}; "
            "compile a frame-quantized one, e.g. --scheme W8A8"
        )
    policy = keyframes or KeyframePolicy(guard=False)
    session = Session(artifact, period=period, copy=False, threads=threads, keyframes=policy)
    framed = Session(frame_artifact, copy=False, threads=threads)
    exact = [plain(p) for p in artifact_predictions(framed, clip)]
    scheme: list[Plain] = []
    taken = []
    for step in steps(session, clip):
        if step.kind in ("keyframe", "frame"):
            taken.append(len(scheme))
        scheme.append(plain(_interpret(artifact.manifest, step)))
    if len(exact) > reference.frames:
        raise ClipError(
            f"clip {clip.name!r} has {len(exact)} frames and {reference.frames} references; "
            "select frames, or give a label for each"
        )
    selected = counted or FrameRange()
    frames = range(len(exact))[selected.start : selected.stop]
    regular = policy == KeyframePolicy(guard=False) or policy.repeat is not None
    positions = session.period if regular else taken
    return judge(exact, scheme, positions, reference.error, frames)


def _processing(manifest: Manifest) -> ProcessingConfig:
    return manifest.processing or ProcessingConfig()


def plain(prediction: Prediction) -> Plain:
    """Return a class map's labels or landmarks' points; raise `ConfigError` for raw outputs."""
    if isinstance(prediction, ClassMap):
        return prediction.labels
    if isinstance(prediction, Landmarks):
        return prediction.points
    raise ConfigError("raw outputs have no error measure; compile with --processing for a task")


def _read_label(path: Path) -> NDArray[np.uint8]:
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if label is None or label.ndim != 2:
        raise ClipError(f"label {str(path)!r} is not an image of one channel of class numbers")
    return np.asarray(label, dtype=np.uint8)

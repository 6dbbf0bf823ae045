"""Artifacts are judged on clips against labels, beside frame quantization and holding."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from resq_tvm.accuracy import against_labels, artifact_predictions, evaluate
from resq_tvm.artifact import Artifact, write_artifact
from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.processing.config import ProcessingConfig, SegmentationTask
from resq_tvm.processing.postprocess import ClassMap
from resq_tvm.session import Session
from resq_tvm.video.clip import Clip, FrameRange
from tests.resq_tvm import tiny_artifact

TASK = SegmentationTask(classes=("a", "b", "c"))


def tiny(folder: Path, task: SegmentationTask | None = TASK, **changes: object) -> Artifact:
    base = tiny_artifact.compiled()
    processing = None if task is None else ProcessingConfig(task=task)
    compiled = tiny_artifact.FakeCompiled(base.executable, base.params, {**base.info, **changes})
    return write_artifact(compiled, folder, processing=processing)


@pytest.fixture
def clip(rng: np.random.Generator) -> Clip:
    pictures = [rng.integers(0, 256, (6, 5, 3), dtype=np.uint8) for _ in range(9)]
    return Clip("noise", lambda: iter(pictures))


@pytest.fixture
def scheme(tmp_path: Path) -> Artifact:
    return tiny(tmp_path / "scheme.resq")


@pytest.fixture
def framed(tmp_path: Path) -> Artifact:
    return tiny(tmp_path / "frame.resq", scheme="W8A8", state=[])


@pytest.fixture
def labels(tmp_path: Path, framed: Artifact, clip: Clip) -> Path:
    """Write the frame artifact's own predictions as labels: F is 0, everything else is not."""
    folder = tmp_path / "labels"
    folder.mkdir()
    for i, prediction in enumerate(artifact_predictions(Session(framed), clip)):
        assert isinstance(prediction, ClassMap)
        cv2.imwrite(str(folder / f"{i}.png"), prediction.labels)
    return folder


def test_errors_are_ordered(scheme: Artifact, framed: Artifact, clip: Clip, labels: Path) -> None:
    reference = against_labels(labels, scheme.manifest)
    judgement = evaluate(scheme, framed, clip, reference)
    assert (judgement.period, judgement.residual.frames, judgement.all.frames) == (3, 6, 9)
    assert judgement.residual.frame == 0
    assert judgement.residual.hold > 20 and judgement.residual.scheme > 5
    assert judgement.residual.recovery is not None


def test_only_counted_frames_count(
    scheme: Artifact, framed: Artifact, clip: Clip, labels: Path
) -> None:
    reference = against_labels(labels, scheme.manifest)
    judgement = evaluate(scheme, framed, clip, reference, counted=FrameRange(4, 6))
    assert (judgement.residual.frames, judgement.all.frames) == (2, 2)


def test_what_cannot_be_judged(
    tmp_path: Path, scheme: Artifact, framed: Artifact, clip: Clip, labels: Path
) -> None:
    reference = against_labels(labels, scheme.manifest)
    with pytest.raises(ConfigError, match="compile a frame-quantized one"):
        evaluate(scheme, scheme, clip, reference)
    (labels / "8.png").unlink()
    with pytest.raises(ClipError, match="9 frames and 8 references"):
        evaluate(scheme, framed, clip, against_labels(labels, scheme.manifest))
    with pytest.raises(ConfigError, match="segmentation"):
        against_labels(labels, tiny(tmp_path / "raw.resq", None).manifest)
    cv2.imwrite(str(labels / "0.png"), np.zeros((6, 5, 3), np.uint8))
    with pytest.raises(ClipError, match="one channel"):
        against_labels(labels, scheme.manifest)
    with pytest.raises(ClipError, match="not a folder"):
        against_labels(tmp_path / "absent", scheme.manifest)

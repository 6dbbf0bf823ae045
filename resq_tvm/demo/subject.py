"""What the demo looks at: a pretrained network on a real clip, or both generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from resq_tvm.assets import CARPHONE, FACE_MESH, fetch
from resq_tvm.processing.config import InputConfig, ProcessingConfig, SegmentationTask
from resq_tvm.processing.presets import PRESETS
from resq_tvm.video.clip import Clip, FrameRange


@dataclass(frozen=True)
class Subject:
    """A network, its clip, how they fit, and which frames calibrate.

    The first ``calibration_frames`` frames of the clip calibrate; errors are reported on the
    others.
    """

    title: str
    model: str
    processing: ProcessingConfig
    clip: Clip
    calibration_frames: int


def face_mesh(progress: Callable[[str], None]) -> Subject:
    """Return MediaPipe's face mesh on a talking person; both come out of wheels.

    Raises
    ------
    AssetError
        If they cannot be downloaded.
    """
    from resq_tvm.video.decode import open_file

    model = fetch(FACE_MESH, progress)
    clip = open_file(fetch(CARPHONE, progress))
    return Subject(
        "MediaPipe face mesh, 468 landmarks, on carphone_pristine.mp4 (176x144, crop 90x90)",
        str(model),
        PRESETS["face_mesh"],
        clip.select(crop=(20, 45, 90, 90)),
        32,
    )


def generated() -> Subject:
    """Return a small untrained segmentation network on a generated clip; needs no network."""
    from resq_tvm.video.synthetic import open_random

    clip = open_random(120, 160, 72, seed=3)
    return Subject(
        "zoo:tiny_seg (untrained) on a generated clip (offline)",
        "zoo:tiny_seg",
        ProcessingConfig(input=InputConfig(scale=1 / 255), task=SegmentationTask()),
        clip.select(FrameRange(0, 72)),
        24,
    )

"""The benchmark networks: source, clip, preprocessing, calibration frames."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm import zoo
from resq_tvm.processing.config import load_processing
from resq_tvm.processing.preprocess import Preprocessor
from resq_tvm.video.clip import Clip, FrameRange
from resq_tvm.video.source import open_clip

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("RESQ_TVM_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Workload:
    """A network with real frames, preprocessed to its own input layout."""

    name: str
    model: str  # what `resq_tvm.load` takes
    source: Any  # what the peers take: a path, or an nn.Module
    frames: list[NDArray[np.float32]]
    input_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Source:
    """Where a network and its clip come from."""

    model: str
    clip: Path
    processing: str
    shape: tuple[int, ...]
    layout: str
    frames: str = ""
    crop: tuple[int, int, int, int] | None = None  # y, x, height, width


SOURCES = {
    "ddrnet": Source(
        "zoo:ddrnet23_slim", DATA / "camvid/val", "imagenet_seg", (1, 3, 256, 512), "NCHW"
    ),
    "espnet": Source(
        str(DATA / "models/espnet_camvid.onnx"), DATA / "camvid/val", "espnet_camvid",
        (1, 3, 360, 480), "NCHW",
    ),
    "blazepose": Source(
        str(DATA / "models/blazepose_full.tflite"), DATA / "clips/vtest.avi", "blazepose",
        (1, 256, 256, 3), "NHWC", "400:432", (160, 240, 160, 160),
    ),
    "face_mesh": Source(
        str(DATA / "models/face_landmark.tflite"), DATA / "clips/carphone_pristine.mp4",
        "face_mesh", (1, 192, 192, 3), "NHWC", "", (20, 45, 90, 90),
    ),
}  # fmt: skip


def clip_of(source: Source) -> Clip:
    """Return the network's clip, cut and cropped."""
    frames = FrameRange.parse(source.frames) if source.frames else None
    return open_clip(str(source.clip)).select(frames=frames, crop=source.crop)


def workload(name: str, count: int = 24) -> Workload:
    """Return a benchmark network by name, with its first ``count`` preprocessed frames."""
    if name not in SOURCES:
        raise SystemExit(f"network {name!r} is unknown; use {', '.join(SOURCES)}")
    source = SOURCES[name]
    config = load_processing(source.processing)
    prepare = Preprocessor(config.input, source.shape, source.layout)
    pictures = itertools.islice(clip_of(source), count)
    frames = [np.array(prepare(p)) for p in pictures if p is not None]
    if name == "ddrnet":
        module, _ = zoo.build("ddrnet23_slim", source.shape)
        return Workload(name, source.model, module, frames, source.shape)
    return Workload(name, source.model, Path(source.model), frames)

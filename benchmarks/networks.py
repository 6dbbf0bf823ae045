"""The benchmark networks: source, clip, preprocessing, calibration frames."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def _frames(source: Path, preset: str, count: int, shape: Any, **options: Any) -> list[Any]:
    from resq_tvm.processing import preprocessor
    from resq_tvm.video import open_source

    prepare = preprocessor(preset, shape)
    with open_source(source, **options) as clip:
        return [prepare(frame) for _, frame in zip(range(count), clip, strict=False)]


def workload(name: str, count: int = 24) -> Workload:
    """Return a benchmark network by name: ``ddrnet``, ``espnet`` or ``blazepose``."""
    if name == "ddrnet":
        from resq_tvm.zoo import build

        shape = (1, 3, 256, 512)
        module, _ = build("ddrnet23_slim", shape)
        frames = _frames(DATA / "camvid" / "val", "imagenet_seg", count, shape)
        return Workload(name, "zoo:ddrnet23_slim", module, frames, shape)
    if name == "espnet":
        path = DATA / "models" / "espnet_camvid.onnx"
        frames = _frames(DATA / "camvid" / "val", "espnet_camvid", count, (1, 3, 360, 480))
        return Workload(name, str(path), path, frames)
    if name == "blazepose":
        path = DATA / "models" / "blazepose_full.tflite"
        frames = _frames(
            DATA / "clips" / "vtest.avi", "blazepose", count, (1, 256, 256, 3),
            frames=(400, 432), crop=(160, 240, 160, 160),
        )  # fmt: skip
        return Workload(name, str(path), path, frames)
    raise SystemExit(f"network {name!r} is unknown; use ddrnet, espnet or blazepose")

"""Clips of static cameras, and the networks that watch them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.networks import DATA
from resq_tvm.video.clip import Clip, FrameRange
from resq_tvm.video.source import open_clip


@dataclass(frozen=True)
class Case:
    """A network on a part of a clip."""

    model: Path
    processing: str
    clip: Path
    frames: str
    fitted: slice  # of these frames, those that calibrate and fit
    period: int
    crop: tuple[int, int, int, int] | None = None
    held: tuple[str, ...] = ()  # outputs that residual frames need not compute

    def unseen(self, count: int) -> list[int]:
        """Return which of so many frames neither calibrate nor fit."""
        fitted = range(count)[self.fitted]
        return [n for n in range(count) if n not in fitted]

    def open(self) -> Clip:
        """Return the clip, cut and cropped."""
        return open_clip(str(self.clip)).select(
            frames=FrameRange.parse(self.frames), crop=self.crop
        )


ESPNET, BLAZEPOSE = DATA / "models/espnet_camvid.onnx", DATA / "models/blazepose_full.tflite"
VTEST, CAR = DATA / "clips/vtest.avi", DATA / "clips/car-detection.mp4"
CASES = {
    "blazepose_vtest": Case(
        BLAZEPOSE, "blazepose", VTEST, "400:432", slice(16), 8, (160, 240, 160, 160),
        ("Identity_2", "Identity_3"),  # the person's mask, heat maps: landmarks do not read them
    ),
    # A part of the clip where holding is clearly worse than computing every frame.
    "espnet_car": Case(ESPNET, "espnet_camvid", CAR, "48:96", slice(24), 8),
    # The whole picture, over the whole clip.
    "espnet_vtest": Case(ESPNET, "espnet_camvid", VTEST, "0:795", slice(480, 504), 8),
    # The lower right quarter of the picture and a spot of the path, over the whole clip; somebody
    # passes the spot in a fifth of the frames.
    "espnet_quarter": Case(
        ESPNET, "espnet_camvid", VTEST, "0:795", slice(48), 8, (288, 384, 288, 384)
    ),
    "espnet_spot": Case(
        ESPNET, "espnet_camvid", VTEST, "0:795", slice(528, 576), 8, (384, 256, 192, 256)
    ),
    # The same street until the clip ends: half of the time it is empty.
    "espnet_street": Case(ESPNET, "espnet_camvid", CAR, "48:376", slice(24), 8),
}  # fmt: skip

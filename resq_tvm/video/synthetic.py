"""Generated clips: a static textured scene in which smooth shapes move."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from resq_tvm.video.clip import Clip, FrameRange, Picture

_SHAPES = 5
_NOISE = 2.0  # grey levels; about what a camera in daylight has


def open_random(
    height: int, width: int, frames: int = 32, seed: int = 0, fps: float = 25.0
) -> Clip:
    """Return a clip of ``frames`` generated pictures; the same seed gives the same clip."""

    def source() -> Iterator[Picture | None]:
        rng = np.random.default_rng(seed)
        background = _texture(rng, height, width)
        span = float(min(height, width))
        centres = rng.uniform(0.2, 0.8, (_SHAPES, 2)) * (width, height)
        radii = rng.uniform(0.06, 0.2, _SHAPES) * span
        speeds = rng.uniform(-0.02, 0.02, (_SHAPES, 2)) * span
        colours = rng.integers(0, 256, (_SHAPES, 3))
        while True:
            canvas = background.copy()
            for centre, radius, colour in zip(centres, radii, colours, strict=True):
                point = (int(centre[0]), int(centre[1]))
                cv2.circle(canvas, point, int(radius), colour.tolist(), -1, cv2.LINE_AA)
            noise = rng.normal(0, _NOISE, canvas.shape)
            yield np.clip(canvas + noise, 0, 255).astype(np.uint8)
            centres += speeds
            beyond = (centres < 0) | (centres > (width, height))
            speeds[beyond] *= -1

    return Clip("random", source, fps, FrameRange(0, frames))


def _texture(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return smooth colour at three scales, as natural pictures have."""
    total = np.zeros((height, width, 3), dtype=np.float32)
    for cells, weight in ((4, 1.0), (12, 0.5), (40, 0.25)):
        coarse = rng.uniform(0, 1, (cells, cells, 3)).astype(np.float32)
        total += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    total -= total.min()
    return np.asarray(total / max(float(total.max()), 1e-6) * 255, dtype=np.uint8)

"""Calibration data: clips of prepared frames from what a user names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import CalibrationError
from resq_tvm.processing.preprocess import Preprocessor
from resq_tvm.video.clip import Clip
from resq_tvm.video.decode import IMAGE_SUFFIXES
from resq_tvm.video.source import open_clip

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".y4m", ".mpg"})


@dataclass(frozen=True)
class PreparedClip:
    """A clip as network inputs; every iteration decodes it again, so nothing is held."""

    clip: Clip
    prepare: Preprocessor

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for picture in self.clip:
            if picture is not None:
                yield self.prepare(picture)


def calibration_clips(name: str, size: tuple[int, int]) -> list[Clip]:
    """Return the clips that ``--calibration`` names.

    Parameters
    ----------
    name : str
        A video file, a folder of images (one clip), a folder of videos (a clip each), or
        ``random``.
    size : tuple of int
        Height and width of generated frames.

    Raises
    ------
    ClipError
        If there is no such clip.
    CalibrationError
        If a folder holds both images and videos, or neither.
    """
    folder = Path(name)
    if not folder.is_dir():
        return [open_clip(name, size=size)]
    suffixes = {p.suffix.lower() for p in folder.iterdir() if p.is_file()}
    images, videos = suffixes & IMAGE_SUFFIXES, suffixes & VIDEO_SUFFIXES
    if images and videos:
        raise CalibrationError(
            f"calibration folder {name!r} holds images and videos; keep one kind in it"
        )
    if not videos:
        return [open_clip(name)]
    return [
        open_clip(str(path))
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in VIDEO_SUFFIXES
    ]

"""Decode video files, image folders and cameras with PyAV."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from resq_tvm.errors import ClipError
from resq_tvm.video.clip import Clip, OnBroken, Picture

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})

# Containers miscount a few frames (edit lists, trailing B-frames); more than that is a break.
_TOLERATED_SHORTFALL = 0.01


def open_file(path: Path, on_broken: OnBroken = "raise") -> Clip:
    """Return a clip of a video (or single image) file.

    Raises
    ------
    ClipError
        If the file is missing, is not a video, or has no video stream.
    """
    if not path.is_file():
        raise ClipError(f"clip {str(path)!r} does not exist; check the path")
    with _open(path) as container:
        rate = container.streams.video[0].average_rate
    return Clip(str(path), lambda: _decode(path, on_broken), float(rate) if rate else 25.0)


def open_folder(path: Path, on_broken: OnBroken = "raise", fps: float = 15.0) -> Clip:
    """Return a clip of a folder's images in natural order (``f2.png`` before ``f10.png``).

    Raises
    ------
    ClipError
        If the folder holds no image.
    """
    images = sorted(
        (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=natural_key
    )
    if not images:
        raise ClipError(
            f"clip {str(path)!r} is empty: the folder holds no image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))})"
        )

    def source() -> Iterator[Picture | None]:
        for image in images:
            try:
                yield read_image(image)
            except ClipError:
                if on_broken == "raise":
                    raise
                yield None

    return Clip(str(path), source, fps)


def open_camera(index: int) -> Clip:
    """Return a clip of camera ``/dev/video<index>``; it ends only when the consumer stops.

    Raises
    ------
    ClipError
        If there is no such camera.
    """
    device = Path(f"/dev/video{index}")
    if not device.exists():
        raise ClipError(f"camera {index} is absent ({device} does not exist); give a file instead")

    def source() -> Iterator[Picture | None]:
        with _open(device, format="v4l2") as container:
            for packet in container.demux(video=0):
                yield from _pictures(packet)

    return Clip(f"camera {index}", source)


def read_image(path: Path) -> Picture:
    """Read one image as uint8 RGB ``(h, w, 3)``.

    Raises
    ------
    ClipError
        If the file is not an image.
    """
    for picture in _decode(path, "raise"):
        if picture is not None:
            return picture
    raise ClipError(f"image {str(path)!r} holds no picture; remove or replace it")


def _open(path: Path, **options: Any) -> Any:
    try:
        container = av.open(str(path), **options)
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ClipError(f"clip {str(path)!r} is not a readable video ({reason})") from None
    if not container.streams.video:
        container.close()
        raise ClipError(f"clip {str(path)!r} has no video stream")
    return container


def _decode(path: Path, on_broken: OnBroken) -> Iterator[Picture | None]:
    """Yield pictures; at a break, raise after the good ones, or yield None and go on."""
    good = 0
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # frame threads report an error several frames late
        declared = stream.frames
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except av.error.FFmpegError as error:
                if on_broken == "raise":
                    raise _broken(path, good, error.strerror) from None
                return  # the container cannot be followed beyond this point
            try:
                for picture in _pictures(packet):
                    if picture is None and on_broken == "raise":
                        raise _broken(path, good, "damaged frame")
                    good += picture is not None
                    yield picture
            except av.error.FFmpegError as error:
                if on_broken == "raise":
                    raise _broken(path, good, error.strerror) from None
                yield None
    if on_broken == "raise" and 0 < good < declared * (1 - _TOLERATED_SHORTFALL):
        raise _broken(path, good, f"the container declares {declared} frames")


def _pictures(packet: Any) -> Iterator[Picture | None]:
    if packet.is_corrupt:
        yield None
        return
    for frame in packet.decode():
        yield None if frame.is_corrupt else np.asarray(frame.to_ndarray(format="rgb24"))


def _broken(path: Path, good: int, reason: str | None) -> ClipError:
    return ClipError(
        f"clip {str(path)!r} breaks after {good} good frames ({reason}); "
        "repair it, or accept gaps with --on-broken skip"
    )


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Return the sorting key by which ``f2.png`` comes before ``f10.png``."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in parts]

"""Raw RGB frames from a byte stream (standard input)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.video.clip import Clip, OnBroken, Picture


def parse_raw_shape(text: str) -> tuple[int, int]:
    """Parse ``HxWx3`` and return height and width.

    Raises
    ------
    ConfigError
        If the text is of another form.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x3", text.strip().lower())
    if match is None or not int(match[1]) or not int(match[2]):
        raise ConfigError(f"raw shape {text!r} is malformed; write HEIGHTxWIDTHx3 (RGB bytes)")
    return int(match[1]), int(match[2])


def open_raw(
    stream: BinaryIO, shape: tuple[int, int], on_broken: OnBroken = "raise", fps: float = 25.0
) -> Clip:
    """Return a clip of RGB frames, 3 bytes a pixel, back to back; it can be read once.

    A last frame that is cut short raises `ClipError`, or counts as broken with ``"skip"``.
    """
    height, width = shape
    size = height * width * 3

    def source() -> Iterator[Picture | None]:
        count = 0
        while data := _read(stream, size):
            if len(data) == size:
                count += 1
                yield np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
            elif on_broken == "raise":
                raise ClipError(
                    f"raw input breaks after {count} good frames ({len(data)} of {size} bytes); "
                    "check --raw-shape"
                )
            else:
                yield None

    return Clip("standard input", source, fps)


def _read(stream: BinaryIO, size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end (a pipe gives them in pieces)."""
    data = bytearray()
    while len(data) < size and (piece := stream.read(size - len(data))):
        data += piece
    return bytes(data)

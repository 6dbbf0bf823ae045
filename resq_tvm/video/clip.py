"""What every source of frames is: a `Clip`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import ClipError, ConfigError

Picture = NDArray[np.uint8]  # RGB, (height, width, 3)
OnBroken = Literal["raise", "skip"]


class FrameSource(Protocol):
    """Starts a fresh run over the frames; ``None`` is a dropped or broken frame."""

    def __call__(self) -> Iterator[Picture | None]:
        """Return an iterator from the first frame on."""
        ...


@dataclass(frozen=True)
class FrameRange:
    """Frames ``start`` (inclusive) to ``stop`` (exclusive, None: the end)."""

    start: int = 0
    stop: int | None = None

    @classmethod
    def parse(cls, text: str) -> FrameRange:
        """Parse ``START:STOP``, ``START:``, ``:STOP`` or ``COUNT``.

        Raises
        ------
        ConfigError
            If the text is of another form, negative, or selects nothing.
        """
        first, colon, last = text.partition(":")
        try:
            start = int(first) if first and colon else 0
            stop = int(last or first) if last or not colon else None
        except ValueError:
            raise ConfigError(
                f"frame range {text!r} is malformed; write START:STOP such as 400:432"
            ) from None
        if start < 0 or (stop is not None and stop <= start):
            raise ConfigError(f"frame range {text!r} selects no frame; write START:STOP")
        return cls(start, stop)


@dataclass(frozen=True)
class Clip:
    """A named, repeatable (for files and folders) source of RGB pictures.

    Iteration yields uint8 ``(height, width, 3)``, and ``None`` for a broken frame where the
    source was opened with ``on_broken="skip"``.

    Raises
    ------
    ClipError
        During iteration: the clip holds no frame, the selected range is beyond its end, the crop
        leaves a frame, or the clip breaks (after the good frames before the break).
    """

    name: str
    source: FrameSource
    fps: float = 25.0
    frames: FrameRange = FrameRange()
    crop: tuple[int, int, int, int] | None = None

    def select(
        self,
        frames: FrameRange | None = None,
        crop: tuple[int, int, int, int] | None = None,
    ) -> Clip:
        """Return the same clip with another frame range or crop ``(y, x, height, width)``."""
        return replace(self, frames=frames or self.frames, crop=crop or self.crop)

    def __iter__(self) -> Iterator[Picture | None]:
        count = -1
        for count, picture in enumerate(self.source()):
            if self.frames.stop is not None and count >= self.frames.stop:
                return
            if count >= self.frames.start:
                yield None if picture is None else self._cropped(picture)
                if count + 1 == self.frames.stop:
                    return  # a camera would otherwise be asked for one frame too many
        if count < 0:
            raise ClipError(f"clip {self.name!r} is empty; give one with at least one frame")
        if count < self.frames.start:
            raise ClipError(
                f"clip {self.name!r} has {count + 1} frames, the range begins at frame "
                f"{self.frames.start}; choose an earlier one"
            )

    def _cropped(self, picture: Picture) -> Picture:
        if self.crop is None:
            return picture
        y, x, height, width = self.crop
        if y + height > picture.shape[0] or x + width > picture.shape[1]:
            raise ClipError(
                f"clip {self.name!r}: crop y {y}, x {x}, {height}x{width} leaves frames of "
                f"{picture.shape[0]}x{picture.shape[1]}; make it smaller"
            )
        return picture[y : y + height, x : x + width]


def parse_crop(text: str) -> tuple[int, int, int, int]:
    """Parse ``y,x,height,width``.

    Raises
    ------
    ConfigError
        If the text is not four numbers, or they are not a window.
    """
    try:
        y, x, height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"crop {text!r} is malformed; write y,x,height,width") from None
    if min(y, x) < 0 or min(height, width) < 1:
        raise ConfigError(f"crop {text!r} is not a window; write y,x,height,width")
    return y, x, height, width

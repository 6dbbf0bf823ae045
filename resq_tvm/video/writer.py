"""Write RGB pictures as an H.264 video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np

from resq_tvm.errors import OutputError
from resq_tvm.video.clip import Picture


class VideoWriter:
    """A context manager with `add`; the file is complete when the context ends.

    Parameters
    ----------
    path : Path
        Where to write; the suffix chooses the container (``.mp4``).
    fps : float
        Frames per second.
    min_height : int
        Smaller pictures are enlarged to at least this height.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """

    def __init__(self, path: Path, fps: float, min_height: int = 360) -> None:
        self._min_height = min_height
        try:
            self._container = av.open(str(path), "w")
        except (av.error.FFmpegError, OSError) as error:
            raise OutputError(f"video {str(path)!r} cannot be written ({error})") from None
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001)
        )
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}
        self._size: tuple[int, int] | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._size is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def add(self, picture: Picture) -> None:
        """Append a picture; later ones are brought to the first one's size."""
        if self._size is None:
            factor = max(1, -(-self._min_height // picture.shape[0]))
            # yuv420p halves the resolution of colour: sizes must be even.
            self._size = (picture.shape[1] * factor // 2 * 2, picture.shape[0] * factor // 2 * 2)
            self._stream.width, self._stream.height = self._size
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = np.asarray(cv2.resize(picture, self._size), dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._container.mux(self._stream.encode(frame))

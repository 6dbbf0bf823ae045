"""Frame to network input: crop, bilinear resize, colour order, normalisation."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import ConfigError, FrameError
from resq_tvm.processing.config import InputConfig


class Preprocessor:
    """Turns uint8 RGB frames into float32 network inputs of batch 1.

    Parameters
    ----------
    config : InputConfig
        What to do.
    shape : tuple of int
        The network input's shape as in the source model, four dimensions, three channels.
    layout : str
        ``"NCHW"`` or ``"NHWC"``.

    Raises
    ------
    ConfigError
        If the input is not an image of three channels.
    """

    def __init__(self, config: InputConfig, shape: tuple[int, ...], layout: str) -> None:
        channels_first = layout == "NCHW"
        if len(shape) != 4 or shape[0] != 1 or shape[1 if channels_first else 3] != 3:
            raise ConfigError(
                f"processing needs one image input of batch 1 and 3 channels; this network takes "
                f"{'x'.join(map(str, shape))} {layout}"
            )
        self.config = config
        self.channels_first = channels_first
        self.height, self.width = shape[2:4] if channels_first else shape[1:3]
        # One row's factors: numpy's inner loop over a row is ten times faster than over 3 values.
        std = np.asarray(config.std, dtype=np.float64)
        factor = config.scale / std
        offset = -np.asarray(config.mean, dtype=np.float64) * factor
        self._factor = np.tile(factor, self.width).astype(np.float32)
        self._offset = np.tile(offset, self.width).astype(np.float32)

    def crop(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the window of the frame that the network sees, at the frame's resolution.

        Raises
        ------
        FrameError
            If the frame is not uint8 ``(h, w, 3)`` or the configured crop leaves it.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise FrameError(
                f"frame of shape {frame.shape} and dtype {frame.dtype} is not a picture; "
                "give uint8 (height, width, 3)"
            )
        if self.config.crop is None:
            return frame
        y, x, height, width = self.config.crop
        if y + height > frame.shape[0] or x + width > frame.shape[1]:
            raise FrameError(
                f"crop y {y}, x {x}, {height}x{width} leaves the frame of "
                f"{frame.shape[0]}x{frame.shape[1]}; make it smaller"
            )
        return frame[y : y + height, x : x + width]

    def fit(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the frame cropped and resized to the network's size, still uint8 RGB.

        Raises
        ------
        FrameError
            If the frame is not uint8 ``(h, w, 3)``, the crop leaves it, or it has another size
            and ``resize`` is ``"none"``.
        """
        frame = self.crop(frame)
        if frame.shape[:2] == (self.height, self.width):
            return frame
        if self.config.resize == "none":
            raise FrameError(
                f"frame of {frame.shape[0]}x{frame.shape[1]} does not have the network's size "
                f"{self.height}x{self.width} and resize is 'none'"
            )
        resized = cv2.resize(frame, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, dtype=np.uint8)

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the network input, float32, in the source model's layout.

        An NCHW input is a transposed view of NHWC memory, which a session takes without a copy.
        """
        fitted = self.fit(frame)
        if self.config.colour == "BGR":
            fitted = fitted[:, :, ::-1]
        rows = np.ascontiguousarray(fitted).reshape(self.height, self.width * 3)
        values = np.multiply(rows, self._factor, dtype=np.float32)
        values += self._offset
        image = values.reshape(1, self.height, self.width, 3)
        return image.transpose(0, 3, 1, 2) if self.channels_first else image

"""Frames into a network's tensors and outputs out of them: checks, layouts, copies."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import FrameError
from resq_tvm.manifest import Manifest, TensorEntry

Frame = NDArray[np.float32] | tuple[NDArray[np.float32], ...]
Output = NDArray[np.float32] | tuple[NDArray[np.float32], ...]

_TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = (0, 3, 1, 2)


class Buffers:
    """The tensors in which one stream's frames are handed to the network.

    Parameters
    ----------
    manifest : Manifest
        Names, shapes and layouts of inputs and outputs.
    copy : bool
        Whether outputs are copies that the caller owns, or read-only views.
    """

    def __init__(self, manifest: Manifest, copy: bool) -> None:
        self._entries = manifest.inputs
        self._layouts = tuple(output.layout for output in manifest.outputs)
        self._copy = copy
        self._tensors: list[Any] = [None] * len(self._entries)
        self._views: list[Any] = [None] * len(self._entries)
        self._lasting: tuple[Any, list[NDArray[np.float32]]] = (None, [])  # outputs, as arrays
        # Fresh memory for every check would be mapped page by page, which takes as long again.
        self._finite: list[Any] = [None] * len(self._entries)
        self._kept: dict[str, list[int]] = {}  # program → inputs that become state

    @property
    def tensors(self) -> list[Any]:
        """Those that there are at the moment."""
        return [tensor for tensor in self._tensors if tensor is not None]

    def load(self, frame: Frame, index: int) -> list[Any]:
        """Check a frame and copy it into tensors, NHWC.

        Parameters
        ----------
        frame : ndarray or tuple of ndarray
            One float32 array per network input, in the source model's shape and layout.
        index : int
            Its position in the stream, for messages.

        Raises
        ------
        FrameError
            If the shape or dtype is wrong or the frame holds NaN or infinity.
        """
        arrays = frame if isinstance(frame, tuple) else (frame,)
        if len(arrays) != len(self._entries):
            raise FrameError(
                f"frame {index} has {len(arrays)} arrays, the network takes "
                f"{len(self._entries)}: {', '.join(e.name for e in self._entries)}"
            )
        for entry, array in zip(self._entries, arrays, strict=True):
            _check(entry, array, index)
        return [self._fill(i, array, index) for i, array in enumerate(arrays)]

    def give_up(self, state: Any, program: str) -> None:
        """Give up tensors that became part of the new state that a program returned."""
        if program not in self._kept:  # a program does the same every time
            held = {tensor.data_ptr() for tensor in state}
            self._kept[program] = [
                i for i, tensor in enumerate(self._tensors) if tensor.data_ptr() in held
            ]
        for i in self._kept[program]:
            self._tensors[i] = self._views[i] = None

    def unload(self, results: Any, lasting: bool = False) -> Output:
        """Return a program's outputs in the source model's shape and layout, one as it is.

        ``lasting`` outputs come again, with other contents.
        """
        arrays = self._lasting[1] if results is self._lasting[0] else [*map(_view, results)]
        self._lasting = (results, arrays) if lasting else (None, [])
        outputs = tuple(self._array(i, array) for i, array in enumerate(arrays))
        return outputs[0] if len(outputs) == 1 else outputs

    def _fill(self, number: int, array: NDArray[np.float32], index: int) -> Any:
        import tvm

        entry = self._entries[number]
        if entry.layout == "NCHW":
            array = array.transpose(_TO_NHWC)
        if self._tensors[number] is None:
            self._tensors[number] = tvm.runtime.empty(array.shape, "float32")
            self._views[number] = _view(self._tensors[number])
        view = self._views[number]
        _copy(view, array)
        self._finite[number] = np.isfinite(view, out=self._finite[number])  # the copy is contiguous
        if not self._finite[number].all():
            raise FrameError(
                f"frame {index}, input {entry.name} holds NaN or infinity; clean the frame or "
                "drop it"
            )
        return self._tensors[number]

    def _array(self, index: int, array: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._copy:
            array = array.copy()
        else:
            array.flags.writeable = False
        return array.transpose(_TO_NCHW) if self._layouts[index] == "NCHW" else array


def _view(tensor: Any) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", np.from_dlpack(tensor))


def _copy(destination: NDArray[np.float32], source: NDArray[np.float32]) -> None:
    """Copy an array whose channels come last, whatever their order in memory."""
    planes = source.ndim == 4 and source.strides[3] > source.strides[2]
    if planes and 1 < source.shape[3] <= 4:
        import cv2

        # A quarter of the time of a plain copy, which jumps from plane to plane, or less.
        for picture, own in zip(source, destination, strict=True):
            cv2.merge([picture[..., c] for c in range(source.shape[3])], dst=own)
    else:
        np.copyto(destination, source)


def _check(entry: TensorEntry, array: Any, index: int) -> None:
    place = f"frame {index}, input {entry.name}"
    if not isinstance(array, np.ndarray):
        raise FrameError(f"{place} is a {type(array).__name__}; give a float32 NumPy array")
    if array.dtype != np.float32:
        raise FrameError(f"{place} has dtype {array.dtype}; give float32")
    if array.shape != entry.shape:
        raise FrameError(
            f"{place} has shape {'x'.join(map(str, array.shape))}; the network takes "
            f"{'x'.join(map(str, entry.shape))} {entry.layout}".rstrip()
        )

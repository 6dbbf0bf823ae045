"""Run an artifact frame by frame: keyframe or residual, carried state, broken frames."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from resq_tvm.artifact import Artifact
from resq_tvm.device import prepare_thread_pool, resolve_threads, use_threads
from resq_tvm.errors import ClipError, ConfigError, FrameError
from resq_tvm.manifest import TensorEntry
from resq_tvm.programs import Programs

Frame = NDArray[np.float32] | tuple[NDArray[np.float32], ...]
Output = NDArray[np.float32] | tuple[NDArray[np.float32], ...]
OnBroken = Literal["raise", "skip"]

_TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = (0, 3, 1, 2)


@dataclass(frozen=True)
class FrameInfo:
    """What the session did with its latest frame.

    ``index`` counts the stream's frames from zero, dropped and broken ones included; ``ms`` is
    the time of the network itself, without the checks and copies around it.
    """

    kind: Literal["keyframe", "residual"]
    index: int
    ms: float


class Session:
    """One stream through an artifact.

    Parameters
    ----------
    artifact : Artifact or path
        What to run; several sessions may share one loaded `Artifact`.
    period : int, optional
        A keyframe every ``period`` frames; the artifact's own by default. A frame-quantized
        artifact computes every frame on its own.
    copy : bool
        True returns outputs that the caller owns. False returns read-only views of the network's
        own buffers, which stay valid as long as they are referenced.
    threads : int, optional
        Threads per frame; every available CPU by default.
    threshold_scale : float
        Factor on the thresholds of an artifact that chooses bits: more leaves out more.

    Raises
    ------
    ConfigError
        If ``period`` or ``threads`` is out of range.

    Notes
    -----
    A session may be used by one thread at a time. Frames are given and outputs returned in the
    source model's layout, float32, batch 1. The session never keeps a reference to a frame.
    """

    def __init__(
        self,
        artifact: Artifact | str | PathLike[str],
        *,
        period: int | None = None,
        copy: bool = True,
        threads: int | None = None,
        threshold_scale: float = 1.0,
    ) -> None:
        prepare_thread_pool()
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact.load(artifact)
        manifest = self.artifact.manifest
        self.period = manifest.period if period is None else period
        if self.period < 1:
            raise ConfigError(f"period {self.period} is out of range; use 1 or more")
        self.threads = resolve_threads(threads)
        self.last: FrameInfo | None = None
        self._copy = copy
        self._inputs = manifest.inputs
        self._layouts = tuple(output.layout for output in manifest.outputs)
        self._programs = Programs(self.artifact, threshold_scale)
        self._buffers: list[Any] = [None] * len(self._inputs)
        self._since_keyframe = 0
        self._index = 0

    @property
    def position(self) -> int:
        """Frames of the stream so far, lost ones included: the index of the next frame."""
        return self._index

    def reset(self) -> None:
        """Forget the stream: the next frame is frame 0 and a keyframe."""
        self._programs.state = None
        self._index = 0
        self.last = None

    def force_keyframe(self) -> None:
        """Make the next frame a keyframe; the period restarts there."""
        self._programs.state = None

    def __call__(self, frame: Frame) -> Output:
        """Run one frame.

        Parameters
        ----------
        frame : ndarray or tuple of ndarray
            One float32 array per network input, in the source model's shape and layout.

        Returns
        -------
        ndarray or tuple of ndarray
            One float32 array per network output, in the source model's shape and layout; a
            network of one output gives the array itself.

        Raises
        ------
        FrameError
            If the shape or dtype is wrong or the frame holds NaN or infinity. The session is
            then as it was before the call.
        """
        arrays = self._checked(frame)
        tensors = [self._load(i, array) for i, array in enumerate(arrays)]
        use_threads(self.threads)
        programs = self._programs
        before = programs.state
        is_key = not programs.has_residual or before is None or self._is_due()
        start = time.perf_counter()
        results = programs.keyframe(tensors) if is_key else programs.residual(tensors)
        elapsed = time.perf_counter() - start
        if programs.state is not before:
            self._give_up_buffers(programs.state)
        self._since_keyframe = 1 if is_key else self._since_keyframe + 1
        self.last = FrameInfo("keyframe" if is_key else "residual", self._index, elapsed * 1e3)
        self._index += 1
        outputs = tuple(self._unload(i, tensor) for i, tensor in enumerate(results))
        return outputs[0] if len(outputs) == 1 else outputs

    def run(
        self, frames: Iterable[Frame | None], *, on_broken: OnBroken = "raise"
    ) -> Iterator[Output]:
        """Run a stream and yield the outputs of its good frames.

        Parameters
        ----------
        frames : iterable
            Frames as `__call__` takes them; ``None`` stands for a dropped frame.
        on_broken : str
            ``"raise"`` stops at the first dropped or broken frame; ``"skip"`` yields nothing for
            it and makes the next good frame a keyframe. `last.index` tells which frame an
            output belongs to.

        Raises
        ------
        FrameError, ClipError
            With ``"raise"``, for a dropped or broken frame or a source that fails.
        """
        source = iter(frames)
        while True:
            try:
                frame = next(source)
            except StopIteration:
                return
            except (FrameError, ClipError):
                if on_broken == "raise":
                    raise
                self.skip()
                continue
            try:
                if frame is None:
                    raise FrameError(
                        f"frame {self._index} was dropped by its source; "
                        "pass on_broken='skip' to go on with a keyframe"
                    )
                output = self(frame)
            except FrameError:
                if on_broken == "raise":
                    raise
                self.skip()
                continue
            yield output

    def skip(self) -> None:
        """Count a frame that was lost; the next frame is a keyframe."""
        self._index += 1
        self.force_keyframe()

    @contextmanager
    def observed(self) -> Iterator[list[tuple[str, float]]]:
        """Record every kernel call of the frames that run inside the context.

        Yields
        ------
        list of (str, float)
            Filled while frames run: the kernel's name and its milliseconds. Each call costs some
            microseconds more while it is observed.
        """
        calls: list[tuple[str, float]] = []
        start = 0.0

        def note(_function: Any, name: str, before: bool, *_values: Any) -> int:
            nonlocal start
            if name.startswith("vm."):
                return 0  # the machine's own housekeeping
            if before:
                start = time.perf_counter()
            else:
                calls.append((name, (time.perf_counter() - start) * 1e3))
            return 0  # go on with the call

        self._programs.machine.set_instrument(note)
        try:
            yield calls
        finally:
            self._programs.machine.set_instrument(lambda *_values: 0)

    def _is_due(self) -> bool:
        return self._since_keyframe >= self.period

    def _checked(self, frame: Frame) -> tuple[NDArray[np.float32], ...]:
        arrays = frame if isinstance(frame, tuple) else (frame,)
        if len(arrays) != len(self._inputs):
            raise FrameError(
                f"frame {self._index} has {len(arrays)} arrays, the network takes "
                f"{len(self._inputs)}: {', '.join(e.name for e in self._inputs)}"
            )
        for entry, array in zip(self._inputs, arrays, strict=True):
            _check(entry, array, self._index)
        return arrays

    def _load(self, index: int, array: NDArray[np.float32]) -> Any:
        """Copy a frame into a tensor of ours, NHWC."""
        import tvm

        if self._inputs[index].layout == "NCHW":
            array = array.transpose(_TO_NHWC)
        if self._buffers[index] is None:
            self._buffers[index] = tvm.runtime.empty(array.shape, "float32")
        np.copyto(np.from_dlpack(self._buffers[index]), array)
        return self._buffers[index]

    def _give_up_buffers(self, state: Any) -> None:
        """Give up input buffers that became part of a new state."""
        held = {tensor.data_ptr() for tensor in state}
        self._buffers = [None if buffer.data_ptr() in held else buffer for buffer in self._buffers]

    def _unload(self, index: int, tensor: Any) -> NDArray[np.float32]:
        array = cast("NDArray[np.float32]", np.from_dlpack(tensor))
        if self._copy:
            array = array.copy()
        else:
            array.flags.writeable = False
        return array.transpose(_TO_NCHW) if self._layouts[index] == "NCHW" else array


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
    if not np.isfinite(array).all():
        raise FrameError(f"{place} holds NaN or infinity; clean the frame or drop it")

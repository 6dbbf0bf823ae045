"""Run a clip through a session: prepared inputs in, predictions and an overlay video out."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.files import atomic_file
from resq_tvm.manifest import Manifest
from resq_tvm.processing.config import ProcessingConfig, RawTask
from resq_tvm.processing.overlay import draw
from resq_tvm.processing.postprocess import interpret
from resq_tvm.processing.preprocess import Preprocessor
from resq_tvm.session import OnBroken, Session
from resq_tvm.video.clip import Clip, Picture
from resq_tvm.video.writer import VideoWriter

Arrays = tuple[NDArray[np.float32], ...]


class InputInfo(Protocol):
    """A network input, from a manifest or from a loaded network."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the source model."""

    @property
    def layout(self) -> str:
        """``"NCHW"``, ``"NHWC"`` or ``""``."""


@dataclass(frozen=True)
class Step:
    """One computed frame: the picture that the network saw, and what came out."""

    index: int
    kind: str
    ms: float
    picture: Picture
    outputs: Arrays
    reason: str | None = None


def preprocessor_for(manifest: Manifest) -> Preprocessor:
    """Return the preprocessor that an artifact's manifest describes.

    Raises
    ------
    ConfigError
        If the network does not take exactly one image.
    """
    return make_preprocessor(manifest.processing, manifest.inputs)


def make_preprocessor(
    processing: ProcessingConfig | None, inputs: Sequence[InputInfo]
) -> Preprocessor:
    """Return the preprocessor for one image input; without a configuration values are 0..1.

    Raises
    ------
    ConfigError
        If the network does not take exactly one image.
    """
    from resq_tvm.processing.presets import PRESETS

    if len(inputs) != 1:
        raise ConfigError(
            f"clips feed one image, this network takes {len(inputs)} inputs; use the Python API"
        )
    config = (processing or PRESETS["raw"]).input
    return Preprocessor(config, tuple(inputs[0].shape), inputs[0].layout)


def steps(session: Session, clip: Clip, on_broken: OnBroken = "raise") -> Iterator[Step]:
    """Run a clip and yield a `Step` for every good frame.

    Raises
    ------
    ClipError, FrameError, ConfigError
        As of `Clip`, `Session.run` and `preprocessor_for`.
    """
    prepare = preprocessor_for(session.artifact.manifest)
    session.reset()
    pictures: list[Picture] = []

    def inputs() -> Iterator[NDArray[np.float32] | None]:
        for picture in clip:
            if picture is None:
                yield None
                continue
            pictures[:] = [prepare.crop(picture)]
            yield prepare(picture)

    for output in session.run(inputs(), on_broken=on_broken):
        last = session.last
        assert last is not None
        outputs = output if isinstance(output, tuple) else (output,)
        yield Step(last.index, last.kind, last.ms, pictures[0], outputs, last.reason)


def predict(
    session: Session,
    clip: Clip,
    output: str | Path,
    *,
    on_broken: OnBroken = "raise",
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Run a clip and write ``OUT.npz``, and ``OUT.mp4`` for segmentation and landmarks.

    Parameters
    ----------
    session : Session
        What to run.
    clip : Clip
        The frames.
    output : path
        ``OUT`` or ``OUT.npz``. The archive holds ``output_0 …`` of shape (frames, …),
        ``frame_index``, ``is_keyframe`` and ``reason`` (why a frame was no residual frame, "" for
        residual frames).
    on_broken : str
        As of `Session.run`.
    progress : callable, optional
        Called with ("frame", count) after every frame.

    Returns
    -------
    dict
        ``frames``, ``keyframes``, ``reasons`` (reason → frames; residual frames have none),
        ``lost``, ``output``, ``overlay`` (or None), ``mean_ms`` (of an NPU ``simulator_ms``:
        what this machine took to simulate a frame).

    Raises
    ------
    ClipError
        If no frame of the clip was good, or as of `steps`.
    OutputError
        If an output cannot be written; nothing is left half-written on any error.
    """
    manifest = session.artifact.manifest
    task = (manifest.processing or ProcessingConfig()).task
    layouts = [entry.layout for entry in manifest.outputs]
    prepare = preprocessor_for(manifest)
    archive_path = Path(output)
    if archive_path.suffix != ".npz":
        archive_path = archive_path.with_name(archive_path.name + ".npz")
    overlay_path = None if isinstance(task, RawTask) else archive_path.with_suffix(".mp4")
    frames = keyframes = 0
    total_ms = 0.0
    reasons: Counter[str] = Counter()
    with ExitStack() as stack:
        archive = NpzWriter(stack.enter_context(atomic_file(archive_path)))
        stack.enter_context(archive)
        video = None
        if overlay_path is not None:
            staging = stack.enter_context(atomic_file(overlay_path))
            video = stack.enter_context(VideoWriter(staging, clip.fps))
        for step in steps(session, clip, on_broken):
            archive.add(step)
            if video is not None:
                prediction = interpret(task, step.outputs, layouts)
                size = (prepare.height, prepare.width)
                video.add(draw(step.picture, prediction, task, size, step.kind))
            frames += 1
            keyframes += step.kind == "keyframe"
            total_ms += step.ms
            if step.reason is not None:
                reasons[step.reason] += 1
            if progress is not None:
                progress("frame", frames)
        if frames == 0:
            raise ClipError(f"clip {clip.name!r} has no good frame; nothing was predicted")
    return {
        "frames": frames,
        "keyframes": keyframes,
        "reasons": dict(reasons),
        "lost": session.position - frames,
        "output": str(archive_path),
        "overlay": None if overlay_path is None else str(overlay_path),
        "simulator_ms" if manifest.is_npu else "mean_ms": total_ms / frames,
    }


class NpzWriter:
    """Write ``.npz`` archives of arrays that grow frame by frame, without holding them.

    An array's header states its length, which is known only at the end: bodies go to unnamed
    temporary files beside the archive first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bodies: list[Any] = []
        self._shapes: list[tuple[int, ...]] = []
        self._indices: list[int] = []
        self._kinds: list[bool] = []
        self._reasons: list[str] = []

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        try:
            if kind is None:
                self._assemble()
        finally:
            for body in self._bodies:
                body.close()

    def add(self, step: Step) -> None:
        """Append one frame's outputs; a leading batch dimension of 1 becomes the frames'."""
        if not self._bodies:
            folder = self._path.parent
            self._bodies = [tempfile.TemporaryFile(dir=folder) for _ in step.outputs]
            self._shapes = [o.shape[1:] if o.shape[:1] == (1,) else o.shape for o in step.outputs]
        for body, array in zip(self._bodies, step.outputs, strict=True):
            body.write(np.ascontiguousarray(array, dtype=np.float32).data)
        self._indices.append(step.index)
        self._kinds.append(step.kind == "keyframe")
        self._reasons.append(step.reason or "")

    def _assemble(self) -> None:
        with zipfile.ZipFile(self._path, "w") as archive:
            for i, (body, shape) in enumerate(zip(self._bodies, self._shapes, strict=True)):
                header = {
                    "descr": "<f4",
                    "fortran_order": False,
                    "shape": (len(self._indices), *shape),
                }
                with archive.open(f"output_{i}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(entry, header)
                    body.seek(0)
                    copyfileobj(body, entry)
            for name, values in (
                ("frame_index", np.array(self._indices, dtype=np.int64)),
                ("is_keyframe", np.array(self._kinds, dtype=np.bool_)),
                ("reason", np.array(self._reasons, dtype=np.str_)),
            ):
                buffer = io.BytesIO()
                np.save(buffer, values)
                archive.writestr(f"{name}.npy", buffer.getvalue())

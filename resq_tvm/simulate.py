"""Run an artifact for an ARM board on the emulated one and count its cycles, which are simulated.

The C++ runtime plays a few frames; its marks tell keyframes from residual frames, and the library's
symbols tell kernels apart. docs/arm-emulation.md says what the figures are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.artifact_files import verify_files
from resq_tvm.bench import prepare_frames
from resq_tvm.buffers import Frame
from resq_tvm.cycles import CycleReport, checked_period
from resq_tvm.edge.build import source_digest, write_runtime
from resq_tvm.errors import FrameError, TargetError
from resq_tvm.files import cache_folder
from resq_tvm.manifest import LIBRARY_NAME, Manifest
from resq_tvm.targets.emulated.board import EmulatedBoard, Execution, Region
from resq_tvm.targets.emulated.cores import MODEL_VERSION, Core
from resq_tvm.targets.preset import PRESETS
from resq_tvm.video.clip import Clip

_PROGRAM = "resq-run"
_KEYFRAME, _RESIDUAL = 1, 2  # regions of the runtime's marks
_ENTRY, _BODY = "__tvm_ffi_", "_compute_"  # around a kernel's name, in its two symbols


@dataclass(frozen=True)
class ProgramCount:
    """What a frame of one program takes, the mean of those that were run.

    Attributes
    ----------
    frames : int
        How many were run.
    ms, cycles : float
        Simulated.
    instructions : float
    bound : float
        Cycles that the core's ports and width need, if no instruction ever waits.
    l2_misses : float
        Of the simulated caches.
    kernels : dict of str to float
        Simulated cycles of each kernel, in order of their names; what is missing to ``cycles`` is
        the virtual machine's.
    """

    frames: int
    ms: float
    cycles: float
    instructions: float
    bound: float
    l2_misses: float
    kernels: dict[str, float]

    def kernel_rows(self) -> list[dict[str, Any]]:
        """Return ``name``, ``cycles`` and ``ms`` of every kernel, all simulated."""
        return [
            {"name": name, "cycles": cycles, "ms": cycles * self.ms / self.cycles}
            for name, cycles in self.kernels.items()
        ]

    def summary(self) -> dict[str, Any]:
        """Return everything but the kernels."""
        return {name: value for name, value in asdict(self).items() if name != "kernels"}

    @classmethod
    def of(cls, region: Region, core: Core) -> ProgramCount:
        """Divide a region's counts by its entries."""
        frames = region.entries
        kernels = {name: cycles / frames for name, cycles in kernel_cycles(region).items()}
        return cls(
            frames,
            region.cycles / frames / core.clock_hz * 1e3,
            region.cycles / frames,
            region.instructions / frames,
            region.bound / frames,
            region.l2_misses / frames,
            kernels,
        )


@dataclass(frozen=True)
class SimulatedReport(CycleReport[ProgramCount]):
    """What `simulate` counted; `to_dict` is the document of ``resq-tvm bench`` for ARM artifacts.

    Attributes
    ----------
    core : Core
    outputs : list of tuple of ndarray
        The network's outputs of every frame, in the source model's layout.
    """

    core: Core
    outputs: list[tuple[NDArray[np.float32], ...]]

    @property
    def machine(self) -> dict[str, Any]:
        """The core, its clock and the version of the emulator's model."""
        return {
            "core": self.core.name,
            "clock_hz": self.core.clock_hz,
            "model": f"emulator-{MODEL_VERSION}",
        }


def kernel_cycles(region: Region) -> dict[str, int]:
    """Return the simulated cycles of each kernel in a region, in order of their names.

    An entry that only checks its arguments may jump to the kernel's body instead of calling it: the
    body's cycles are then no part of the entry's.
    """
    functions = {f.name: f for f in region.functions if f.library == LIBRARY_NAME}
    cycles = {}
    for symbol in sorted(functions):
        if not symbol.startswith(_ENTRY):
            continue
        name = symbol.removeprefix(_ENTRY)
        entry, body = functions[symbol], functions.get(name + _BODY)
        inside = 0 if body is None else body.total_cycles
        called = entry.total_cycles - entry.cycles >= inside
        cycles[name] = entry.total_cycles if called else entry.total_cycles + inside
    return cycles


def simulate(
    artifact: str | PathLike[str],
    clip: Clip | None = None,
    *,
    frames: Sequence[Frame] | None = None,
    period: int | None = None,
    keyframes: int = 1,
    residuals: int = 2,
    cache_model: bool = True,
    timeout_s: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> SimulatedReport:
    """Count an artifact's cycles on the emulated board of its core, with one thread.

    Parameters
    ----------
    artifact : path-like
        For an ARM target; it is not loaded here.
    clip : Clip, optional
        Where frames come from; generated frames by default.
    frames : sequence, optional
        Prepared inputs in the source model's layout, instead of a clip.
    period : int, optional
        Keyframe period of the amortised figures; the artifact's by default.
    keyframes : int
        Keyframes to run.
    residuals : int
        Residual frames behind each, if the period has so many.
    cache_model : bool
        Simulate the core's caches, too; without it every load hits, in half the time.
    timeout_s : float, optional
        Seconds of this machine after which the run is given up.
    progress : callable, optional
        Called with one line before each step that takes its time.

    Returns
    -------
    SimulatedReport

    Raises
    ------
    ArtifactError
        If the artifact is damaged, or built with another TVM.
    TargetError
        If the target has no emulated core, or qemu or a compiler is not installed.
    AssetError
        If TVM's libraries for the board cannot be had.
    ConfigError
        If a count is below 1.
    ClipError
        If the clip is empty or broken.
    FrameError
        If one of ``frames`` has another shape than the network's input.
    """
    folder = Path(artifact)
    manifest = verify_files(folder)
    period = checked_period(manifest, period, keyframes, residuals)
    board = EmulatedBoard(emulated_core(folder, manifest), cache_model=cache_model)
    prepared = list(frames) if frames is not None else prepare_frames(manifest, clip)
    followers = min(period - 1, residuals) if manifest.has_residual else 0
    shown = list(islice(cycle(prepared), keyframes * (1 + followers)))
    words = ["--period", str(1 + followers), "--no-guard"]
    execution = play(board, folder, manifest, shown, words, timeout_s, progress)
    residual = execution.regions.get(_RESIDUAL)
    return SimulatedReport(
        manifest,
        period,
        ProgramCount.of(execution.regions[_KEYFRAME], board.core),
        None if residual is None else ProgramCount.of(residual, board.core),
        board.core,
        outputs_of(manifest, execution.stdout, len(shown)),
    )


def play(
    board: EmulatedBoard,
    folder: Path,
    manifest: Manifest,
    frames: Sequence[Frame],
    words: Sequence[str],
    timeout_s: float | None,
    progress: Callable[[str], None] | None,
) -> Execution:
    """Run the C++ runtime on a board over frames, with one thread and more options (``words``)."""
    tell = progress or (lambda _step: None)
    runtime = marked_runtime(tell)
    tell(f"run {len(frames)} frames on an emulated {board.core.name}")
    return board.execute(
        [runtime / "bin" / _PROGRAM, folder.resolve(), "--threads", "1", *words],
        stdin=b"".join(frame_bytes(frame, manifest) for frame in frames),
        timeout_s=timeout_s,
    )


def emulated_core(folder: Path, manifest: Manifest) -> str:
    """Return the name of the emulated core of an artifact's target.

    Raises
    ------
    TargetError
        If it has none.
    """
    preset = PRESETS.get(manifest.target.name)
    if preset is None or not preset.core:
        cores = ", ".join(p.core for p in PRESETS.values() if p.core)
        raise TargetError(
            f"artifact {str(folder)!r} is for target {manifest.target.name}, which has no emulated "
            f"core; compile it for {cores}"
        )
    return preset.core


def marked_runtime(progress: Callable[[str], None] | None = None) -> Path:
    """Return the folder of a runtime for the emulated board; build it if its sources are new.

    Raises
    ------
    TargetError
        If the cross compiler is absent.
    AssetError
        If TVM's libraries for the board cannot be had.
    """
    folder = cache_folder() / "emulated" / f"runtime-{source_digest()}"
    if not (folder / "bin" / _PROGRAM).is_file():
        write_runtime(folder, "aarch64", programs=(_PROGRAM,), markers=True, progress=progress)
    return folder


def frame_bytes(frame: Frame, manifest: Manifest) -> bytes:
    """Return a frame's values as the runtime's programs read them.

    Raises
    ------
    FrameError
        If it has another shape than the network's input.
    """
    tensors = frame if isinstance(frame, tuple) else (frame,)
    found = [np.shape(t) for t in tensors]
    wanted = [entry.shape for entry in manifest.inputs]
    if found != wanted:
        raise FrameError(f"a frame has shapes {found}, the network takes {wanted}; prepare it anew")
    return b"".join(np.ascontiguousarray(t, dtype="<f4").tobytes() for t in tensors)


def outputs_of(
    manifest: Manifest, contents: bytes, frames: int
) -> list[tuple[NDArray[np.float32], ...]]:
    """Return the outputs of every frame, from what the runtime's programs write."""
    values = np.frombuffer(contents, "<f4").reshape(frames, -1)
    sizes = [int(np.prod(entry.shape)) for entry in manifest.outputs]
    ends = np.cumsum(sizes)
    return [
        tuple(
            row[end - size : end].reshape(entry.shape)
            for entry, size, end in zip(manifest.outputs, sizes, ends, strict=True)
        )
        for row in values
    ]

"""Simulate how long an NPU takes for an artifact's programs, and what it waits for.

Cycles depend on what a frame shows only where a network chooses bits pixel by pixel; then frames
are run on the functional simulator first, which finds how many blocks need which bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from resq_tvm.artifact import Artifact
from resq_tvm.artifact_files import verify_files
from resq_tvm.bench import prepare_frames
from resq_tvm.buffers import Buffers, Frame
from resq_tvm.cycles import CycleReport, checked_period
from resq_tvm.errors import TargetError
from resq_tvm.keyframes import Program as Kind
from resq_tvm.npu.program import NpuProgram, read_program
from resq_tvm.programs import Programs
from resq_tvm.schedules.tuning.npu import MODEL_VERSION
from resq_tvm.targets.npu.commands import Engine, Matrix
from resq_tvm.targets.npu.description import Npu
from resq_tvm.targets.npu.functional import Executed
from resq_tvm.targets.npu.timing import simulate as simulate_program
from resq_tvm.targets.npu.timing_result import Timing
from resq_tvm.video.clip import Clip


@dataclass(frozen=True, eq=False)
class NpuCount:
    """What a frame of one program takes on an NPU, the mean of those that were simulated.

    Attributes
    ----------
    timings : tuple of Timing
        One per frame; one for all frames where cycles do not depend on them.
    without_state : tuple of Timing
        The same, if residual state took no time on the DRAM bus.
    operators : dict of str to str
        Function of the host → operator.
    blocks : dict of str to dict
        Kernel that reads chosen bits → bits → blocks of pixels, the mean of the frames.
    """

    timings: tuple[Timing, ...]
    without_state: tuple[Timing, ...]
    operators: dict[str, str]
    blocks: dict[str, dict[int, float]]

    @property
    def cycles(self) -> float:
        """Simulated cycles."""
        return self._mean(lambda timing: timing.cycles)

    @property
    def ms(self) -> float:
        """Simulated milliseconds."""
        return self._mean(lambda timing: timing.seconds) * 1e3

    @property
    def ms_without_state(self) -> float:
        """Simulated milliseconds if residual state cost nothing."""
        return float(np.mean([timing.seconds for timing in self.without_state])) * 1e3

    @property
    def macs(self) -> int:
        """Products."""
        return self.timings[0].macs

    def kernel_rows(self) -> list[dict[str, Any]]:
        """Return what is known of every kernel, simulated.

        Returns
        -------
        list of dict
            ``name``, ``cycles``, ``ms``, ``macs``, ``dram_read`` and ``dram_written`` (bytes),
            ``utilisation`` (engine → part of the kernel's time in which it works for it),
            ``bounds`` (cycles if one thing alone counted) and ``bound_by``, the largest of these;
            ``blocks`` (of pixels, by the bits that they needed; None where bits are fixed).
        """
        clock = self.timings[0].clock_hz
        rows = []
        for same in zip(*(timing.kernels for timing in self.timings), strict=True):
            cycles = _mean(k.cycles for k in same)
            bounds = {name: _mean(k.bounds[name] for k in same) for name in same[0].bounds}
            rows.append(
                {
                    "name": same[0].name,
                    "cycles": cycles,
                    "ms": cycles / clock * 1e3,
                    "macs": same[0].macs,
                    "dram_read": _mean(k.dram_read for k in same),
                    "dram_written": _mean(k.dram_written for k in same),
                    "utilisation": {
                        engine.name.lower(): _mean(k.utilisation(engine) for k in same)
                        for engine in Engine
                    },
                    "bounds": bounds,
                    "bound_by": max(bounds, key=bounds.__getitem__),
                    "blocks": self.blocks.get(same[0].name),
                }
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """Return what is known of the whole program, as JSON values."""
        first = self.timings[0]
        return {
            "frames": len(self.timings),
            "skipped": self._mean(_skipped_share),
            "ms": self.ms,
            "ms_without_state": self.ms_without_state,
            "cycles": self.cycles,
            "macs": self.macs,
            "engines": {name: self._engine(name) for name in first.engines},
            "bounds": {name: self._mean(lambda t, n=name: t.bounds[n]) for name in first.bounds},
            "dram_read": self._mean(lambda t: t.dram_read),
            "dram_written": self._mean(lambda t: t.dram_written),
            "state_read": self._mean(lambda t: t.state_read),
            "state_written": self._mean(lambda t: t.state_written),
            "blocks": self._all_blocks(),
            "host_cycles": first.host_cycles,
            "host_calls": [
                {"operator": self.operators[call.function], "function": call.function,
                 "cycles": call.cycles}
                for call in first.host
            ],
        }  # fmt: skip

    def _all_blocks(self) -> dict[int, float] | None:
        """Return the blocks of all kernels by bits; None where all bits are fixed."""
        total: dict[int, float] = {}
        for blocks in self.blocks.values():
            for bits, count in blocks.items():
                total[bits] = total.get(bits, 0.0) + count
        return total or None

    def _engine(self, name: str) -> dict[str, Any]:
        engines = [timing.engines[name] for timing in self.timings]
        busy = _mean(e.busy for e in engines)
        return {
            "commands": engines[0].commands,
            "busy": busy,
            "utilisation": busy / self.cycles if self.cycles else 0.0,
            "stalls": {why: _mean(e.stalls[why] for e in engines) for why in engines[0].stalls},
        }

    def _mean(self, figure: Callable[..., float]) -> float:
        return _mean(figure(timing) for timing in self.timings)


def _skipped_share(timing: Timing) -> float:
    """Return the part of all commands that were skipped."""
    skipped = timing.commands.skipped
    return float(skipped.mean()) if skipped.size else 0.0


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


@dataclass(frozen=True)
class NpuReport(CycleReport[NpuCount]):
    """What `simulate` found; `to_dict` is the document of ``resq-tvm bench`` for NPUs.

    Attributes
    ----------
    program : NpuProgram
    """

    program: NpuProgram

    @property
    def npu(self) -> Npu:
        """The machine."""
        return self.program.npu

    @property
    def first_frames(self) -> list[Timing]:
        """Timings of the first keyframe and of the residual frames behind it."""
        residuals = () if self.residual is None else self.residual.timings
        behind = len(residuals) // len(self.keyframe.timings)
        return [self.keyframe.timings[0], *residuals[:behind]]

    @property
    def machine(self) -> dict[str, Any]:
        """The machine, its clock and the version of the cycle model."""
        return {
            "npu": self.npu.name,
            "clock_hz": self.npu.clock_hz,
            "model": f"cycles-{MODEL_VERSION}",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; all cycles and milliseconds are simulated."""
        return {
            **super().to_dict(),
            "amortized_ms_without_state": self.amortized(lambda count: count.ms_without_state),
        }


def simulate(
    artifact: str | PathLike[str],
    clip: Clip | None = None,
    *,
    frames: Sequence[Frame] | None = None,
    period: int | None = None,
    keyframes: int = 1,
    residuals: int = 2,
    progress: Callable[[str], None] | None = None,
) -> NpuReport:
    """Simulate an artifact's cycles on the NPU that it is for.

    Parameters
    ----------
    artifact : path-like
        For an NPU.
    clip : Clip, optional
        Where frames come from, if cycles depend on them; generated frames by default.
    frames : sequence, optional
        Prepared inputs in the source model's layout, instead of a clip.
    period : int, optional
        Keyframe period of the amortised figures; the artifact's by default.
    keyframes : int
        Keyframes to run, if cycles depend on frames.
    residuals : int
        Residual frames behind each.
    progress : callable, optional
        Called with one line before each step that takes its time.

    Returns
    -------
    NpuReport

    Raises
    ------
    ArtifactError
        If the artifact is damaged, or its commands wait for what never ends.
    TargetError
        If it is for no NPU.
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
    if not manifest.is_npu:
        raise TargetError(
            f"artifact {str(folder)!r} is for target {manifest.target.name}, which is no NPU; "
            "compile it for one"
        )
    tell = progress or (lambda _step: None)
    program = read_program(folder, manifest)
    names = ["keyframe", *(["residual"] if manifest.has_residual else [])]
    ran: dict[str, list[Executed]] = {name: [Executed()] for name in names}
    if depends_on_frames(program):
        prepared = list(frames) if frames is not None else prepare_frames(manifest, clip)
        distance = 1 + (residuals if manifest.has_residual else 0)
        shown = islice(cycle(prepared), keyframes * distance)
        ran = execute(Artifact.load(folder), shown, distance, tell)
    counts = {}
    for name in names:
        tell(f"simulate the {name}'s cycles")
        counts[name] = _count(program, name, ran[name])
    return NpuReport(manifest, period, counts["keyframe"], counts.get("residual"), program)


def depends_on_frames(program: NpuProgram) -> bool:
    """Return whether an NPU's cycles depend on what frames show."""
    return any(
        command.flag is not None or (isinstance(command, Matrix) and command.bits_map is not None)
        for p in program.stream.programs.values()
        for command in p.commands
    )


def execute(
    artifact: Artifact, frames: Iterable[Frame], distance: int, tell: Callable[[str], None]
) -> dict[str, list[Executed]]:
    """Run frames on the functional simulator and note what they need.

    Parameters
    ----------
    artifact : Artifact
    frames : iterable
        Prepared inputs in the source model's layout.
    distance : int
        Frames from keyframe to keyframe.
    tell : callable
        Called with one line before every frame.

    Returns
    -------
    dict
        Program → what was found out about every frame that it computed.
    """
    programs = Programs(artifact)
    buffers = Buffers(artifact.manifest, copy=False)
    found: dict[str, list[Executed]] = {"keyframe": [], "residual": []}
    for number, frame in enumerate(frames):
        name: Kind = "keyframe" if number % distance == 0 else "residual"
        tell(f"frame {number}: {name}, on the functional simulator")
        programs.run(name, buffers.load(frame, number))
        found[name].append(programs.machine.executed)
    return found


def _count(program: NpuProgram, name: str, ran: list[Executed]) -> NpuCount:
    npu, stream = program.npu, program.stream
    timings, without = (
        tuple(
            simulate_program(
                npu, stream, name, classes=frame.blocks, skipped=frame.skipped, state_traffic=state
            )
            for frame in ran
        )
        for state in (True, False)
    )
    operators = {call.function: call.operator for call in program.host_calls(name)}
    return NpuCount(timings, without, operators, _by_kernel(program, name, ran))


def _by_kernel(
    program: NpuProgram, name: str, frames: list[Executed]
) -> dict[str, dict[int, float]]:
    """Return the mean over frames of what commands needed, summed up by kernel."""
    stream = program.stream
    commands = stream.programs[name].commands
    found: dict[str, dict[int, float]] = {}
    for frame in frames:
        for number, classes in frame.blocks.items():
            kernel = found.setdefault(stream.kernels[commands[number].kernel], {})
            for bits, count in classes.items():
                kernel[bits] = kernel.get(bits, 0.0) + count / len(frames)
    return found

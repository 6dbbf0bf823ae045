"""A whole session on an emulated ARM board: what gave each frame its output, in simulated cycles.

`resq_tvm.simulate` counts the programs of an artifact one by one. Here the C++ runtime follows its
rules (docs/streams.md) by fixed costs: its own clock would be the emulator's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.artifact_files import verify_files
from resq_tvm.buffers import Frame
from resq_tvm.costs import FixedCosts
from resq_tvm.errors import ConfigError, TargetError
from resq_tvm.keyframes import KeyframePolicy, Kind, Reason
from resq_tvm.simulate import emulated_core, outputs_of, play
from resq_tvm.targets.emulated.board import EmulatedBoard
from resq_tvm.targets.emulated.cores import Core

# Regions of the runtime's marks (src/internal/markers.hpp): every frame enters one of the first
# four once, looks come before it, a note behind it.
_KINDS: dict[int, Kind] = {1: "keyframe", 2: "residual", 3: "frame", 4: "repeat"}
_LOOK, _NOTE = 5, 6

_POINTS = 5  # of the curve of residual frames that `learn_costs` draws
RESIDUALS_PAY = FixedCosts(1, 1, 0, ((0, 0),))
"""Costs by which every frame but a keyframe is looked at and computed as a residual frame."""

_THEY_NEVER_DO = FixedCosts(2, 1, 0, ((0, 1e9),))  # frames run on their own


@dataclass(frozen=True)
class SimulatedFrame:
    """What a frame took on the emulated board.

    Attributes
    ----------
    kind : str
        What gave it its output.
    reason : str or None
        Why it was no residual frame.
    changed : float or None
        Share of the input that changed, None if nobody looked.
    program, looks, note : int
        Simulated cycles of its program, of finding out what changed, and of keeping it for later
        comparisons.
    """

    kind: Kind
    reason: Reason | None
    changed: float | None
    program: int
    looks: int
    note: int

    @property
    def cycles(self) -> int:
        """Simulated cycles of everything."""
        return self.program + self.looks + self.note


@dataclass(frozen=True)
class SimulatedStream:
    """What `simulate_stream` counted; all cycles and milliseconds are simulated.

    Attributes
    ----------
    core : Core
    frames : list of SimulatedFrame
    outputs : list of tuple of ndarray
        The network's outputs of every frame, in the source model's layout.
    """

    core: Core
    frames: list[SimulatedFrame]
    outputs: list[tuple[NDArray[np.float32], ...]] = field(repr=False)

    @property
    def cycles(self) -> float:
        """Simulated cycles per frame, the mean of all."""
        return float(np.mean([frame.cycles for frame in self.frames]))

    @property
    def kinds(self) -> Counter[Kind]:
        """How many frames there are of each kind."""
        return Counter(frame.kind for frame in self.frames)

    def cycles_of(self, kind: Kind) -> float | None:
        """Return the mean simulated cycles of the frames of a kind, looks included."""
        found = [frame.cycles for frame in self.frames if frame.kind == kind]
        return float(np.mean(found)) if found else None

    def ms(self, cycles: float) -> float:
        """Return cycles in simulated milliseconds."""
        return cycles / self.core.clock_hz * 1e3


def simulate_stream(
    artifact: str | PathLike[str],
    frames: Sequence[Frame],
    costs: FixedCosts,
    *,
    policy: KeyframePolicy | None = None,
    period: int | None = None,
    threshold_scale: float = 1.0,
    cache_model: bool = True,
    timeout_s: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> SimulatedStream:
    """Run a session over frames on the emulated board of an artifact's core, with one thread.

    Parameters
    ----------
    artifact : path-like
        For an ARM target; it is not loaded here.
    frames : sequence
        Prepared inputs in the source model's layout.
    costs : FixedCosts
        What the session decides by, in milliseconds; `learn_costs` finds the board's.
    policy : KeyframePolicy, optional
        The default is that of sessions.
    period : int, optional
        Of keyframes; the artifact's by default.
    threshold_scale : float
        Factor on the thresholds of an artifact that chooses bits.
    cache_model : bool
        Simulate the core's caches, too.
    timeout_s : float, optional
        Seconds of this machine after which the run is given up.
    progress : callable, optional
        Called with one line before each step that takes its time.

    Returns
    -------
    SimulatedStream

    Raises
    ------
    ArtifactError
        If the artifact is damaged, or built with another TVM.
    TargetError
        If the target has no emulated core, qemu or a compiler is not installed, or the runtime
        refuses the policy.
    AssetError
        If TVM's libraries for the board cannot be had.
    FrameError
        If a frame has another shape than the network's input.
    """
    folder = Path(artifact)
    manifest = verify_files(folder)
    board = EmulatedBoard(emulated_core(folder, manifest), cache_model=cache_model)
    words = ["--times", "--threshold-scale", str(threshold_scale)]
    words += ["--period", str(manifest.period if period is None else period)]
    words += [*policy_words(policy or KeyframePolicy()), "--costs", costs_word(costs)]
    execution = play(board, folder, manifest, frames, words, timeout_s, progress)
    told = [json.loads(line) for line in execution.stderr.decode().splitlines()]
    found = _frames(told, execution.timeline)
    return SimulatedStream(board.core, found, outputs_of(manifest, execution.stdout, len(frames)))


def learn_costs(
    stream: SimulatedStream, artifact: str | PathLike[str], frames: Sequence[Frame]
) -> FixedCosts:
    """Return what the programs of an artifact take on a board, in simulated milliseconds.

    Parameters
    ----------
    stream : SimulatedStream
        Of `play_residuals`: keyframes, and residual frames of various shares of change.
    artifact : path-like
        The same; it runs its program ``frame`` on ``frames``.
    frames : sequence
        The first is run as a keyframe, the others on their own.

    Raises
    ------
    ConfigError
        If the artifact has no program ``frame``, or there are fewer than three frames.
    """
    if len(frames) < 3:
        raise ConfigError(f"{len(frames)} frames tell no costs; give at least 3")
    alone = simulate_stream(artifact, frames, _THEY_NEVER_DO, policy=KeyframePolicy()).frames
    own = [frame.program for frame in alone if frame.kind == "frame"]
    if not own:
        raise ConfigError(
            f"artifact {str(artifact)!r} computes no frame on its own; compile it with its program"
        )
    residuals = [frame for frame in stream.frames if frame.kind == "residual"]
    looks = [frame.looks for frame in residuals]
    points = _curve([(frame.changed or 0.0, frame.program) for frame in residuals])
    keyframe = np.mean([frame.program for frame in stream.frames if frame.kind == "keyframe"])
    return FixedCosts(
        stream.ms(float(keyframe)),
        stream.ms(float(np.mean(own))),
        stream.ms(float(np.mean(looks))),
        tuple((share, stream.ms(cycles)) for share, cycles in points),
    )


def play_residuals(
    artifact: str | PathLike[str],
    frames: Sequence[Frame],
    *,
    period: int | None = None,
    threshold_scale: float = 1.0,
) -> SimulatedStream:
    """Run a session as without its guard, looking at each frame: `learn_costs` goes on from it.

    Keyframes come by period, all other frames are residual frames. Parameters and errors are those
    of `simulate_stream`.
    """
    return simulate_stream(
        artifact, frames, RESIDUALS_PAY, period=period, threshold_scale=threshold_scale
    )


def policy_words(policy: KeyframePolicy) -> list[str]:
    """Return a policy as options of ``resq-run``."""
    words = ["--keyframes", policy.mode, "--min-distance", str(policy.min_distance)]
    if policy.max_distance is not None:
        words += ["--max-distance", str(policy.max_distance)]
    if policy.repeat is not None:
        words += ["--repeat", repr(policy.repeat)]
    return words if policy.guard else [*words, "--no-guard"]


def costs_word(costs: FixedCosts) -> str:
    """Return costs as the value of ``resq-run --costs``."""
    residuals = [f"residual@{share!r}={ms!r}" for share, ms in costs.points]
    own = [f"{name}={getattr(costs, name)!r}" for name in ("keyframe", "frame", "probe")]
    return ",".join([*own, *residuals])


def _frames(
    told: list[dict[str, Any]], timeline: Iterable[tuple[int, int]]
) -> list[SimulatedFrame]:
    """Bring together what the runtime tells of its frames, and the regions that it entered."""
    found: list[SimulatedFrame] = []
    looks = 0
    for region, cycles in timeline:
        if region == _LOOK:
            looks += cycles
        elif region == _NOTE:
            found[-1] = replace(found[-1], note=cycles)
        else:
            line = told[len(found)]
            if line["kind"] != _KINDS[region]:
                raise TargetError("the runtime's marks and frames do not agree; build it anew")
            found.append(
                SimulatedFrame(line["kind"], line["reason"], line["changed"], cycles, looks, 0)
            )
            looks = 0
    return found


def _curve(samples: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a rising curve through shares and cycles: means of groups of like shares."""
    groups = np.array_split(np.array(sorted(samples)), min(_POINTS, len(samples)))
    means = [group.mean(axis=0).tolist() for group in groups]
    curve: list[tuple[float, float]] = []
    for share, cycles in means:
        if curve and share <= curve[-1][0]:
            continue
        curve.append((share, max(cycles, curve[-1][1] if curve else 0.0)))
    return curve

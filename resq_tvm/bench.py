"""Measure an artifact: keyframe, residual and amortised latency beside the bit operations.

Latency is the network's own, without decoding and preparing the frame. Frames are prepared before
the clock runs; the two programs are measured in the alternation in which a stream uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from os import PathLike
from typing import Any

import numpy as np

from resq_tvm.artifact import Artifact
from resq_tvm.breakeven import BreakEven, measure_break_even
from resq_tvm.buffers import Frame
from resq_tvm.device import fingerprint
from resq_tvm.errors import ClipError, ConfigError, TargetError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.manifest import Manifest
from resq_tvm.predict import preprocessor_for
from resq_tvm.session import Session
from resq_tvm.video.clip import Clip

# Enough residual frames per keyframe for their statistics; a long period adds nothing.
RESIDUALS_PER_KEYFRAME = 3
_PREPARED_FRAMES = 32
_ROUNDS = 10  # of the break-even


@dataclass(frozen=True)
class Latency:
    """Percentiles of one program's time per frame, in milliseconds."""

    median: float
    p10: float
    p90: float
    samples: int

    @classmethod
    def of(cls, times: list[float]) -> Latency:
        """Summarise measured times."""
        p10, median, p90 = np.percentile(times, [10, 50, 90])
        return cls(float(median), float(p10), float(p90), len(times))


@dataclass(frozen=True)
class BenchReport:
    """What `benchmark` measured; `to_dict` is the JSON document of ``resq-tvm bench``."""

    manifest: Manifest
    period: int
    keyframe: Latency
    residual: Latency | None
    kernels: list[dict[str, Any]]
    device: dict[str, Any]
    break_even: BreakEven | None = None

    @property
    def amortized_ms(self) -> float:
        """Median milliseconds per frame over a period."""
        residual = None if self.residual is None else self.residual.median
        return amortize(self.keyframe.median, residual, self.period)

    @property
    def bops_amortized(self) -> float | None:
        """Bit operations per frame over a period."""
        return amortized_bops(self.manifest, self.period)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "simulated": False,
            "scheme": self.manifest.scheme,
            "period": self.period,
            "target": self.manifest.target.name,
            "keyframe_ms": vars(self.keyframe),
            "residual_ms": None if self.residual is None else vars(self.residual),
            "amortized_ms": self.amortized_ms,
            "macs": self.manifest.bops.get("macs"),
            "bops_keyframe": self.manifest.bops.get("bops_keyframe"),
            "bops_residual": self.manifest.bops.get("bops_residual"),
            "bops_amortized": self.bops_amortized,
            "state_bytes": self.manifest.state_bytes,
            "layers": self._layers(),
            "kernels": self.kernels,
            "break_even": None if self.break_even is None else self.break_even.to_dict(),
            "device": self.device,
        }

    def _layers(self) -> list[dict[str, Any]]:
        times = {(k["layer"], k["program"]): k["ms"] for k in self.kernels if k["layer"]}
        return [
            {
                **layer.model_dump(),
                "keyframe_ms": times.get((layer.name, "keyframe")),
                "residual_ms": times.get((layer.name, "residual")),
            }
            for layer in self.manifest.layers
        ]


def benchmark(
    artifact: Artifact | str | PathLike[str],
    clip: Clip | None = None,
    *,
    threads: int | None = None,
    period: int | None = None,
    repeats: int = 30,
    warmup: int = 3,
    profile: bool = True,
    break_even: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> BenchReport:
    """Measure an artifact on the frames of a clip.

    Parameters
    ----------
    artifact : Artifact or path
        What to measure.
    clip : Clip, optional
        Where frames come from; generated frames by default (values matter little to dense
        integer kernels, but they are plausible).
    threads : int, optional
        Threads per frame; every available CPU by default.
    period : int, optional
        Keyframe period of the amortised figures; the artifact's by default.
    repeats : int
        Keyframes to measure, each followed by up to three residual frames.
    warmup : int
        Rounds that run first and do not count.
    profile : bool
        Measure every kernel by itself as well, in extra runs.
    break_even : bool
        Measure residual frames against the share that changed, of an artifact that chooses bits.
    progress : callable, optional
        Called with ("round", done, total).

    Raises
    ------
    ConfigError
        If ``repeats`` is below 1 or ``warmup`` below 0.
    TargetError
        If the artifact is for an NPU: simulating it takes another time than it would.
    ClipError
        If the clip is empty or broken.
    """
    if repeats < 1 or warmup < 0:
        raise ConfigError(f"repeats {repeats}, warm-up {warmup}: use at least 1 and 0")
    # Every residual frame is measured, whether it pays or not.
    policy = KeyframePolicy(guard=False)
    session = Session(artifact, period=period, copy=False, threads=threads, keyframes=policy)
    manifest = session.artifact.manifest
    if manifest.is_npu:
        raise TargetError(
            f"target {manifest.target.name} is simulated and cannot be measured; "
            "resq_tvm.npu.report.simulate counts its cycles, as 'resq-tvm bench' does"
        )
    frames = prepare_frames(manifest, clip)
    followers = min(session.period - 1, RESIDUALS_PER_KEYFRAME) if manifest.has_residual else 0
    source = cycle(frames)
    times: dict[str, list[float]] = {"keyframe": [], "residual": []}
    for done in range(-warmup, repeats):
        session.force_keyframe()
        for frame in islice(source, 1 + followers):
            session(frame)
            last = session.last
            assert last is not None
            if done >= 0:
                times[last.kind].append(last.ms)
        if progress is not None:
            progress("round", done + 1, repeats)
    return BenchReport(
        manifest,
        session.period,
        Latency.of(times["keyframe"]),
        Latency.of(times["residual"]) if times["residual"] else None,
        profile_kernels(session, frames) if profile else [],
        fingerprint(session.threads),
        measure_break_even(
            session.artifact, frames[0], threads=session.threads, rounds=min(repeats, _ROUNDS)
        )
        if break_even and manifest.workspace
        else None,
    )


def profile_kernels(session: Session, frames: list[Frame], rounds: int = 5) -> list[dict[str, Any]]:
    """Return the time of every kernel call in both programs.

    Parameters
    ----------
    session : Session
        What to measure.
    frames : list
        Prepared inputs.
    rounds : int
        Runs of each program; a kernel's time is the median over them.

    Returns
    -------
    list of dict
        ``name``, ``program``, ``layer`` (None for a kernel without a linear layer) and ``ms``, in
        the order of the calls.
    """
    programs = ["keyframe", *(["residual"] if session.artifact.manifest.has_residual else [])]
    source = cycle(frames)
    table = []
    for program in programs:
        runs = []
        for _ in range(rounds):
            session.force_keyframe()
            if program == "residual":
                session(next(source))
            with session.observed() as calls:
                session(next(source))
            runs.append(calls)
        layers = {k.name: k.layer for k in session.artifact.manifest.kernels}
        for same in zip(*runs, strict=True):
            name = same[0][0]
            table.append(
                {
                    "name": name,
                    "program": program,
                    "layer": layers.get(name),
                    "ms": float(np.median([ms for _, ms in same])),
                }
            )
    return table


def prepare_frames(manifest: Manifest, clip: Clip | None) -> list[Frame]:
    """Return inputs from a clip's first frames, or generated ones.

    Raises
    ------
    ClipError
        If the clip has no good frame.
    ConfigError
        If the network does not take one image and a clip is given.
    """
    if clip is None and not _is_image(manifest):
        rng = np.random.default_rng(0)
        shapes = [entry.shape for entry in manifest.inputs]
        return [
            tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)
            for _ in range(4)
        ]
    prepare = preprocessor_for(manifest)
    if clip is None:
        from resq_tvm.video.synthetic import open_random

        clip = open_random(prepare.height, prepare.width, 8)
    frames: list[Frame] = []
    for picture in clip:
        if picture is not None:
            frames.append(prepare(picture))
        if len(frames) == _PREPARED_FRAMES:
            break
    if not frames:
        raise ClipError(f"clip {clip.name!r} has no good frame; nothing was measured")
    return frames


def _is_image(manifest: Manifest) -> bool:
    if len(manifest.inputs) != 1 or len(manifest.inputs[0].shape) != 4:
        return False
    entry = manifest.inputs[0]
    return entry.shape[1 if entry.layout == "NCHW" else 3] == 3


def amortized_bops(manifest: Manifest, period: int) -> float | None:
    """Return an artifact's bit operations per frame over a period, None if it has no counts."""
    bops = manifest.bops
    if "bops_keyframe" not in bops:
        return None
    residual = bops["bops_residual"] if manifest.has_residual else None
    return amortize(bops["bops_keyframe"], residual, period)


def amortize(keyframe: float, residual: float | None, period: int) -> float:
    """Return the mean of a keyframe and the residual frames of its period."""
    if residual is None:
        return float(keyframe)
    return (keyframe + (period - 1) * residual) / period

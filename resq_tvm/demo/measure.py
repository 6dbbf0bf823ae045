"""Calibrate, compile and run every scheme of the demo on its clip."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resq_tvm.accuracy import float_predictions
from resq_tvm.bops import count
from resq_tvm.clips import PreparedClip
from resq_tvm.compiler import compile as compile_network
from resq_tvm.demo.judge import Entry, error_unit, frame_error
from resq_tvm.demo.subject import Subject
from resq_tvm.evaluate.judge import hold, recovery
from resq_tvm.network import Network, load
from resq_tvm.predict import make_preprocessor, steps
from resq_tvm.processing.postprocess import Prediction, interpret
from resq_tvm.quantize.calibrate import calibrate
from resq_tvm.session import Session
from resq_tvm.video.clip import FrameRange, Picture

SCHEMES = ("W8A8", "W8A4", "W8A8->W8A8", "W8A8->W8A4", "W8A8->W4A4")


@dataclass(frozen=True)
class Run:
    """One way to compute the clip: predictions and milliseconds of every frame."""

    predictions: list[Prediction]
    ms: float
    keyframe_ms: float
    bops: float
    bops_keyframe: float


@dataclass(frozen=True)
class Measured:
    """Everything that the demo shows."""

    subject: Subject
    entries: list[Entry]
    unit: str
    period: int
    pictures: list[Picture]
    predictions: dict[str, list[Prediction]]
    input_size: tuple[int, int]
    judged_frames: int


def measure(subject: Subject, period: int, threads: int, progress: Callable[..., None]) -> Measured:
    """Run the float network and every scheme over the subject's clip.

    Parameters
    ----------
    subject : Subject
        Network and clip.
    period : int
        Keyframe period of the residual schemes and of holding.
    threads : int
        Threads per frame, of the float network too.
    progress : callable
        Called with (step, done, total).
    """
    total = 1 + len(SCHEMES)
    progress("load the network", 0, total)
    net = load(subject.model)
    prepare = make_preprocessor(subject.processing, net.inputs)
    pictures = [picture for picture in subject.clip if picture is not None]
    progress("float network", 0, total)
    exact = _run_float(net, subject, pictures, threads)
    runs: dict[str, Run] = {}
    clip = subject.clip.select(FrameRange(0, subject.calibration_frames))
    for done, scheme in enumerate(SCHEMES, start=1):
        progress(f"calibrate {scheme}", done, total)
        qnet = calibrate(net, [PreparedClip(clip, prepare)], scheme, period=period)
        with tempfile.TemporaryDirectory(prefix="resq-demo-") as folder:
            artifact = compile_network(
                qnet,
                output=Path(folder) / "demo.resq",
                processing=subject.processing,
                progress=partial(_tell, progress, scheme, done, total),
            )
            progress(f"run {scheme}", done, total)
            session = Session(artifact, period=period, copy=False, threads=threads)
            runs[scheme] = _run_session(session, subject)
    entries = _entries(subject, period, exact, runs)
    return Measured(
        subject,
        entries,
        error_unit(exact.predictions[0]),
        period,
        [prepare.crop(picture) for picture in pictures],
        {"float": exact.predictions, **{name: run.predictions for name, run in runs.items()}},
        (prepare.height, prepare.width),
        int(_judged(subject, period, len(pictures)).sum()),
    )


def _tell(progress: Callable[..., None], scheme: str, done: int, total: int, step: str) -> None:
    progress(f"{scheme}: {step}", done, total)


def _run_float(net: Network, subject: Subject, pictures: list[Picture], threads: int) -> Run:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    predictions, times = zip(*float_predictions(net, subject.processing, pictures), strict=True)
    torch.set_num_threads(before)
    ms = float(np.median(times))
    bops = float(count(net.module, 1).bops_keyframe)
    return Run(list(predictions), ms, ms, bops, bops)


def _run_session(session: Session, subject: Subject) -> Run:
    manifest = session.artifact.manifest
    layouts = [entry.layout for entry in manifest.outputs]
    predictions = []
    times: dict[str, list[float]] = {"keyframe": [], "residual": []}
    for step in steps(session, subject.clip):
        predictions.append(interpret(subject.processing.task, step.outputs, layouts))
        times[step.kind].append(step.ms)
    keyframe = float(np.median(times["keyframe"]))
    residual = float(np.median(times["residual"])) if times["residual"] else keyframe
    bops = manifest.bops
    per_frame = (bops["bops_keyframe"] + (session.period - 1) * bops["bops_residual"]) / (
        session.period
    )
    return Run(
        predictions,
        (keyframe + (session.period - 1) * residual) / session.period,
        keyframe,
        float(per_frame),
        float(bops["bops_keyframe"]),
    )


def _judged(subject: Subject, period: int, frames: int) -> NDArray[np.bool_]:
    """Tell which frames count: residual frames that did not calibrate."""
    index = np.arange(frames)
    return (index % period != 0) & (index >= subject.calibration_frames)


def _entries(subject: Subject, period: int, exact: Run, runs: dict[str, Run]) -> list[Entry]:
    judged = _judged(subject, period, len(exact.predictions))
    key = runs["W8A8"]
    held = Run(
        hold(key.predictions, period),
        key.keyframe_ms / period,
        key.keyframe_ms,
        key.bops_keyframe / period,
        key.bops_keyframe,
    )
    named: list[tuple[str, str, Run]] = [("float", "float", exact)]
    for scheme, run in runs.items():
        kind = "resq" if "->" in scheme else "frame"
        named.append((scheme if kind == "resq" else f"frame {scheme}", kind, run))
    named.append(("hold", "hold", held))
    errors = {
        name: np.array(
            [frame_error(a, b) for a, b in zip(run.predictions, exact.predictions, strict=True)]
        )
        for name, _, run in named
    }
    mean: dict[str, float] = {name: float(e[judged].mean()) for name, e in errors.items()}

    def entry(name: str, kind: str, run: Run) -> Entry:
        share = recovery(mean["frame W8A8"], mean["hold"], mean[name])
        return Entry(name, kind, mean[name], share, run.bops, run.ms, errors[name])

    return [entry(name, kind, run) for name, kind, run in named]


def to_json(measured: Measured) -> list[dict[str, Any]]:
    """Return the table's rows as JSON values."""
    return [
        {
            "scheme": entry.name,
            "error": entry.error,
            "unit": measured.unit,
            "recovery": entry.recovery,
            "bops_per_frame": entry.bops,
            "ms_per_frame": entry.ms,
        }
        for entry in measured.entries
    ]

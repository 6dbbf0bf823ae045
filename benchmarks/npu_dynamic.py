"""Dynamic-ResQ on NPUs: simulated cycles on clips, where skipping stops paying, beside BOPs.

    python -m benchmarks.npu_dynamic --part clips --case blazepose_vtest --qnet CASE=FOLDER
    python -m benchmarks.npu_dynamic --part break-even --case blazepose_vtest --qnet CASE=FOLDER
    python -m benchmarks.npu_dynamic --part drive --qnet drive=FOLDER

*Clips*: the network that `benchmarks/static_camera.py` fits, at its period, beside a plain W8A8
network frame by frame. *Break-even*: a residual frame of which a rectangle was replaced by noise,
beside static residuals. *Drive*: ESPNet on camvid/val, cycles beside the bit operations of pixels.

Networks whose bits are fixed take the same cycles whatever they show: but for the W8A8 that errors
are judged by, two frames and a few candidate ranges calibrate them. What they are calibrated on
shows a little: ESPNet W8A8 differs by up to 1 % between made-up and real frames.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import resq_tvm as resq
from benchmarks import npu_dynamic_page as page
from benchmarks.cases import CASES, Case
from benchmarks.networks import workload
from benchmarks.npu_dynamic_page import FRAME, STATICS, BreakEven, ClipResult, Drive, Programs
from benchmarks.record import record
from resq_tvm import bops
from resq_tvm.accuracy import against_float, plain
from resq_tvm.artifact import Artifact
from resq_tvm.bitmaps import BitSession, measure_bits
from resq_tvm.breakeven import SHARES, changed_frame
from resq_tvm.evaluate.judge import Errors, judge, predict
from resq_tvm.files import atomic_file
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.network import Network
from resq_tvm.npu.report import simulate
from resq_tvm.predict import make_preprocessor
from resq_tvm.processing.config import load_processing
from resq_tvm.processing.postprocess import interpret
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.targets.preset import get_target
from resq_tvm.video.synthetic import open_random

PARTS = ("clips", "break-even", "drive")
DRIVE = "W8A8->W8A{0,4,8}"  # at the paper's threshold
DRIVE_PERIOD = 3
DRIVE_FITTED, DRIVE_FRAMES = 30, 30  # those that calibrate, and those behind them that run

Frame = NDArray[np.float32]


class Bench:
    """Compiles and simulates networks in a folder that goes away."""

    def __init__(self, folder: Path, npus: Sequence[str]) -> None:
        self.folder = folder
        self.npus = npus

    def compile(self, qnet: QuantizedNetwork, npu: str, processing: Any = None) -> Path:
        """Compile a network; return where the artifact lies."""
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "net.resq"
        resq.compile(qnet, npu, output=folder, processing=processing)
        return folder

    def fixed(
        self, net: Network, frames: Sequence[Frame], scheme: str, npu: str, period: int = 2
    ) -> Programs:
        """Simulate a network whose bits are fixed, so that no frame need be run."""
        used = period if "->" in scheme else 1
        qnet = resq.calibrate(net, [frames[:2]], scheme, period=used, samples=2, candidates=4)
        return Programs.of(simulate(self.compile(qnet, npu)))


class Subject:
    """The network of a case, its frames, and what was fitted to it."""

    def __init__(self, name: str, given: dict[str, str]) -> None:
        if name not in given:
            raise SystemExit(f"case {name!r}: name its fitted network with --qnet {name}=FOLDER")
        self.name = name
        self.case: Case = CASES[name]
        self.net = resq.load(str(self.case.model))
        self.processing = load_processing(self.case.processing)
        self.prepare = make_preprocessor(self.processing, self.net.inputs)
        self.dynamic = QuantizedNetwork.load(given[name])

    @cached_property
    def frames(self) -> list[Frame]:
        """The clip, prepared."""
        return [np.array(self.prepare(p)) for p in self.case.open() if p is not None]

    @cached_property
    def plain(self) -> QuantizedNetwork:
        """W8A8, every frame on its own; calibrated on the frames that thresholds were fitted on."""
        return resq.calibrate(self.net, [self.frames[self.case.fitted]], FRAME, period=1)


# --- clips --------------------------------------------------------------------------------------


def measure_clip(subject: Subject, bench: Bench) -> ClipResult:
    """Run a clip on every machine; judge it on the first, for bits are the same on all."""
    period = subject.case.period
    frames = subject.frames[: len(subject.frames) // period * period]
    pairs, judged = [], None
    for npu in bench.npus:
        alone = bench.compile(subject.plain, npu, subject.processing)
        dynamic = bench.compile(subject.dynamic, npu, subject.processing)
        judged = judged or judge_clip(subject, alone, dynamic)
        ran = simulate(
            dynamic, frames=frames, period=period, keyframes=len(frames) // period,
            residuals=period - 1,
        )  # fmt: skip
        pairs.append((Programs.of(simulate(alone)), Programs.of(ran)))
        print(page.clip_line(*pairs[-1]), flush=True)
    assert judged is not None
    return ClipResult(subject.name, len(frames), tuple(pairs), *judged)


def judge_clip(subject: Subject, alone: Path, dynamic: Path) -> tuple[str, Errors, Errors]:
    """Run two artifacts; return the error's unit, and the errors on all and on unseen frames."""
    case, task = subject.case, subject.processing.task
    artifact = Artifact.load(alone)
    layouts = [output.layout for output in artifact.manifest.outputs]

    def decode(output: Any) -> NDArray[Any]:
        outputs = output if isinstance(output, tuple) else (output,)
        return np.array(plain(interpret(task, outputs, layouts)))

    unguarded = KeyframePolicy(guard=False)
    frame, scheme = (
        predict(resq.Session(a, period=case.period, keyframes=unguarded), subject.frames, decode)
        for a in (artifact, Artifact.load(dynamic))
    )
    reference = against_float(subject.net, artifact.manifest, case.open())
    unseen = case.unseen(len(subject.frames))
    every, rest = (
        judge(frame, scheme, case.period, reference.error, counted).residual
        for counted in (None, unseen)
    )
    return reference.unit, every, rest


# --- break-even ---------------------------------------------------------------------------------


def measure_break_even(subject: Subject, bench: Bench, npu: str) -> BreakEven:
    """Simulate residual frames that differ from their keyframe in a rectangle."""
    prepare, net = subject.prepare, subject.net
    pictures = open_random(prepare.height, prepare.width, 1)
    frame = np.array(prepare(next(p for p in pictures if p is not None)))
    other = replaced(net, frame, 0.5)
    made = bench.compile(subject.dynamic, npu)
    points = tuple(
        Programs.of(simulate(made, frames=[frame, replaced(net, frame, share)], residuals=1))
        for share in SHARES
    )
    alone, *statics = (bench.fixed(net, [frame, other], s, npu) for s in (FRAME, *STATICS))
    assert subject.dynamic.dynamic is not None
    taus = [choice["tau"] for choice in subject.dynamic.dynamic["choices"].values()]
    found = BreakEven((min(taus), max(taus)), alone, tuple(statics), points)
    print("\n".join(page.break_even_lines(found)), flush=True)
    return found


def replaced(net: Network, frame: Frame, share: float) -> Frame:
    """Return a frame in the network's layout with a rectangle of noise, that share of it."""
    if net.inputs[0].layout != "NCHW":
        return changed_frame(frame, share)
    return changed_frame(frame.transpose(0, 2, 3, 1), share).transpose(0, 3, 1, 2)


# --- drive --------------------------------------------------------------------------------------


def measure_drive(given: dict[str, str], bench: Bench) -> list[Drive]:
    """Simulate ESPNet on camvid/val; the frames that run are not those that calibrate."""
    load = workload("espnet", DRIVE_FITTED + DRIVE_FRAMES)
    net = resq.load(load.model)
    fitted, frames = load.frames[:DRIVE_FITTED], load.frames[DRIVE_FITTED:]
    if "drive" in given:
        dynamic = QuantizedNetwork.load(given["drive"])
    else:
        dynamic = resq.calibrate(net, [fitted], DRIVE, period=DRIVE_PERIOD)
    bits = measure_bits(BitSession(dynamic, period=DRIVE_PERIOD), frames).mean_bits
    cost = bops.count(dynamic.module, DRIVE_PERIOD, bits).bops_amortized
    results = []
    for npu in bench.npus:
        alone, *statics = (
            bench.fixed(net, fitted, scheme, npu, DRIVE_PERIOD) for scheme in (FRAME, *STATICS)
        )
        ran = simulate(
            bench.compile(dynamic, npu), frames=frames, period=DRIVE_PERIOD,
            keyframes=len(frames) // DRIVE_PERIOD, residuals=DRIVE_PERIOD - 1,
        )  # fmt: skip
        results.append(Drive(alone, (*statics, Programs.of(ran)), cost))
        print("\n".join(page.drive_lines(results[-1])), flush=True)
    return results


# --- the whole ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--case", nargs="+", default=["blazepose_vtest", "espnet_car"])
    parser.add_argument("--qnet", nargs="*", default=[], help="CASE=FOLDER or drive=FOLDER")
    parser.add_argument("--npu", nargs="+", default=["npu-mobile", "npu-uniform", "npu-micro"])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
    args = parser.parse_args()
    for npu in args.npu:
        if get_target(npu).npu is None:
            raise SystemExit(f"{npu} is no NPU; name one or its .json file")
    given = dict(text.split("=", 1) for text in args.qnet)
    results: dict[str, Any] = {}

    def done(title: str, lines: list[str], found: Any) -> None:
        print("\n".join(lines), flush=True)
        results[title] = found
        if args.record:
            record(title, lines, {"npu": f"{', '.join(args.npu)}, simulated"})

    with tempfile.TemporaryDirectory(prefix="resq-") as folder:
        bench = Bench(Path(folder), args.npu)
        for name in args.case if {"clips", "break-even"} & set(args.part) else ():
            subject = Subject(name, given)
            if "clips" in args.part:
                clip = measure_clip(subject, bench)
                done(f"Static camera on NPUs: {name}", page.clip_page(clip), asdict(clip))
            if "break-even" in args.part:
                found = [measure_break_even(subject, bench, npu) for npu in args.npu]
                title = f"Break-even on NPUs: {name}"
                done(title, page.break_even_page(found), [asdict(b) for b in found])
        if "drive" in args.part:
            drives = measure_drive(given, bench)
            lines = page.drive_page(drives, DRIVE_FRAMES)
            done("ESPNet on a drive, on NPUs", lines, [asdict(d) for d in drives])
    if args.json:
        with atomic_file(args.json) as staging:
            staging.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

"""Dynamic-ResQ on clips of static cameras, one thread, beside int8 peers.

    python -m benchmarks.static_camera --case blazepose_vtest espnet_car espnet_vtest

Per case thresholds are fitted on some frames of the clip (``--guard``: for sessions with their
guard, the default of sessions); then the clip runs at period T, with these thresholds and with
multiples of them (``--scales``), with the guard and without: mean milliseconds of whole `Session`
calls, keyframes included, against a plain W8A8 artifact frame by frame and the peers, and the
recovery beside that of static W8A8->W8A8. ``--qnet CASE=FOLDER`` takes a fitted network. Outputs
that the judging does not read are held on residual frames (`benchmarks.cases`); the plain artifact
and the peers compute them.

``--repeat SHARE`` adds guarded sessions that repeat outputs, with keyframes every T frames and with
adaptive ones. What any engine can do stands beside them: every second, third, … frame computed, the
others repeated (their milliseconds are those of the artifact that computes them, divided).

``--precise SHARE`` calibrates with 16 bits on keyframes for the noisiest layers. F and H stay those
of the plain W8A8 artifact; an artifact of frames with the keyframes' precision stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--case", nargs="+", default=["blazepose_vtest", "espnet_car", "espnet_vtest"])
parser.add_argument("--qnet", nargs="*", default=[], help="CASE=FOLDER")
parser.add_argument("--scheme", default="W8A8->W8A{0,8}")
parser.add_argument("--budget", default="15 %", help="rise of the error that fitting allows")
parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.5, 2, 4])
parser.add_argument("--guard", action="store_true", help="fit for sessions with their guard")
parser.add_argument("--repeat", type=float, nargs="*", default=[], help="shares to repeat up to")
parser.add_argument("--precise", type=float, default=0.0, help="share of the MACs with 16 bits")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--json", type=Path)
parser.add_argument("--keep", type=Path, help="folder to keep artifacts in, and to find them")
parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
args = parser.parse_args()
os.environ["TVM_NUM_THREADS"] = str(args.threads)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

import resq_tvm as resq  # noqa: E402
from benchmarks import peers  # noqa: E402
from benchmarks.cases import CASES  # noqa: E402
from benchmarks.record import record  # noqa: E402
from resq_tvm.accuracy import against_float, plain  # noqa: E402
from resq_tvm.artifact import Artifact  # noqa: E402
from resq_tvm.device import fingerprint  # noqa: E402
from resq_tvm.evaluate.judge import judge  # noqa: E402
from resq_tvm.evaluate.measures import error_against_float, float_outputs  # noqa: E402
from resq_tvm.keyframes import KeyframePolicy  # noqa: E402
from resq_tvm.latency import layer_cost  # noqa: E402
from resq_tvm.predict import make_preprocessor  # noqa: E402
from resq_tvm.processing.config import load_processing  # noqa: E402
from resq_tvm.processing.postprocess import interpret  # noqa: E402
from resq_tvm.quantize.qnet import QuantizedNetwork  # noqa: E402
from resq_tvm.scheme import MAX_BITS, Scheme  # noqa: E402

PLAIN, PRECISE = "frame W8A8", "precise frames"


def artifact(name: str, qnet: QuantizedNetwork, processing: Any, folder: Path) -> Artifact:
    """Compile, or load what an earlier run kept."""
    path = folder / f"{name}.resq"
    if path.is_dir():
        return Artifact.load(path)
    return resq.compile(qnet, output=path, processing=processing)


def run(session: Any, frames: list[NDArray[np.float32]]) -> list[tuple[str, float]]:
    """Run frames; return program and milliseconds of each call."""
    session.reset()
    spans = []
    for frame in frames:
        start = time.perf_counter()
        session(frame)
        spans.append((session.last.kind, (time.perf_counter() - start) * 1e3))
    return spans


def predictions(session: Any, frames: list[NDArray[np.float32]], task: Any) -> list[Any]:
    """Run frames; return what each predicts."""
    session.reset()
    layouts = [o.layout for o in session.artifact.manifest.outputs]
    found = []
    for frame in frames:
        output = session(frame)
        outputs = output if isinstance(output, tuple) else (output,)
        found.append(np.array(plain(interpret(task, outputs, layouts))))
    return found


def measure(name: str, folder: Path) -> list[dict[str, Any]]:
    """Measure one case."""
    case = CASES[name]
    processing = load_processing(case.processing)
    net = resq.load(str(case.model))
    prepare = make_preprocessor(processing, net.inputs)
    frames = [np.array(prepare(p)) for p in case.open() if p is not None]
    first = frames[case.fitted]
    given = dict(text.split("=", 1) for text in args.qnet)
    if name in given:
        dynamic = QuantizedNetwork.load(given[name])
    else:
        qnet = resq.calibrate(
            net, [first], args.scheme, period=case.period, precise=args.precise, held=case.held
        )
        error = error_against_float(net, processing.task, float_outputs(net, first))
        trials = artifact(f"{name}_trials", qnet, processing, folder)
        dynamic, report = resq.fit_thresholds(
            qnet,
            [first],
            error=error,
            budget=args.budget,
            cost=layer_cost(qnet, threads=args.threads),
            period=case.period,
            artifact=trials,
            guard=args.guard,
            progress=print,
        )
        print(report, flush=True)
        dynamic.save(folder / f"{name}.qnet")
    made = {
        "frame": ("W8A8", None),
        "static": ("W8A8->W8A8", None),
        "dynamic": (dynamic.scheme, dynamic),
    }
    policies = {
        "": KeyframePolicy(guard=False),
        ", guarded": KeyframePolicy(),
        **{f", repeat {share:g}": KeyframePolicy(repeat=share) for share in args.repeat},
        **{
            f", repeat {share:g}, adaptive": KeyframePolicy("adaptive", repeat=share)
            for share in args.repeat
        },
    }
    artifacts = {}
    keys = {n: Scheme.parse(s).key for n, s in dynamic.layers.items() if s != "float"}
    precise = {n: str(bits) for n, bits in keys.items() if bits.activation > MAX_BITS}
    if precise:
        made["precise"] = ("W8A8", None)
    for kind, (scheme, qnet) in made.items():
        if qnet is None:
            overrides = precise if kind == "precise" else {}
            qnet = resq.calibrate(net, [first], scheme, period=case.period, overrides=overrides)
        artifacts[kind] = artifact(f"{name}_{kind}", qnet, processing, folder)
    # Of a stream that lasts, as a camera's does.
    options = {"period": case.period, "copy": False, "threads": args.threads, "large_pages": True}
    sessions = {
        PLAIN: resq.Session(artifacts["frame"], **options),
        **({PRECISE: resq.Session(artifacts["precise"], **options)} if precise else {}),
        "static W8A8->W8A8": resq.Session(artifacts["static"], **options),
        **{
            f"dynamic x {scale:g}{how}": resq.Session(
                artifacts["dynamic"], keyframes=policy, threshold_scale=scale, **options
            )
            for how, policy in policies.items()
            for scale in args.scales
        },
    }
    reference = against_float(net, artifacts["frame"].manifest, case.open())
    found = {kind: predictions(s, frames, processing.task) for kind, s in sessions.items()}
    skipping = {}
    alone = [kind for kind in (PLAIN, PRECISE) if kind in sessions]
    for whole in alone if args.repeat else ():
        for step in (2, 3, 4, case.period):
            kind = f"{whole}, 1 of {step} frames"
            skipping[kind] = whole, step
            found[kind] = [found[whole][n - n % step] for n in range(len(frames))]
    unseen = case.unseen(len(frames))

    def judged(kind: str) -> dict[str, Any]:
        # Which frames the guard takes changes a little from run to run.
        pair = found[PLAIN], found[kind]
        every = judge(*pair, case.period, reference.error).residual
        rest = judge(*pair, case.period, reference.error, unseen).residual
        return {
            "error": every.scheme, "F": every.frame, "H": every.hold, "recovery": every.recovery,
            "error_unseen": rest.scheme, "recovery_unseen": rest.recovery,
        }  # fmt: skip

    rivals = [peers.openvino_int8(case.model, first[:8], args.threads)]
    if case.model.suffix == ".tflite":
        rivals.append(peers.litert_float(case.model, args.threads))
    else:
        rivals.append(peers.onnxruntime_int8(case.model, first[:8], args.threads))
    spans: dict[str, list[float]] = {k: [] for k in [*sessions, *(p.name for p in rivals)]}
    kinds: dict[str, dict[str, list[float]]] = {k: {} for k in sessions}
    for index in range(args.rounds + 1):
        for kind, session in sessions.items():
            # Frame by frame all frames cost the same: a part of the clip tells enough.
            part = frames if kind not in alone else frames[:24]
            times = run(session, part)
            if index:  # the first round warms up
                spans[kind].append(statistics.fmean(ms for _, ms in times))
                for program, ms in times:
                    kinds[kind].setdefault(program, []).append(ms)
        for peer in rivals:
            spent = []
            for frame in frames[:12]:
                start = time.perf_counter()
                peer.run(frame)
                spent.append((time.perf_counter() - start) * 1e3)
            if index:
                spans[peer.name].append(statistics.fmean(spent))
    ms = {k: statistics.median(v) for k, v in spans.items()}
    fastest = min(ms[p.name] for p in rivals)
    ms |= {kind: ms[whole] / step for kind, (whole, step) in skipping.items()}
    rows = []
    for kind in ms:
        row: dict[str, Any] = {
            "case": name, "period": case.period, "engine": kind, "ms": ms[kind],
            "to_frame": ms[kind] / ms[PLAIN], "to_peer": ms[kind] / fastest,
            "unit": reference.unit,
        }  # fmt: skip
        if kind in sessions:
            row |= {k: statistics.fmean(v) for k, v in kinds[kind].items()}
            row["repeated"] = len(kinds[kind].get("repeat", ())) / sum(
                map(len, kinds[kind].values())
            )
        if kind in found:
            row |= judged(kind)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


COLUMNS = {
    "engine": "engine", "ms": "ms per frame", "keyframe": "keyframe", "residual": "residual",
    "repeated": "repeated",
    "to_frame": "/ frame W8A8", "to_peer": "/ fastest peer", "error": "error", "F": "F", "H": "H",
    "recovery": "recovery", "error_unseen": "error, unseen", "recovery_unseen": "recovery, unseen",
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return one case as a table."""

    def cell(value: Any) -> str:
        if value is None:
            return "–"
        return value if isinstance(value, str) else f"{value:.2f}"

    head = f"T = {rows[0]['period']}, errors in {rows[0]['unit']} on residual frames"
    lines = [head, "", f"| {' | '.join(COLUMNS.values())} |", "|" + " --- |" * len(COLUMNS)]
    return lines + [f"| {' | '.join(cell(row.get(k)) for k in COLUMNS)} |" for row in rows]


def main() -> None:
    device = fingerprint()
    print(f"device: {device}; threads {args.threads}, rounds {args.rounds}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = {name: measure(name, folder) for name in args.case}
    if args.record:
        for name, rows in results.items():
            title = f"Static camera: {name}, {args.scheme}, {args.threads} thread(s)"
            record(title, table(rows), device)
    if args.json:
        args.json.write_text(json.dumps({"device": device, "results": results}, indent=2))


main()

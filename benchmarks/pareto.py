"""Accuracy, bit operations and milliseconds of Dynamic-ResQ over the threshold, in one plot.

    python -m benchmarks.pareto --record

`espnet_camvid.onnx` on the labelled drive (camvid/val, T = 3, calibrated on the first 30 frames),
from compiled artifacts: frame quantization, holding the keyframe, static ResQ, and the dynamic
scheme at several tau, its residuals as they are and in sessions with their guard. One dynamic
artifact serves all of them: thresholds are parameters. ``--budget`` adds thresholds that are fitted
value by value on those first frames and their labels, for milliseconds; ``--scales`` shows
multiples of them, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--scheme", default="W8A8->W8A{0,4,8}")
parser.add_argument(
    "--tau", type=float, nargs="+", default=[3e-5, 3e-4, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
)
parser.add_argument("--budget", nargs="*", default=[], help="budgets of error to fit, too")
parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="of fitted thresholds")
parser.add_argument("--frames", type=int, default=101)
parser.add_argument("--keep", type=Path, default=Path("pareto-artifacts"), help="folder")
parser.add_argument("--plot", type=Path, default=Path("docs/pareto_espnet.png"))
parser.add_argument("--json", type=Path)
parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
args = parser.parse_args()
os.environ["TVM_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402

import resq_tvm as resq  # noqa: E402
from benchmarks.networks import DATA, SOURCES, workload  # noqa: E402
from benchmarks.record import record  # noqa: E402
from resq_tvm import bops  # noqa: E402
from resq_tvm.accuracy import against_labels, plain, read_labels  # noqa: E402
from resq_tvm.artifact import Artifact  # noqa: E402
from resq_tvm.bitmaps import BitSession  # noqa: E402
from resq_tvm.device import fingerprint  # noqa: E402
from resq_tvm.evaluate.judge import hold  # noqa: E402
from resq_tvm.evaluate.measures import label_error  # noqa: E402
from resq_tvm.keyframes import KeyframePolicy  # noqa: E402
from resq_tvm.latency import layer_cost  # noqa: E402
from resq_tvm.processing.config import load_processing  # noqa: E402
from resq_tvm.processing.postprocess import interpret  # noqa: E402
from resq_tvm.programs import Programs  # noqa: E402
from resq_tvm.quantize.calibrate import TAU  # noqa: E402
from resq_tvm.quantize.qnet import QuantizedNetwork  # noqa: E402

PERIOD = 3
FITTED = 30
STATIC = ("W8A8->W8A8", "W8A8->W8A6", "W8A8->W8A4", "W8A8->W4A4")
FRAME = ("W8A8", "W8A6", "W8A4")
LABELS = DATA / "camvid/valannot"
PROCESSING = load_processing(SOURCES["espnet"].processing)


def built(scheme: str, net: Any, frames: list[Any]) -> tuple[QuantizedNetwork, Artifact]:
    """Calibrate and compile a scheme, or take what an earlier run kept."""
    name = "".join(c if c.isalnum() else "_" for c in scheme)
    folder, qnet_folder = args.keep / f"{name}.resq", args.keep / f"{name}.qnet"
    if folder.is_dir() and qnet_folder.is_dir():
        return QuantizedNetwork.load(qnet_folder), Artifact.load(folder)
    print(f"building {scheme}", flush=True)
    period = PERIOD if "->" in scheme else 1
    qnet = resq.calibrate(net, [frames[:FITTED]], scheme, period=max(period, 2))
    qnet.save(qnet_folder)
    return qnet, resq.compile(qnet, output=folder, processing=PROCESSING)


def fitted(
    budget: str, qnet: QuantizedNetwork, artifact: Artifact, frames: list[Any]
) -> tuple[QuantizedNetwork, Artifact]:
    """Fit thresholds to a budget and compile, or take what an earlier run kept."""
    name = "".join(c if c.isalnum() else "_" for c in f"{qnet.scheme} {budget}")
    folder, qnet_folder = args.keep / f"{name}.resq", args.keep / f"{name}.qnet"
    if folder.is_dir() and qnet_folder.is_dir():
        return QuantizedNetwork.load(qnet_folder), Artifact.load(folder)
    print(f"fitting {budget}", flush=True)
    layouts = [output.layout for output in artifact.manifest.outputs]
    found, report = resq.fit_thresholds(
        qnet,
        [frames],
        error=label_error(PROCESSING.task, read_labels(LABELS)[: len(frames)], layouts),
        budget=budget,
        cost=layer_cost(qnet, threads=1),
        period=PERIOD,
        artifact=artifact,
        progress=lambda line: print(line, flush=True),
    )
    print(report, flush=True)
    found.save(qnet_folder)
    return found, resq.compile(found, output=folder, processing=PROCESSING)


def run(
    artifact: Artifact, frames: list[Any], scale: float = 1.0, guard: bool = False
) -> tuple[list[Any], float, Counter[str]]:
    """Return the class maps of all frames, the mean milliseconds of a frame, frames by program."""
    session = resq.Session(
        artifact,
        period=PERIOD,
        copy=False,
        threads=1,
        threshold_scale=scale,
        keyframes=KeyframePolicy(guard=guard),
    )
    layouts = [o.layout for o in artifact.manifest.outputs]
    maps, spans, kinds = [], [], []
    for frame in [*frames[:PERIOD], *frames]:
        start = time.perf_counter()
        output = session(frame)
        spans.append((time.perf_counter() - start) * 1e3)
        outputs = output if isinstance(output, tuple) else (output,)
        maps.append(plain(interpret(PROCESSING.task, outputs, layouts)))
        kinds.append(session.last.kind if session.last else "")
    rounds = [statistics.fmean(spans[i : i + PERIOD]) for i in range(PERIOD, len(spans), PERIOD)]
    return maps[PERIOD:], statistics.median(rounds), Counter(kinds[PERIOD:])


def mean_bits(
    qnet: QuantizedNetwork, artifact: Artifact, frames: list[Any], scale: float
) -> tuple[dict[str, float], float]:
    """Return layer → mean bits over residual frames, and the share of tiles that were computed."""
    import tvm

    sites = BitSession(qnet).layers
    programs, everything = Programs(artifact, scale), Programs(artifact, 0.0)
    sums: dict[str, list[float]] = {}
    shares = []
    for index, frame in enumerate(frames):
        nhwc = np.ascontiguousarray(qnet.network.to_canonical(frame))
        tensor = tvm.runtime.tensor(nhwc)
        if index % PERIOD == 0:
            programs.keyframe([tensor])
            if index == 0:
                everything.keyframe([tensor])
            continue
        programs.residual([tensor])
        if index == 1:
            everything.residual([tensor])
        assert programs.counts is not None and everything.counts is not None
        shares.append(programs.counts[:, 0].sum() / everything.counts[:, 0].sum())
        for site in {s for layer in sites for s in layer.sites}:
            sums.setdefault(site, []).append(float(programs.tensor(f"{site}_bits").mean()))
    means = {site: statistics.fmean(values) for site, values in sums.items()}
    layers = {
        la.layer: float(np.average([means[s] for s in la.sites], weights=la.channels))
        for la in sites
    }
    return layers, float(np.mean(shares))


def measure() -> list[dict[str, Any]]:
    """Measure all points."""
    load = workload("espnet", args.frames)
    net = resq.load(load.model)
    args.keep.mkdir(parents=True, exist_ok=True)
    points: list[dict[str, Any]] = []
    every = range(len(load.frames))
    reference: Any = None

    def add(kind: str, label: str, maps: Any, gbops: float, ms: float, **more: Any) -> None:
        unseen = range(FITTED, len(load.frames))
        point = {
            "kind": kind, "label": label, "gbops": gbops, "ms": ms,
            "miou": 100 - reference.error(maps, every),
            "miou_unseen": 100 - reference.error(maps, unseen), **more,
        }  # fmt: skip
        points.append(point)
        print(json.dumps(point), flush=True)

    for scheme in FRAME:
        qnet, artifact = built(scheme, net, load.frames)
        reference = reference or against_labels(LABELS, artifact.manifest)
        maps, ms, _ = run(artifact, load.frames)
        cost = bops.count(qnet.module, 1).bops_keyframe / 1e9
        add("frame", scheme, maps, cost, ms)
        if scheme == "W8A8":
            add("hold", "hold", hold(maps, PERIOD), cost / PERIOD, ms / PERIOD)
    for scheme in STATIC:
        qnet, artifact = built(scheme, net, load.frames)
        maps, ms, _ = run(artifact, load.frames)
        add("static", scheme, maps, bops.count(qnet.module, PERIOD).bops_amortized / 1e9, ms)
    qnet, artifact = built(args.scheme, net, load.frames)
    for tau in args.tau:
        maps, ms, _ = run(artifact, load.frames, tau / TAU)
        bits, tiles = mean_bits(qnet, artifact, load.frames, tau / TAU)
        report = bops.count(qnet.module, PERIOD, bits)
        add(
            "dynamic", f"tau {tau:g}", maps, report.bops_amortized / 1e9, ms, tau=tau, tiles=tiles
        )  # fmt: skip
        maps, ms, kinds = run(artifact, load.frames, tau / TAU, guard=True)
        # A frame on its own has a keyframe's bits; residuals count as the mean of them all.
        residuals = kinds["residual"] / kinds.total()
        cost = residuals * report.bops_residual + (1 - residuals) * report.bops_keyframe
        add("guarded", f"tau {tau:g}", maps, cost / 1e9, ms, tau=tau, residuals=residuals)
    for budget in args.budget:
        ours = fitted(budget, qnet, artifact, load.frames[:FITTED])
        for scale in args.scales:
            maps, ms, _ = run(ours[1], load.frames, scale)
            bits, tiles = mean_bits(*ours, load.frames, scale)
            cost = bops.count(ours[0].module, PERIOD, bits).bops_amortized / 1e9
            label = budget if scale == 1 else f"{budget} x {scale:g}"
            add("fitted", label, maps, cost, ms, tiles=tiles)
    return points


def plot(points: list[dict[str, Any]]) -> None:
    """Draw mIoU over GBOPs and over milliseconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    styles = {
        "frame": "s",
        "hold": "x",
        "static": "^",
        "dynamic": "o-",
        "guarded": "d:",
        "fitted": "*-",
    }
    for axis, key, name in (
        (axes[0], "gbops", "GBOPs per frame"),
        (axes[1], "ms", "ms per frame, 1 thread"),
    ):
        for kind, style in styles.items():
            chosen = [p for p in points if p["kind"] == kind and p["miou"] > 55]
            if kind == "fitted":  # to several budgets: one curve through all
                chosen.sort(key=lambda p: p[key])
            axis.plot([p[key] for p in chosen], [p["miou"] for p in chosen], style, label=kind)
            for p in chosen if kind != "guarded" else ():  # these lie on one another
                axis.annotate(
                    p["label"], (p[key], p["miou"]), fontsize=6, xytext=(3, 3),
                    textcoords="offset points",
                )  # fmt: skip
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mIoU on camvid/val")
    axes[0].legend()
    figure.suptitle(f"ESPNet 360×480, T = {PERIOD}, {args.scheme}")
    figure.tight_layout()
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, dpi=130)


def main() -> None:
    device = fingerprint()
    points = measure()
    plot(points)
    if args.record:
        lines = [
            "| scheme | mIoU (all) | mIoU (71 unseen) | GBOPs per frame | ms per frame "
            "| tiles computed |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        before = {kind: f"{kind}, " for kind in ("dynamic", "guarded", "fitted")} | {
            "frame": "frame "
        }
        for p in points:
            label = before.get(p["kind"], "") + p["label"]
            share = f"{100 * p['tiles']:.0f} %" if "tiles" in p else ""
            lines.append(
                f"| {label} | {p['miou']:.2f} | {p['miou_unseen']:.2f} | {p['gbops']:.1f} "
                f"| {p['ms']:.2f} | {share} |"
            )
        lines += ["", "![mIoU over bit operations and milliseconds](pareto_espnet.png)"]
        record(f"Dynamic-ResQ over tau: ESPNet, {args.scheme}, T = {PERIOD}", lines, device)
    if args.json:
        args.json.write_text(json.dumps({"device": device, "points": points}, indent=2))


main()

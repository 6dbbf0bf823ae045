"""Accuracy of compiled artifacts, judged by F, H, e and recovery (docs/calibration.md).

    python benchmarks/accuracy.py --network espnet blazepose face_mesh

Every figure comes from artifacts run by `Session` on this machine. ESPNet is judged against labels
(mIoU), the landmark networks against the float network (pixels of the network's input). The
residual frames that did not calibrate are the primary figure; all residual frames stand beside.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import resq_tvm as resq
from benchmarks.networks import DATA, SOURCES, clip_of, workload
from benchmarks.record import record
from resq_tvm.accuracy import (
    against_float,
    against_labels,
    artifact_predictions,
    plain,
)
from resq_tvm.device import fingerprint
from resq_tvm.evaluate.judge import judge
from resq_tvm.processing.config import load_processing

FRAME_SCHEMES = ("W8A8", "W8A4")
CASES: dict[str, dict[str, Any]] = {
    "espnet": {
        "periods": (3,),
        "calibration": 30,
        "schemes": ("W8A8->W8A8", "W8A8->W8A4", "W8A8->W4A4"),
        "labels": DATA / "camvid/valannot",
    },
    "blazepose": {
        "periods": (4, 8),
        "calibration": 16,
        "schemes": ("W8A8->W8A8", "W8A8->W8A6", "W8A8->W8A4", "W8A8->W4A4"),
    },
    "face_mesh": {
        "periods": (4, 8),
        "calibration": 16,
        "schemes": ("W8A8->W8A8", "W8A8->W8A6", "W8A8->W8A4", "W8A8->W4A4"),
    },
}


def predictions(
    net: Any, load: Any, scheme: str, period: int, case: Any, name: str, args: Any
) -> Any:
    """Calibrate, compile and run one scheme; return (manifest, predictions of every frame)."""
    processing = load_processing(SOURCES[name].processing)
    qnet = resq.calibrate(net, [load.frames[: case["calibration"]]], scheme, period=period)
    with tempfile.TemporaryDirectory() as folder:
        artifact = resq.compile(
            qnet, output=Path(folder) / "x.resq", processing=processing,
            state_dtype=args.state_dtype,
        )  # fmt: skip
        session = resq.Session(artifact, period=period, copy=False)
        found = [plain(p) for p in artifact_predictions(session, clip_of(SOURCES[name]))]
        return artifact.manifest, found


def measure(name: str, args: Any) -> list[dict[str, Any]]:
    """Judge every scheme of one network; return the table's rows."""
    case = CASES[name]
    load = workload(name, case["calibration"])
    net = resq.load(load.model, input_shape=load.input_shape)
    rows: list[dict[str, Any]] = []
    reference: Any = None
    for period in case["periods"]:
        framed: Any = None
        for scheme in (*FRAME_SCHEMES, *case["schemes"]):
            manifest, found = predictions(net, load, scheme, period, case, name, args)
            if reference is None:
                clip = clip_of(SOURCES[name])
                reference = (
                    against_labels(case["labels"], manifest)
                    if "labels" in case
                    else against_float(net, manifest, clip)
                )
            framed = found if framed is None else framed
            unseen = range(case["calibration"], len(found))
            judged = judge(framed, found, period, reference.error, unseen)
            everything = judge(framed, found, period, reference.error)
            row = {
                "network": name,
                "period": period,
                "scheme": scheme,
                "unit": reference.unit,
                "state_bytes": manifest.state_bytes,
                "unseen": judged.to_dict(),
                "all": everything.to_dict(),
            }
            rows.append(row)
            show(row)
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row: errors on residual frames (unseen | all) and on all frames."""
    unseen, every = row["unseen"]["residual"], row["all"]["residual"]
    recovered = unseen["recovery"]
    print(
        f"{row['network']:10} T={row['period']} {row['scheme']:12} "
        f"unseen residual frames: e {unseen['scheme']:.2f} F {unseen['frame']:.2f} "
        f"H {unseen['hold']:.2f} recovery {'-' if recovered is None else f'{recovered:.2f}'} | "
        f"all residual: e {every['scheme']:.2f} F {every['frame']:.2f} H {every['hold']:.2f} | "
        f"all frames, keyframes included: e {row['all']['all']['scheme']:.2f} "
        f"H {row['all']['all']['hold']:.2f} [{row['unit']}]",
        flush=True,
    )


HEAD = (
    "| T | scheme | e, unseen | F | H | recovery | e, all residual | F | H | recovery "
    "| e, all frames | H | unit | state MB |"
)


def markdown(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells: list[str] = [str(row["period"]), row["scheme"]]
    for errors in (row["unseen"]["residual"], row["all"]["residual"]):
        share = errors["recovery"]
        cells += [f"{errors[k]:.2f}" for k in ("scheme", "frame", "hold")]
        cells.append("–" if share is None else f"{share:.2f}")
    every = row["all"]["all"]
    cells += [f"{every['scheme']:.2f}", f"{every['hold']:.2f}", row["unit"]]
    cells.append(f"{row['state_bytes'] / 1e6:.2f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--state-dtype", default="float16", choices=("float16", "float32"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
    args = parser.parse_args()
    device = fingerprint()
    print(f"device: {device}; state {args.state_dtype}", flush=True)
    rows = [row for name in args.network for row in measure(name, args)]
    if args.record:
        for name in args.network:
            table = [HEAD, "|" + " --- |" * HEAD.count(" |")]
            table += [markdown(row) for row in rows if row["network"] == name]
            record(f"Accuracy of {name}, state in {args.state_dtype}", table, device)
    if args.json:
        args.json.write_text(json.dumps({"device": device, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()

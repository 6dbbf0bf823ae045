"""Keyframe and residual latency beside the fastest int8 peers, in one run.

    python benchmarks/speed.py --network ddrnet espnet blazepose --threads 1

Each round runs every engine on the same frames, one after the other, so that a slow minute of the
machine hits all of them; the ratio is taken per round and its median reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--network", nargs="+", default=["ddrnet", "espnet", "blazepose"])
parser.add_argument("--scheme", default="W8A8->W4A4")
parser.add_argument("--state-dtype", default="float16")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--calibration", type=int, default=8)
parser.add_argument("--json", type=Path)
parser.add_argument("--record", action="store_true", help="write the table into docs/figures.md")
args = parser.parse_args()
os.environ["TVM_NUM_THREADS"] = str(args.threads)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would slow their neighbours

import resq_tvm as resq  # noqa: E402
from benchmarks import peers  # noqa: E402
from benchmarks.networks import Workload, workload  # noqa: E402
from benchmarks.record import record  # noqa: E402
from resq_tvm.device import fingerprint  # noqa: E402


def ours(load: Workload) -> dict[str, Any]:
    """Compile the network and return its two programs as callables on a frame."""
    net = resq.load(load.model, input_shape=load.input_shape)
    qnet = resq.calibrate(net, [load.frames[: args.calibration]], args.scheme, period=4)
    artifact = resq.compile(qnet, state_dtype=args.state_dtype)
    session = resq.Session(artifact, copy=False, threads=args.threads)

    def keyframe(x: Any) -> None:
        session.force_keyframe()
        session(x)

    session(load.frames[0])
    alone = resq.Session(artifact, period=10**9, copy=False, threads=args.threads)
    alone(load.frames[0])
    return {"keyframe": keyframe, "residual": alone}


def measure(load: Workload) -> dict[str, Any]:
    """Time all engines of one network in rounds."""
    engines = dict(ours(load))
    calibration = load.frames[: args.calibration]
    rivals = [peers.openvino_int8(load.source, calibration, args.threads)]
    if load.name == "blazepose":
        rivals.append(peers.litert_float(load.source, args.threads))
    else:
        rivals.append(peers.onnxruntime_int8(load.source, calibration, args.threads))
    engines |= {p.name: p.run for p in rivals}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for index in range(args.rounds + 2):
        for name, run in engines.items():
            spans = []
            for frame in load.frames[:8]:
                start = time.perf_counter()
                run(frame)
                spans.append((time.perf_counter() - start) * 1e3)
            if index >= 2:  # the first two rounds warm up
                times[name].append(statistics.median(spans))
    fastest = min((p.name for p in rivals), key=lambda n: statistics.median(times[n]))
    rows = {}
    for name, spans in times.items():
        q = statistics.quantiles(spans, n=10)
        ratio = statistics.median(a / b for a, b in zip(spans, times[fastest], strict=True))
        rows[name] = {"median": statistics.median(spans), "p10": q[0], "p90": q[-1], "ratio": ratio}
    return {"network": load.name, "fastest_peer": fastest, "rows": rows}


def main() -> None:
    device = fingerprint()
    print(f"device: {device}\nthreads {args.threads}, rounds {args.rounds}, scheme {args.scheme}")
    results = []
    for name in args.network:
        result = measure(workload(name))
        results.append(result)
        print(f"\n{name} (ratios to {result['fastest_peer']})")
        for engine, row in result["rows"].items():
            print(
                f"  {engine:38} {row['median']:8.2f} ms  (p10 {row['p10']:.2f}, "
                f"p90 {row['p90']:.2f})   {row['ratio']:.2f} x"
            )
    if args.record:
        lines = [
            "| network | engine | median ms | p10 | p90 | ratio |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for result in results:
            for engine, row in result["rows"].items():
                figures = " | ".join(f"{row[k]:.2f}" for k in ("median", "p10", "p90", "ratio"))
                lines.append(f"| {result['network']} | {engine} | {figures} |")
        threads = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
        record(f"Speed beside int8 peers, {threads}", lines, device)
    if args.json:
        args.json.write_text(
            json.dumps({"device": device, "results": results}, indent=2, default=str)
        )


main()

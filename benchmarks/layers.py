"""Every convolution of a network, in the network: GMAC/s and share of the instruction's peak.

Two things keep a layer below the peak by itself: lanes that padding wastes (vectors of 16 outputs,
groups of input channels), and bytes that must come from memory. Both have a column.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--network", nargs="+", default=["ddrnet", "espnet", "blazepose"])
parser.add_argument("--scheme", default="W8A8->W4A4")
parser.add_argument("--rounds", type=int, default=25)
parser.add_argument("--database", default="shipped")
parser.add_argument("--record", action="store_true", help="write the table into docs/figures.md")
args = parser.parse_args()
os.environ["TVM_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import resq_tvm as resq  # noqa: E402
from benchmarks.networks import workload  # noqa: E402
from benchmarks.record import record  # noqa: E402
from resq_tvm.bench import profile_kernels  # noqa: E402
from resq_tvm.compiler import lower_network  # noqa: E402
from resq_tvm.device import fingerprint  # noqa: E402
from resq_tvm.keyframes import KeyframePolicy  # noqa: E402
from resq_tvm.schedules.context import LANES  # noqa: E402
from resq_tvm.schedules.dots import dot_for  # noqa: E402
from resq_tvm.schedules.spec import Conv, FusedKernel  # noqa: E402
from resq_tvm.schedules.tuning.records import decider  # noqa: E402
from resq_tvm.schedules.tuning.roof import Roof, measure_roof  # noqa: E402
from resq_tvm.schedules.tuning.tasks import describe, extract, macs  # noqa: E402
from resq_tvm.targets.preset import Target, get_target  # noqa: E402


def used_lanes(kernel: FusedKernel, target: Target) -> float:
    """Return the share of a dot product's lanes that padding leaves to real channels."""
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    outputs = kernel.c / (-(-kernel.c // LANES) * LANES)
    if anchor.depthwise:
        rows = max(len({t[2] for t in p.taps}) for p in anchor.phases)
        return outputs * rows / (-(-rows // 4) * 4)
    group = dot_for(target).group
    padded = sum(-(-kernel.tensor(n).c // group) * group for n in anchor.inputs)
    return outputs * sum(kernel.tensor(n).c for n in anchor.inputs) / padded


def measure(name: str, target: Target, roof: Roof) -> list[dict[str, Any]]:
    """Profile both programs of a network; return a row per convolution kernel."""
    load = workload(name)
    net = resq.load(load.model, input_shape=load.input_shape)
    qnet = resq.calibrate(net, [load.frames[:8]], args.scheme, period=4)
    artifact = resq.compile(qnet, target, database=args.database)
    lowered, _ = lower_network(qnet, target, decide=decider(target, args.database))
    policy = KeyframePolicy(guard=False)
    session = resq.Session(artifact, period=10**9, copy=False, threads=1, keyframes=policy)
    rows = []
    frames = [f if isinstance(f, tuple) else (f,) for f in load.frames[:8]]
    for entry in profile_kernels(session, frames, args.rounds):
        found = lowered.kernels.get(entry["name"])
        if found is None or not isinstance(found.kernel.anchor, Conv):
            continue
        kernel = found.kernel
        gmacs = macs(kernel) / entry["ms"] / 1e6
        (task,) = extract([(kernel, 1.0)], target) or (None,)
        rows.append(
            {
                "network": name,
                "program": entry["program"],
                "layer": entry["layer"],
                "kernel": describe(kernel),
                "ms": entry["ms"],
                "gmacs": gmacs,
                "share": gmacs / roof.gmacs,
                "lanes": used_lanes(kernel, target),
                "memory": None if task is None else roof.seconds(task) * 1e3 / entry["ms"],
                "schedule": str(found.decision),
                "origin": found.origin,
            }
        )
    return rows


def lost(row: dict[str, Any]) -> float:
    """Return the milliseconds above those at the peak."""
    return float(row["ms"] * (1 - row["share"]))


def main() -> None:
    target = get_target()
    roof = measure_roof(target)
    device = {**fingerprint(1), "peak_gmacs": round(roof.gmacs), "copy_gbytes": round(roof.gbytes)}
    print(f"device: {device}")
    head = (
        "| network | program | kernel | ms | GMAC/s | of the peak | lanes used | of the roofline |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    )
    lines = [
        "The three convolutions of each program that lose most time to the instruction's peak "
        "(the whole table: run the command), and each program's convolutions together.",
        "",
        *head,
    ]
    for name in args.network:
        rows = measure(name, target, roof)
        for row in rows:
            print(_cells(row), f"{row['layer']} {row['schedule']} {row['origin']}")
        for program in ("keyframe", "residual"):
            own = [r for r in rows if r["program"] == program]
            ms = sum(r["ms"] for r in own)
            total = sum(r["ms"] * r["gmacs"] for r in own) / ms
            lines += [_cells(r) for r in sorted(own, key=lost, reverse=True)[:3]]
            lines.append(
                f"| {name} | {program} | all {len(own)} | {ms:.2f} | {total:.0f} | "
                f"{total / roof.gmacs:.0%} | | |"
            )
    print("\n".join(["", *lines]))
    if args.record:
        record("Convolutions beside the instruction's peak, 1 thread", lines, device)


def _cells(row: dict[str, Any]) -> str:
    memory = "" if row["memory"] is None else f"{row['memory']:.0%}"
    cells = [
        row["network"], row["program"], row["kernel"], f"{row['ms']:.3f}", f"{row['gmacs']:.0f}",
        f"{row['share']:.0%}", f"{row['lanes']:.0%}", memory,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


main()

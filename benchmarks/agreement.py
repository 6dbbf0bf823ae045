"""Reference executor against compiled kernels on real networks and frames, layer by layer.

    python benchmarks/agreement.py --network blazepose face_mesh espnet ddrnet
    python benchmarks/agreement.py --scheme 'W8A8->W8A{0,4,8}' --motion clip local

Per network: kernels checked, those that must be exact and are not (must be none), the largest
difference of the others (resizes, poolings, exponentials differ by ulps between libraries), and the
share of activation codes that differ end to end. ``--motion local`` lets only a part of the picture
move, and returns to the keyframe: kernels of a scheme that chooses bits then leave tiles alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import resq_tvm as resq
from benchmarks.networks import SOURCES, workload
from benchmarks.record import record
from resq_tvm.compiler import build
from resq_tvm.device import fingerprint
from resq_tvm.verify import verify


def local(frames: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return canonical frames that are the first one but for a part, and the first one again."""
    key = frames[0]
    _, height, width, _ = key.shape
    moved = []
    for n, frame in enumerate(frames[1:]):
        rows = slice(height // 4 + n, height // 2 + n)
        columns = slice(width // 3 + 2 * n, width // 2 + 2 * n)
        picture = key.copy()
        picture[:, rows, columns] = frame[:, rows, columns]
        moved.append(picture)
    return [key, *moved, key, moved[-1]]


def measure(
    name: str, scheme: str, frames: int, state_dtype: str, motion: list[str]
) -> dict[str, Any]:
    """Verify a keyframe and ``frames - 1`` residual frames of a network, per kind of motion."""
    load = workload(name, max(frames, 8))
    net = resq.load(load.model, input_shape=load.input_shape)
    qnet = resq.calibrate(net, [load.frames[:8]], scheme, period=4)
    compiled = build(qnet, state_dtype=state_dtype)
    clip = [net.to_canonical(f) for f in load.frames[:frames]]
    shown = {"clip": clip, "local": local(clip)}
    report = verify(compiled, [f for kind in motion for f in shown[kind]])
    loose = [k for k in report.kernels.values() if not k.exact]
    return {
        "network": name,
        "scheme": scheme,
        "motion": motion,
        "kernels": len(report.kernels),
        "exact": sum(k.exact for k in report.kernels.values()),
        "failures": report.failures,
        "largest_of_the_others": max((k.largest for k in loose), default=0.0),
        "codes": sum(k.codes for k in report.kernels.values()),
        "differing_share": report.differing_share,
        "outputs": report.outputs,
        "outputs_differing": report.outputs_differing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--scheme", default="W8A8->W4A4")
    parser.add_argument("--state-dtype", default="float16")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--motion", nargs="+", default=["clip"], choices=["clip", "local"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
    args = parser.parse_args()
    results = []
    for name in args.network:
        row = measure(name, args.scheme, args.frames, args.state_dtype, args.motion)
        results.append(row)
        print(
            f"{name:10} {row['kernels']} kernels, {row['exact']} must be exact, "
            f"failing: {row['failures'] or 'none'}; others differ by at most "
            f"{row['largest_of_the_others']:.2g}; codes differing end to end "
            f"{row['differing_share']:.2e} of {row['codes']}; outputs of the whole programs: "
            f"{row['outputs_differing']} of {row['outputs']} differ from the chain of kernels",
            flush=True,
        )
    if args.record:
        table = [
            "| network | kernels | must be exact | failing | largest difference of the others "
            "| codes | differing end to end | outputs of whole programs | differing |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        table += [
            f"| {r['network']} | {r['kernels']} | {r['exact']} | {len(r['failures'])} "
            f"| {r['largest_of_the_others']:.2g} | {r['codes']} | {r['differing_share']:.2e} "
            f"| {r['outputs']} | {r['outputs_differing']} |"
            for r in results
        ]
        record(f"Agreement of kernels and reference, {args.scheme}", table, fingerprint())
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))
    if any(r["failures"] for r in results):
        raise SystemExit("kernels differ from the reference where they must be exact")


if __name__ == "__main__":
    main()

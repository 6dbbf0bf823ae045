"""NPU programs on real frames against the reference executor, value by value.

    python -m benchmarks.npu_agreement --record

Per network, scheme and machine: what the functional simulator's commands give, keyframe and
residual frames, and how many of the outputs' numbers differ from the reference executor's; commands
and pairs of commands without an order between them that touch the same bytes (must be none).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import resq_tvm as resq
from benchmarks.networks import workload
from benchmarks.record import record
from resq_tvm.device import fingerprint
from resq_tvm.errors import CompileError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.reference.session import ReferenceSession
from resq_tvm.session import Session
from resq_tvm.targets.npu.races import races
from resq_tvm.targets.npu.stream_file import read_stream

NETWORKS = ("ddrnet", "espnet", "blazepose")
SCHEMES = ("W8A8->W4A4", "W8A8->W8A{0,4,8}")
MACHINES = ("npu-mobile", "npu-micro", "npu-uniform")
STATE = "float16"
FAR = 1e-6  # relative: sigmoids differ by ulps between libraries


def calibrated(name: str, scheme: str, frames: int) -> tuple[QuantizedNetwork, list[Any]]:
    """Return a network calibrated on its clip, and the clip's first frames."""
    load = workload(name, max(frames, 4))
    net = resq.load(load.model, input_shape=load.input_shape)
    qnet = resq.calibrate(net, [load.frames[:4]], scheme, period=frames, samples=4, candidates=8)
    return qnet, load.frames[:frames]


def compare(qnet: QuantizedNetwork, frames: list[Any], machine: str) -> dict[str, Any]:
    """Run the frames on a machine's simulator and in the reference executor."""
    with TemporaryDirectory(prefix="resq-") as folder:
        path = Path(folder) / "npu.resq"
        artifact = resq.compile(qnet, machine, output=path, state_dtype=STATE)
        stream = read_stream(path / "program.npu")
        session = Session(artifact, keyframes=KeyframePolicy(guard=False))
        reference = ReferenceSession(qnet, state_dtype=STATE)
        values = differ = 0
        largest = 0.0
        for frame in frames:
            got, want = session(frame), reference(frame)
            pairs = zip(_tuple(got), _tuple(want), strict=True)
            for mine, theirs in pairs:
                values += theirs.size
                differ += int(np.count_nonzero(mine != theirs))
                gap = float(np.abs(mine - theirs).max(initial=0.0))
                largest = max(largest, gap / max(float(np.abs(theirs).max()), 1e-30))
    commands = {name: len(p.commands) for name, p in stream.programs.items()}
    return {
        "machine": machine,
        "commands": commands,
        "races": sum(len(races(stream, program)) for program in stream.programs.values()),
        "host": sorted({o for names in artifact.manifest.opaque.values() for o in names}),
        "values": values,
        "differ": differ,
        "largest": largest,
    }


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--scheme", nargs="+", default=list(SCHEMES))
    parser.add_argument("--machine", nargs="+", default=list(MACHINES))
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
    args = parser.parse_args()
    table = [
        "| network | scheme | machine | commands keyframe / residual | without an order "
        "| numbers of outputs | differing | largest difference, relative |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    failed = False
    for name in args.network:
        for scheme in args.scheme:
            qnet, frames = calibrated(name, scheme, args.frames)
            for machine in args.machine:
                try:
                    row = compare(qnet, frames, machine)
                except CompileError as error:
                    table.append(f"| {name} | {scheme} | {machine} | does not fit | | | | |")
                    print(table[-1], error, flush=True)
                    continue
                failed |= row["races"] > 0 or row["largest"] > FAR
                commands = " / ".join(str(n) for n in row["commands"].values())
                cells = (
                    name, scheme, machine, commands, row["races"], row["values"], row["differ"],
                    f"{row['largest']:.1g}",
                )  # fmt: skip
                table.append("| " + " | ".join(str(c) for c in cells) + " |")
                print(table[-1], "host:", row["host"] or "nothing", flush=True)
    if args.record:
        frames_text = f"one keyframe and {args.frames - 1} residual frames, state in {STATE}"
        lines = [frames_text, "", *table]
        record("NPU programs against the reference executor", lines, fingerprint())
    if failed:
        raise SystemExit("programs differ from the reference, or race")


if __name__ == "__main__":
    main()

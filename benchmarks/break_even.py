"""Where skipping stops paying: a residual frame's time against the share of it that changed.

python -m benchmarks.break_even dynamic.resq --record espnet
"""

from __future__ import annotations

import argparse
import os

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("artifact", help="Of a scheme that chooses bits.")
parser.add_argument("--rounds", type=int, default=20)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--record", metavar="NAME", help="write into docs/figures.md under that name")
args = parser.parse_args()
os.environ["TVM_NUM_THREADS"] = str(args.threads)

import numpy as np  # noqa: E402

from benchmarks.record import record  # noqa: E402
from resq_tvm.artifact import Artifact  # noqa: E402
from resq_tvm.breakeven import measure_break_even  # noqa: E402
from resq_tvm.device import fingerprint  # noqa: E402
from resq_tvm.predict import preprocessor_for  # noqa: E402
from resq_tvm.video.synthetic import open_random  # noqa: E402


def main() -> None:
    """Measure one artifact on a generated frame."""
    artifact = Artifact.load(args.artifact)
    prepare = preprocessor_for(artifact.manifest)
    frame = np.array(prepare(next(iter(open_random(prepare.height, prepare.width, 1)))))
    found = measure_break_even(artifact, frame, threads=args.threads, rounds=args.rounds)
    lines = [
        "| replaced | changed by the gate | tiles computed | ms | / keyframe | / plain frame |",
        "|" + " --- |" * 6,
    ]
    for p in found.points:
        alone = "–" if p.to_frame is None else f"{p.to_frame:.2f}"
        lines.append(
            f"| {100 * p.share:.0f} % | {100 * p.changed:.0f} % | {100 * p.tiles:.0f} % "
            f"| {p.ms:.2f} | {p.to_keyframe:.3f} | {alone} |"
        )
    frame_ms = "–" if found.frame_ms is None else f"{found.frame_ms:.2f}"
    share = found.stops_paying_at
    end = "never" if share is None else f"at {100 * share:.0f} % changed"
    lines += [
        "",
        f"Keyframe {found.keyframe_ms:.2f} ms, plain frame {frame_ms} ms, probe "
        f"{found.probe_ms:.2f} ms; a residual frame costs as much as a plain frame {end}.",
    ]
    print("\n".join(lines))
    if args.record:
        title = f"Break-even: {args.record}, {artifact.manifest.scheme}, {args.threads} thread(s)"
        record(title, lines, fingerprint(args.threads))


main()

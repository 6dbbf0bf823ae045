"""What the guard promises: a session of a dynamic scheme beside the frame-quantized artifact.

    python -m benchmarks.moving_camera dynamic.resq W8A8.resq clips/bikes.mp4 --record espnet_bikes

Both run the same frames in turn, frame by frame, so that a slow moment of the machine hits both.
Every round starts a new session; the ratio is that of the sums over a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from itertools import islice

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("artifact", help="Of a scheme that chooses bits.")
parser.add_argument("frame", help="The same network of scheme W8A8.")
parser.add_argument("clip")
parser.add_argument("--frames", help="START:STOP of the clip.")
parser.add_argument("--crop", help="y,x,height,width")
parser.add_argument("--count", type=int, default=100)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--record", metavar="NAME", help="write into docs/figures.md under that name")
args = parser.parse_args()
os.environ["TVM_NUM_THREADS"] = str(args.threads)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would slow their neighbours

import numpy as np  # noqa: E402

from benchmarks.record import record  # noqa: E402
from resq_tvm.artifact import Artifact  # noqa: E402
from resq_tvm.cli.options import choose_clip  # noqa: E402
from resq_tvm.device import fingerprint  # noqa: E402
from resq_tvm.keyframes import KeyframePolicy  # noqa: E402
from resq_tvm.predict import preprocessor_for  # noqa: E402
from resq_tvm.session import Session  # noqa: E402

POLICIES = {
    "period": KeyframePolicy(),
    "adaptive": KeyframePolicy("adaptive"),
    "period, no guard": KeyframePolicy(guard=False),
}


def main() -> None:
    """Measure every policy and print milliseconds, ratios and reasons."""
    artifact, alone = Artifact.load(args.artifact), Artifact.load(args.frame)
    prepare = preprocessor_for(artifact.manifest)
    clip = choose_clip(args.clip, frames=args.frames, crop=args.crop)
    good = (picture for picture in clip if picture is not None)
    frames = [np.array(prepare(picture)) for picture in islice(good, args.count)]
    print(f"device: {fingerprint(args.threads)}\n{len(frames)} frames, {args.rounds} rounds")
    plain = Session(alone, copy=False, threads=args.threads)
    lines = ["| keyframes | ms per frame | plain W8A8 | ratio | least | most | frames |"]
    lines.append("|" + " --- |" * 7)
    for name, policy in POLICIES.items():
        rounds = []
        for _ in range(args.rounds + 1):
            session = Session(artifact, copy=False, threads=args.threads, keyframes=policy)
            kinds: Counter[str] = Counter()
            sums = [0.0, 0.0]
            for frame in frames:
                for i, one in enumerate((plain, session)):
                    start = time.perf_counter()
                    one(frame)
                    sums[i] += (time.perf_counter() - start) * 1e3
                assert session.last is not None
                kinds[session.last.kind] += 1
            rounds.append([ms / len(frames) for ms in sums])
        kept = rounds[1:]  # the first warms up
        ratios = [b / a for a, b in kept]
        ms = [statistics.median(column) for column in zip(*kept, strict=True)]
        print(
            f"{name:18} {ms[1]:6.2f} ms beside {ms[0]:6.2f}: "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})  "
            f"{dict(kinds)}",
            flush=True,
        )
        found = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
        lines.append(
            f"| {name} | {ms[1]:.2f} | {ms[0]:.2f} | {statistics.median(ratios):.3f} "
            f"| {min(ratios):.3f} | {max(ratios):.3f} | {found} |"
        )
    if args.record:
        title = (
            f"Moving camera: {args.record}, {artifact.manifest.scheme}, {args.threads} thread(s)"
        )
        record(title, lines, fingerprint(args.threads))


main()

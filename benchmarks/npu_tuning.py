"""Default tiles, tuned tiles and cascades on NPUs: simulated cycles of DDRNet-23-slim.

    python -m benchmarks.npu_tuning --record
    python -m benchmarks.npu_tuning --npu npu-micro --trials 3000

Tuning takes kernels by themselves, the cycles are the whole programs'.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import resq_tvm as resq
from benchmarks.record import record
from resq_tvm.passes.npu.lower import lower_npu
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.schedules.choice import Decider
from resq_tvm.schedules.tuning.records import decider
from resq_tvm.targets.npu.timing import simulate
from resq_tvm.targets.preset import Target, get_target
from resq_tvm.tuning import tune

SHAPE = (1, 3, 256, 512)
SCHEME = "W8A8->W4A4"
PERIOD = 3
CASCADES = ("off", "auto", "search")


def network() -> QuantizedNetwork:
    """Return the network; which numbers it is calibrated with decides about no cycle."""
    rng = np.random.default_rng(0)
    frames = [rng.random(SHAPE).astype(np.float32) for _ in range(PERIOD)]
    net = resq.load("zoo:ddrnet23_slim", input_shape=SHAPE)
    return resq.calibrate(net, [frames], SCHEME, period=PERIOD, samples=2, candidates=3)


def cycles(
    qnet: QuantizedNetwork, target: Target, decide: Decider | None, cascades: str
) -> dict[str, int]:
    """Return the simulated cycles of both programs."""
    assert target.npu is not None
    lowered = lower_npu(
        qnet.module, target, state_dtype="float16", decide=decide, cascades=cascades
    )
    stream = lowered.stream
    return {name: simulate(target.npu, stream, name).cycles for name in stream.programs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npu", nargs="+", default=["npu-mobile", "npu-uniform", "npu-micro"])
    parser.add_argument("--trials", type=int, default=1200)
    parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
    args = parser.parse_args()
    qnet = network()
    table = [
        "| machine | tiles | cascades | keyframe, Mcycles | residual, Mcycles "
        "| of default tiles without cascades |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in args.npu:
        target = get_target(name)
        with TemporaryDirectory(prefix="resq-") as folder:
            report = tune(qnet, target, work_dir=Path(folder), trials=args.trials)
            tiles = {"default": None, "tuned": decider(target, folder)}
            first = None
            for label, decide in tiles.items():
                for cascades in CASCADES:
                    found = cycles(qnet, target, decide, cascades)
                    first = first or found
                    parts = " / ".join(f"{found[p] / first[p]:.3f}" for p in found)
                    cells = [f"{found[p] / 1e6:.3f}" for p in found]
                    table.append(
                        f"| {name} | {label} | {cascades} | {' | '.join(cells)} | {parts} |"
                    )
                    print(table[-1], flush=True)
        print(f"{name}: {report.measured} candidates, kernels alone gain {report.gain:.3f}")
    lines = [
        f"DDRNet-23-slim at 256 x 512, {SCHEME}, simulated; at most {args.trials} candidates per "
        "machine. Tiles of kernels in a cascade are the planner's.",
        "",
        *table,
    ]
    if args.record:
        record("Tiles and cascades on NPUs", lines, {"npu": f"{', '.join(args.npu)}, simulated"})


if __name__ == "__main__":
    main()

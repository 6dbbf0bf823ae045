"""Default tiles, cascades and tuned networks on NPUs: simulated cycles of DDRNet-23-slim.

    python -m benchmarks.npu_tuning --record
    python -m benchmarks.npu_tuning --npu npu-micro --network-trials 3000
    python -m benchmarks.npu_tuning --npu npu-mobile --shape 1024 2048

With ``--work-dir`` records are kept, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import resq_tvm as resq
from benchmarks.record import record
from resq_tvm.compiler import lower_network
from resq_tvm.npu.arranged import finder
from resq_tvm.passes.npu.lowering import LoweredNpu
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.targets.npu.description import Npu
from resq_tvm.targets.npu.timing import simulate
from resq_tvm.targets.preset import Target, get_target
from resq_tvm.tuning import tune

SHAPE = (256, 512)
SCHEME = "W8A8->W4A4"
PERIOD = 3


def network(height: int, width: int) -> QuantizedNetwork:
    """Return the network; which numbers it is calibrated with decides about no cycle."""
    rng = np.random.default_rng(0)
    shape = (1, 3, height, width)
    frames = [rng.random(shape).astype(np.float32) for _ in range(PERIOD)]
    net = resq.load("zoo:ddrnet23_slim", input_shape=shape)
    return resq.calibrate(net, [frames], SCHEME, period=PERIOD, samples=2, candidates=3)


def lowered(
    qnet: QuantizedNetwork, target: Target, cascades: str, records: Path | None = None
) -> LoweredNpu:
    """Return the network as `resq.compile` lowers it."""
    find = None if records is None else finder(target, records)
    found, _ = lower_network(qnet, target, cascades=cascades, find=find)
    assert isinstance(found, LoweredNpu)
    return found


def bound(npu: Npu, network: LoweredNpu, name: str) -> tuple[int, str]:
    """Return the cycles that a program takes at least, and what takes them.

    That is the busiest of the matrix unit, the vector unit, and the DRAM, which moves the frame,
    the weights, the outputs and the state that lies there once.
    """
    program = network.stream.programs[name]
    places = (*program.inputs, *program.outputs, *program.state)
    names = list(network.params)
    used = {names[i] for r in network.kernels.values() if r.program == name for i in r.params}
    moved = sum(p.nbytes for p in places if p.memory == "dram")
    moved += sum(network.params[n].nbytes for n in used)
    busy = simulate(npu, network.stream, name).bounds
    least = {
        "matrix": busy["matrix"],
        "vector": busy["vector"],
        "dram": round(moved / npu.bytes_per_cycle),
    }
    unit = max(least, key=least.__getitem__)
    return least[unit], unit


def rows(
    qnet: QuantizedNetwork, target: Target, folder: Path, kernel_trials: int, network_trials: int
) -> list[str]:
    """Tune the network and return the lines of its table."""
    assert target.npu is not None
    npu = target.npu
    report = tune(
        qnet, target, work_dir=folder, trials=kernel_trials, network_trials=network_trials
    )
    assert report.network is not None
    found = {
        "default tiles, no bands": lowered(qnet, target, "off"),
        "default tiles, bands (compile)": lowered(qnet, target, "auto"),
        "tuned tiles and bands": lowered(qnet, target, "auto", folder),
    }
    cycles = {
        label: {n: simulate(npu, low.stream, n).cycles for n in low.stream.programs}
        for label, low in found.items()
    }
    default, untuned, _ = cycles.values()
    trials = f"{report.network.on_record} / {sum(r.trials for r in report.results)}"
    lines = []
    for label, low in found.items():
        bounds = {n: bound(npu, low, n) for n in low.stream.programs}
        cells = [
            target.name,
            label,
            *(f"{c / 1e6:.3f}" for c in cycles[label].values()),
            _ratios(cycles[label], default),
            _ratios(cycles[label], untuned),
            " / ".join(f"{b / cycles[label][n]:.2f} {unit}" for n, (b, unit) in bounds.items()),
            trials if low is found["tuned tiles and bands"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def _ratios(cycles: Mapping[str, int], of: Mapping[str, int]) -> str:
    return " / ".join(f"{cycles[n] / of[n]:.3f}" for n in cycles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npu", nargs="+", default=["npu-mobile", "npu-uniform", "npu-micro"])
    parser.add_argument("--shape", nargs=2, type=int, default=SHAPE, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--qnet", type=Path, help="the calibrated network, instead of making it")
    parser.add_argument("--kernel-trials", type=int, default=300)
    parser.add_argument("--network-trials", type=int, default=600)
    parser.add_argument("--work-dir", type=Path, help="where records are kept")
    parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
    args = parser.parse_args()
    height, width = args.shape
    qnet = network(height, width) if args.qnet is None else QuantizedNetwork.load(args.qnet)
    table = [
        "| machine | decided | keyframe, Mcycles | residual, Mcycles | of default tiles, no bands "
        "| of compile's default | bound / cycles | trials |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in args.npu:
        with TemporaryDirectory(prefix="resq-") as folder:
            place = Path(folder) if args.work_dir is None else args.work_dir
            target = get_target(name)
            table += rows(qnet, target, place, args.kernel_trials, args.network_trials)
    lines = [
        f"DDRNet-23-slim at {height} x {width}, {SCHEME}, simulated; keyframe / residual. Without "
        "bands every kernel runs whole before the next one; compile's default lets kernels take "
        "turns band by band of rows where the cycle model finds that faster. Tuned: tiles, bands "
        "and the state that stays on the chip, by cycles of the whole programs. Trials: programs "
        "that were simulated / candidates of single kernels that were measured beforehand. The "
        "bound is the busiest of the matrix unit, the vector unit and the DRAM bus, if the frame, "
        "outputs, weights and what is in DRAM of the state pass it once.",
        "",
        *table,
    ]
    if args.record:
        title = "Tiles and bands on NPUs"
        if tuple(args.shape) != SHAPE:
            title += f", {height} x {width}"
        record(title, lines, {"npu": f"{', '.join(args.npu)}, simulated"})


if __name__ == "__main__":
    main()

"""8-bit layers on an NPU beside an independent estimator, Arm's Vela, and beside a formula.

    python -m benchmarks.npu_vela --record
    python -m benchmarks.npu_vela --network hrnet_w32 --vela /another/environment/bin/vela

``pip install .[bench]`` brings Vela (ethos-u-vela, Apache-2.0). It compiles every distinct
convolution of a network as an int8 TFLite network of its own (`benchmarks/npu_tflite.py`) for an
Ethos-U65-512 and estimates its cycles. ``benchmarks/npu_ethos.json`` describes a machine of that
size for our simulator, which times the whole network. The formula is that of a systolic array of
H × W products which holds its weights, ``⌈K/H⌉·⌈N/W⌉·(M + 2H + W − 2)`` for M pixels, N outputs and
sums of K terms.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import resq_tvm as resq
from benchmarks.npu_tflite import NAME, Layer, network_of
from benchmarks.record import record
from resq_tvm.files import atomic_file
from resq_tvm.npu.report import simulate
from resq_tvm.passes.graph import Graph, op_name, shape_of
from resq_tvm.targets.npu.description import Npu, read_npu
from resq_tvm.zoo.initialize import smooth_images

MACHINE = Path(__file__).resolve().parent / "npu_ethos.json"
ACCELERATOR = "ethos-u65-512"
SYSTEM = "Ethos_U65_Client_Server"
MEMORY = "Dedicated_Sram_512KB"
SHAPES = {"ddrnet23_slim": (1, 3, 256, 512), "hrnet_w32": (1, 3, 256, 192)}
TOLD = 6  # disagreements

WHY = (
    "Why they differ: a layer's time is what it makes the frame longer, so that ours is less where "
    "a layer works while the DMA still stores what came before (down to 0), or where its weights "
    "were loaded meanwhile; Vela's layer is alone, and its array decodes weights at a fixed rate, "
    "which is most of the time on planes of few pixels. Where a shortcut is added, our kernel does "
    "that, too, on float32 sums that come from DRAM and go there, while Vela's layer writes codes, "
    "which another operation adds. Large planes of a network compete for SRAM and bus. Our array "
    "takes 4 neighbours of a row, Ethos 2 × 2 pixels, which fit planes 6 pixels wide without rest. "
    "Vela charges reads of three channels per pixel whole bursts; our frames are float32, and a "
    "kernel of its own quantizes them. Vela counts the way between its SRAM and its array (16 "
    "bytes per cycle) as a bound of its own."
)

# What Vela calls the things that bound a layer, and we.
_PARTS = {"matrix": "NPU", "sram": "SRAM AC", "dram": "DRAM AC"}


@dataclass(frozen=True)
class Estimate:
    """Cycles of a layer by one model.

    Attributes
    ----------
    cycles : float
        Altogether.
    parts : dict of str to float
        Cycles if one thing alone counted: ``"matrix"`` (at Vela with writing results), ``"dram"``,
        ….
    """

    cycles: float
    parts: dict[str, float]

    @property
    def bound(self) -> str:
        """Name of the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


@dataclass(frozen=True)
class Row:
    """A distinct convolution of the network with everybody's cycles.

    ``names`` are the layers that are alike; ours is their mean, in their network. Vela's layer is
    alone in its own.
    """

    layer: Layer
    names: tuple[str, ...]
    ours: Estimate
    vela: Estimate
    systolic: int

    @property
    def ratio(self) -> float:
        """Our cycles over Vela's; a layer that hides behind those before it counts one."""
        return max(self.ours.cycles, 1.0) / self.vela.cycles


def layers_of(network: Any) -> dict[Layer, list[str]]:
    """Return the distinct convolutions of a network and the names of those that are alike."""
    found: dict[Layer, list[str]] = {}
    layers = Graph.of(network.module["main"]).layers()
    for number, (var, call) in enumerate(layers):
        if op_name(call) != "relax.nn.conv2d":
            raise SystemExit(f"layer {var.name} is a {op_name(call)}; choose another network")
        _, h, w, inputs = shape_of(call.args[0])
        outputs, taps_y, taps_x, per_group = shape_of(call.args[1])
        groups = int(call.attrs.groups)
        own = groups > 1
        if own and (per_group != 1 or groups != outputs):
            raise SystemExit(f"layer {var.name} has groups; choose another network")
        stride, dilation = (
            (int(pair[0]), int(pair[1])) for pair in (call.attrs.strides, call.attrs.dilation)
        )
        layer = Layer(
            h, w, inputs, outputs, (taps_y, taps_x), stride, dilation, own,
            reads_frame=number == 0, writes_result=number == len(layers) - 1,
        )  # fmt: skip
        found.setdefault(layer, []).append(var.name)
    return found


def systolic_cycles(layer: Layer, npu: Npu) -> int:
    """Return the cycles of an array that holds weights: rows take terms, columns take outputs.

    A depthwise layer is one matrix product per channel, of one column.
    """
    rows, columns = npu.matrix.pixels * npu.matrix.depth, npu.matrix.outputs
    per_pass = layer.pixels + 2 * rows + columns - 2
    passes = math.ceil(layer.terms / rows)
    outputs = layer.outputs if layer.depthwise else math.ceil(layer.outputs / columns)
    return passes * outputs * per_pass


def estimate_vela(layer: Layer, vela: str, folder: Path) -> Estimate:
    """Run Vela on one layer.

    Raises
    ------
    SystemExit
        If it fails, or leaves the layer to another processor.
    """
    source = folder / f"{NAME}.tflite"
    source.write_bytes(network_of(layer))
    done = subprocess.run(
        [vela, str(source), "--output-dir", str(folder), "--accelerator-config", ACCELERATOR,
         "--config", "Arm/vela.ini", "--system-config", SYSTEM, "--memory-mode", MEMORY,
         "--verbose-performance"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{vela} fails at {layer}: {(done.stderr or done.stdout).strip()[-300:]}")
    with (folder / f"{NAME}_per-layer.csv").open(newline="") as file:
        # The convolution and its activation: one row each.
        rows = [row for row in csv.DictReader(file) if row["Name"] == NAME]
    if not rows or any(row["Target"] != "NPU" for row in rows):
        raise SystemExit(f"{vela} does not run {layer} on its NPU")

    def total(column: str) -> float:
        return sum(float(row[column]) for row in rows)

    return Estimate(total("Op Cycles"), {ours: total(its) for ours, its in _PARTS.items()})


def estimate_ours(network: Any, machine: Path) -> dict[str, Estimate]:
    """Compile a network for the machine and simulate it; return its layers' cycles.

    Cycles do not depend on what is in frames and weights, so that two made-up frames calibrate.
    """
    shape = network.inputs[0].shape
    frames = [frame[None] for frame in smooth_images(2, shape[2], shape[3], seed=1).numpy()]
    quantized = resq.calibrate(network, [frames], "W8A8", period=2)
    with tempfile.TemporaryDirectory(prefix="resq-") as name:
        path = Path(name) / "net.resq"
        # Vela's layers run one after the other, too.
        artifact = resq.compile(quantized, str(machine), output=path, cascades="off")
        report = simulate(artifact.path)
    found: dict[str, Estimate] = {}
    for kernel in report.kernels:
        if kernel["layer"] is None:
            continue
        # A layer whose output is larger than one kernel takes has several.
        before = found.get(kernel["layer"], Estimate(0, dict.fromkeys(kernel["bounds"], 0.0)))
        parts = {part: before.parts[part] + n for part, n in kernel["bounds"].items()}
        found[kernel["layer"]] = Estimate(before.cycles + kernel["cycles"], parts)
    return found


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of several layers' cycles."""

    def of(values: Iterable[float]) -> float:
        return sum(values) / len(estimates)

    parts = {name: of(e.parts[name] for e in estimates) for name in estimates[0].parts}
    return Estimate(of(e.cycles for e in estimates), parts)


def compare(network: Any, vela: str, machine: Path) -> list[Row]:
    """Return every distinct convolution with everybody's cycles."""
    npu = read_npu(machine)
    ours = estimate_ours(network, machine)
    rows = []
    with tempfile.TemporaryDirectory(prefix="resq-") as folder:
        for layer, names in layers_of(network).items():
            rows.append(
                Row(
                    layer,
                    tuple(names),
                    mean([ours[name] for name in names]),
                    estimate_vela(layer, vela, Path(folder)),
                    systolic_cycles(layer, npu),
                )
            )
    return rows


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's coefficient."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def page(network: str, rows: Sequence[Row], npu: Npu) -> list[str]:
    """Return the section of docs/figures.md."""
    models = {
        "ours": [row.ours.cycles for row in rows],
        "our matrix unit": [row.ours.parts["matrix"] for row in rows],
        "Vela": [row.vela.cycles for row in rows],
        "Vela's NPU": [row.vela.parts["matrix"] for row in rows],
        "the formula": [float(row.systolic) for row in rows],
    }
    pairs = (
        ("ours", "Vela"), ("our matrix unit", "Vela's NPU"), ("ours", "the formula"),
        ("Vela", "the formula"),
    )  # fmt: skip
    times = [len(row.names) for row in rows]
    sums = {
        name: sum(n * cycles for n, cycles in zip(times, found, strict=True))
        for name, found in models.items()
    }
    parts = sorted(row.ours.parts["matrix"] / row.vela.parts["matrix"] for row in rows)
    apart = sorted(rows, key=lambda row: abs(math.log(row.ratio)), reverse=True)[:TOLD]
    return [
        f"The distinct convolutions of {network}, int8, in cycles: ours simulated on "
        f"{npu.name} ({npu.macs_per_cycle} products per cycle), in the network; Vela's estimates "
        f"for {ACCELERATOR} ({SYSTEM}, {MEMORY}), every layer by itself; the systolic formula for "
        "an array of as many products. Of a model's parts (the units and memories by themselves) "
        "the largest is named.",
        "",
        "| layer | times | MACs / products per cycle | ours, simulated | bound by "
        "| our matrix unit | Vela | bound by | Vela's NPU | formula | ours / Vela |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_cells(row, npu) for row in rows),
        "",
        "Same order of layers, by Spearman's rank correlation: "
        + "; ".join(f"{a} and {b} {rank_correlation(models[a], models[b]):.3f}" for a, b in pairs)
        + ".",
        "",
        "All convolutions of a frame, millions of cycles: "
        + ", ".join(f"{name} {total / 1e6:.2f}" for name, total in sums.items())
        + ".",
        "",
        f"Our matrix unit over Vela's NPU: {median(parts):.2f} at the median, {parts[0]:.2f} to "
        f"{parts[-1]:.2f}. Ours over Vela: {median(row.ratio for row in rows):.2f} at the median.",
        "",
        "Farthest apart: "
        + "; ".join(
            f"{row.layer} ({row.ratio:.2f}: ours is bound by {row.ours.bound}, Vela's by "
            f"{row.vela.bound})"
            for row in apart
        )
        + ".",
        "",
        WHY,
    ]


def _cells(row: Row, npu: Npu) -> str:
    ideal = row.layer.macs / npu.macs_per_cycle
    cells = [
        str(row.layer), str(len(row.names)), f"{ideal:.0f}",
        f"{row.ours.cycles:.0f}", row.ours.bound, f"{row.ours.parts['matrix']:.0f}",
        f"{row.vela.cycles:.0f}", row.vela.bound, f"{row.vela.parts['matrix']:.0f}",
        str(row.systolic), f"{row.ratio:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def version_of(vela: str) -> str:
    """Return the estimator's version.

    Raises
    ------
    SystemExit
        If it cannot be run.
    """
    try:
        done = subprocess.run([vela, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            f"{vela!r} cannot be run; install ethos-u-vela (pip install .[bench]) or name it with "
            "--vela"
        ) from None
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="ddrnet23_slim", choices=list(SHAPES))
    parser.add_argument("--vela", default=str(Path(sys.executable).parent / "vela"))
    parser.add_argument("--machine", type=Path, default=MACHINE, help="description of our NPU")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
    args = parser.parse_args()
    version = version_of(args.vela)
    npu = read_npu(args.machine)
    network = resq.load(f"zoo:{args.network}", input_shape=SHAPES[args.network])
    rows = compare(network, args.vela, args.machine)
    lines = page(args.network, rows, npu)
    print("\n".join(lines))
    if args.json:
        with atomic_file(args.json) as staging:
            staging.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if args.record:
        device = {"npu": f"{npu.name}, simulated", "vela": version}
        record(f"8-bit layers beside Vela, {args.network}", lines, device)


if __name__ == "__main__":
    main()

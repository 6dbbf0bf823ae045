"""Whole networks on an NPU: simulated milliseconds by bits, and of residual quantization.

    python -m benchmarks.npu_networks --record
    python -m benchmarks.npu_networks --network hrnet --npu npu-micro --schemes W8A8 W4A4

The first and the last layer keep 8 bits, on residual frames, too. Cycles depend neither on weights
nor on frames, so that one or two made-up frames and a few candidate ranges calibrate each network
at its full size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import resq_tvm as resq
from benchmarks.record import record
from resq_tvm.bops import layer_macs
from resq_tvm.files import atomic_file
from resq_tvm.npu.report import NpuCount, NpuReport, simulate
from resq_tvm.passes.graph import Graph, shape_of
from resq_tvm.scheme import Scheme
from resq_tvm.targets.npu.description import Npu
from resq_tvm.targets.preset import get_target
from resq_tvm.zoo.initialize import smooth_images

SCHEMES = ("W8A8", "W4A8", "W8A4", "W4A4")
RESIDUAL = "W8A8->W4A4"
PERIOD = 3
OUTER = "W8A8"  # of the first and last layer, and of the differences that they take
CANDIDATES = 4
UNITS = ("matrix", "vector", "dram", "issue")


@dataclass(frozen=True)
class Network:
    """A network of the zoo at its published size; milliseconds of arXiv:2308.09511 by scheme."""

    model: str
    shape: tuple[int, int, int, int]
    published: dict[str, float]


NETWORKS = {
    "ddrnet": Network(
        "zoo:ddrnet23_slim", (1, 3, 1024, 2048),
        {"W8A8": 3.52, "W4A8": 2.76, "W8A4": 2.43, "W4A4": 1.96},
    ),
    "hrnet": Network("zoo:hrnet_w32", (1, 3, 256, 192), {}),
}  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """A program, simulated, in milliseconds.

    Attributes
    ----------
    ms, ms_without_state : float
        The latter if residual state moved in no time.
    units : dict of str to float
        What the program takes if one unit alone counts.
    bound : dict of str to float
        Share of the time that is spent in kernels that each unit bounds.
    host_ms : float
        Waiting for what the NPU cannot do.
    megabytes, state_megabytes : float
        To and from DRAM; those of them that are residual state.
    """

    ms: float
    ms_without_state: float
    units: dict[str, float]
    bound: dict[str, float]
    host_ms: float
    megabytes: float
    state_megabytes: float

    @classmethod
    def of(cls, count: NpuCount, npu: Npu) -> Figures:
        """Read them off a program's count."""
        told, rows = count.summary(), count.kernel_rows()
        per_ms = npu.clock_hz / 1e3
        spent = dict.fromkeys(UNITS, 0.0)
        for row in rows:
            spent[row["bound_by"]] += row["cycles"]
        return cls(
            count.ms,
            count.ms_without_state,
            {unit: told["bounds"][unit] / per_ms for unit in UNITS},
            {unit: cycles / count.cycles for unit, cycles in spent.items()},
            told["host_cycles"] / per_ms,
            (told["dram_read"] + told["dram_written"]) / 1e6,
            (told["state_read"] + told["state_written"]) / 1e6,
        )


@dataclass(frozen=True)
class Result:
    """A network under a scheme.

    Attributes
    ----------
    network, scheme : str
    published : float or None
        Milliseconds.
    roofline : float
        Milliseconds of every layer's products or bytes, whichever take longer, in sum.
    keyframe : Figures
    residual : Figures or None
    bops : dict of str to float
        ``"keyframe"``, ``"residual"``, ``"amortized"``.
    """

    network: str
    scheme: str
    published: float | None
    roofline: float
    keyframe: Figures
    residual: Figures | None
    bops: dict[str, float]

    def amortized(self, of_state: bool = True) -> float:
        """Return simulated milliseconds per frame over a period, with or without state traffic."""
        if self.residual is None:
            return self.keyframe.ms
        programs = (self.keyframe, *[self.residual] * (PERIOD - 1))
        return sum(p.ms if of_state else p.ms_without_state for p in programs) / PERIOD


def roofline(module: Any, npu: Npu) -> float:
    """Return the milliseconds that a plain roofline gives a network's frame.

    Every layer takes its products at the machine's rate for its bits, or its bytes (weights, input
    and output, each once, at their bits) at the bandwidth; nothing else takes any time.

    Parameters
    ----------
    module : IRModule
        Canonical and annotated.
    npu : Npu
    """
    main = module["main"]
    precisions = json.loads(str(main.attrs["resq.layers"]))
    cycles = 0.0
    for var, call in Graph.of(main).layers():
        bits = Scheme.parse(precisions[var.name]).key
        _, rate = npu.precision(bits.weight, bits.activation)
        weights, moved = (
            prod(shape_of(call.args[1])), prod(shape_of(call.args[0])) + prod(shape_of(var))
        )  # fmt: skip
        nbytes = (
            weights * npu.storage_bits(bits.weight) + moved * npu.storage_bits(bits.activation)
        ) / 8
        products = layer_macs(call) / (npu.macs_per_cycle * rate)
        cycles += max(products, nbytes / npu.bytes_per_cycle)
    return cycles / npu.clock_hz * 1e3


def measure(name: str, scheme: str, target: str) -> Result:
    """Compile a network for an NPU and simulate it."""
    network = NETWORKS[name]
    loaded = resq.load(network.model, input_shape=network.shape)
    residual = Scheme.parse(scheme).residual is not None
    count = 2 if residual else 1
    frames = [f[None] for f in smooth_images(count, *network.shape[2:], seed=1).numpy()]
    quantized = resq.calibrate(
        loaded, [frames], scheme, period=PERIOD if residual else 1,
        first_last=f"{OUTER}->{OUTER}" if residual else OUTER,
        samples=count, candidates=CANDIDATES,
    )  # fmt: skip
    preset = get_target(target)
    assert preset.npu is not None  # checked in `main`
    with tempfile.TemporaryDirectory(prefix="resq-") as folder:
        artifact = resq.compile(quantized, preset, output=Path(folder) / f"{name}.resq")
        report = simulate(artifact.path)
    return Result(
        name,
        scheme,
        network.published.get(scheme),
        roofline(quantized.module, preset.npu),
        Figures.of(report.keyframe, preset.npu),
        None if report.residual is None else Figures.of(report.residual, preset.npu),
        _bops(report),
    )


def _bops(report: NpuReport) -> dict[str, float]:
    told = report.to_dict()
    return {kind: told[f"bops_{kind}"] for kind in ("keyframe", "residual", "amortized")}


def table(results: Sequence[Result], npu: Npu) -> list[str]:
    """Return the section of docs/figures.md."""
    lone = [r for r in results if r.residual is None]
    pairs = [r for r in results if r.residual is not None]
    sizes = ", ".join(f"{n} {'x'.join(map(str, NETWORKS[n].shape[2:]))}" for n in _names(results))
    lines = [
        f"All times are simulated on {npu.name}: {sizes}; first and last layers at {OUTER}. The "
        f"machine: {npu.about}. The roofline takes every layer's products or bytes, whichever take "
        "longer, and nothing else. Units: what a frame takes if one of them alone counts.",
    ]
    if lone:
        lines += [
            "",
            "| network | scheme | simulated ms | published | difference | roofline "
            "| matrix | vector | DRAM | commands | host | DRAM MB |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *(_frame_line(result) for result in lone),
        ]
    if pairs:
        lines += [
            "",
            f"Residual quantization at T = {PERIOD}; in brackets as a part of frame {OUTER}. "
            "The peak of a period is its keyframe.",
            "",
            "| network | scheme | keyframe, simulated ms | residual | mean | of BOPs "
            "| mean without state traffic | state, MB per residual |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *(_residual_line(result, lone) for result in pairs),
            "",
            "Where the time goes: share of it in kernels that each unit bounds.",
            "",
            "| network | scheme | program | matrix | vector | DRAM | commands |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(line for result in pairs for line in _bound_lines(result)),
        ]
    return lines


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.network for result in results))


def _frame_line(result: Result) -> str:
    figures = result.keyframe
    published, difference = "", ""
    if result.published is not None:
        published = f"{result.published:.2f}"
        difference = f"{result.keyframe.ms / result.published - 1:+.1%}"
    units = " | ".join(f"{figures.units[unit]:.2f}" for unit in UNITS)
    return (
        f"| {result.network} | {result.scheme} | {figures.ms:.2f} | {published} | {difference} "
        f"| {result.roofline:.2f} | {units} | {figures.host_ms:.2f} | {figures.megabytes:.1f} |"
    )


def _residual_line(result: Result, lone: Sequence[Result]) -> str:
    assert result.residual is not None
    base = next((r for r in lone if (r.network, r.scheme) == (result.network, OUTER)), None)

    def told(ms: float) -> str:
        return f"{ms:.2f}" if base is None else f"{ms:.2f} ({ms / base.keyframe.ms:.2f})"

    bops = f"{result.bops['amortized'] / result.bops['keyframe']:.2f}"
    return (
        f"| {result.network} | {result.scheme} | {told(result.keyframe.ms)} "
        f"| {told(result.residual.ms)} | {told(result.amortized())} | {bops} "
        f"| {told(result.amortized(of_state=False))} | {result.residual.state_megabytes:.1f} |"
    )


def _bound_lines(result: Result) -> list[str]:
    programs = {"keyframe": result.keyframe, "residual": result.residual}
    return [
        f"| {result.network} | {result.scheme} | {name} | "
        + " | ".join(f"{figures.bound[unit]:.0%}" for unit in UNITS)
        + " |"
        for name, figures in programs.items()
        if figures is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--npu", default="npu-mobile", help="an NPU's name or .json file")
    parser.add_argument("--schemes", nargs="+", default=[*SCHEMES, RESIDUAL])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
    args = parser.parse_args()
    npu = get_target(args.npu).npu
    if npu is None:
        raise SystemExit(f"{args.npu} is no NPU; name one or its .json file")
    results = []
    for name in args.network:
        for scheme in args.schemes:
            start = time.monotonic()
            results.append(measure(name, scheme, args.npu))
            print(
                f"{name} {scheme}: simulated {results[-1].amortized():.2f} ms per frame, "
                f"compiled and simulated in {time.monotonic() - start:.0f} s",
                flush=True,
            )
    lines = table(results, npu)
    print("\n".join(lines))
    if args.json:
        with atomic_file(args.json) as staging:
            staging.write_text(json.dumps([asdict(r) for r in results], indent=1))
    if args.record:
        record(f"Networks on {npu.name}", lines, {"npu": f"{npu.name}, simulated"})


if __name__ == "__main__":
    main()

"""Whole networks on emulated ARM boards: do they compute what they compute here, and how fast.

    python -m benchmarks.arm_networks --network blazepose ddrnet --core cortex-a53 cortex-a72

Each network is compiled for this machine and for every core. The C++ runtime plays real frames on
the emulated board; its outputs are compared with this machine's, number by number, and its cycles
and milliseconds are simulated. ``--json`` writes rows that `benchmarks/arm_peers.py` joins to those
of other engines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import resq_tvm as resq
from benchmarks.arm_peers import Row, float_output
from benchmarks.networks import SOURCES, Workload, workload
from benchmarks.record import record
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.simulate import SimulatedReport, simulate
from resq_tvm.targets.emulated.board import EMULATOR
from resq_tvm.targets.emulated.cores import MODEL_VERSION
from resq_tvm.targets.preset import get_target

CORES = ("cortex-a53", "cortex-a72", "cortex-a76")
PERIOD = 4

Outputs = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Agreement:
    """How the outputs of a frame differ between a board and this machine.

    Attributes
    ----------
    kind : str
        ``"keyframe"`` or ``"residual"``.
    numbers, differing : int
        Float32 outputs, and those that are not equal to the last bit.
    largest : float
        Largest difference, over the largest magnitude of its output.
    error : float
        Root mean square difference of the first output from the float network's, over the root
        mean square of that.
    error_here : float
        The same of this machine's output.
    """

    kind: str
    numbers: int
    differing: int
    largest: float
    error: float
    error_here: float


@dataclass(frozen=True)
class Result:
    """A network on a core; everything but the outputs is simulated."""

    network: str
    scheme: str
    report: SimulatedReport
    agreement: list[Agreement]

    def rows(self) -> list[Row]:
        """Return what `benchmarks/arm_peers.py` joins: both programs, and a period's mean."""
        keyframe, residual = self.report.keyframe, self.report.residual
        assert residual is not None
        errors = [a.error for a in self.agreement]
        mean = (keyframe.instructions + (PERIOD - 1) * residual.instructions) / PERIOD
        figures = (
            ("keyframe", keyframe.instructions, keyframe.cycles, keyframe.ms, errors[0]),
            ("residual", residual.instructions, residual.cycles, residual.ms, errors[-1]),
            (f"mean, T = {PERIOD}", mean, self.report.amortized_cycles, self.report.amortized_ms,
             errors[-1]),
        )  # fmt: skip
        return [
            Row(self.network, self.report.core.name, f"ours {self.scheme}, {name}",
                round(instructions), round(cycles), ms, error, peer=False)
            for name, instructions, cycles, ms, error in figures
        ]  # fmt: skip

    def speed_line(self) -> str:
        """Return a row of the table of simulated times."""
        keyframe, residual = self.report.keyframe, self.report.residual
        assert residual is not None
        bops = self.report.to_dict()
        return (
            f"| {self.network} | {self.report.core.name} | {keyframe.ms:.1f} | {residual.ms:.1f} | "
            f"{residual.cycles / keyframe.cycles:.2f} | "
            f"{bops['bops_residual'] / bops['bops_keyframe']:.2f} | "
            f"{self.report.amortized_ms:.1f} | "
            f"{self.report.amortized_cycles / keyframe.cycles:.2f} | "
            f"{bops['bops_amortized'] / bops['bops_keyframe']:.2f} | "
            f"{bops['macs'] / keyframe.cycles:.2f} | {bops['macs'] / residual.cycles:.2f} |"
        )

    def cycle_lines(self) -> list[str]:
        """Return rows of the table of where cycles go: those of each kind of layer, and others."""
        lines = []
        for program in ("keyframe", "residual"):
            count = getattr(self.report, program)
            layers = self.report.to_dict()["layers"]
            cells = []
            for op in ("conv2d", "depthwise"):
                alike = [layer for layer in layers if layer["op"] == op]
                cycles = sum(layer[f"{program}_cycles"] for layer in alike)
                macs = sum(layer["macs"] for layer in alike)
                cells += [cycles, macs / cycles if cycles else 0.0]
            kernels = sum(count.kernels.values())
            cells += [kernels - cells[0] - cells[2], count.cycles - kernels]
            lines.append(
                f"| {self.network} | {self.report.core.name} | {program} | {cells[0] / 1e6:.1f} "
                f"| {cells[1]:.2f} | {cells[2] / 1e6:.1f} | {cells[3]:.2f} | {cells[4] / 1e6:.1f} "
                f"| {cells[5] / 1e6:.1f} | {count.bound / count.cycles:.2f} |"
            )
        return lines

    def agreement_lines(self) -> list[str]:
        """Return rows of the table of outputs."""
        return [
            f"| {self.network} | {self.report.core.name} | {a.kind} | {a.numbers} | {a.differing} "
            f"| {a.largest:.1e} | {a.error_here:.4f} | {a.error:.4f} |"
            for a in self.agreement
        ]


def compare(kind: str, here: Outputs, there: Outputs, expected: NDArray[np.float32]) -> Agreement:
    """Compare the outputs of one frame."""

    def error(outputs: Outputs) -> float:
        difference = outputs[0].reshape(expected.shape) - expected
        return float(np.sqrt(np.mean(difference**2) / np.mean(expected**2)))

    largest = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(here, there, strict=True)]
    return Agreement(
        kind,
        sum(a.size for a in here),
        sum(int(np.count_nonzero(a != b)) for a, b in zip(here, there, strict=True)),
        float(max(largest)),
        error(there),
        error(here),
    )


def outputs_here(artifact: resq.Artifact, frames: Sequence[NDArray[np.float32]]) -> list[Outputs]:
    """Return this machine's outputs of a keyframe and the residual frames behind it."""
    policy = KeyframePolicy(guard=False)
    session = resq.Session(artifact, period=len(frames), threads=1, keyframes=policy)
    found = [session(frame) for frame in frames]
    return [f if isinstance(f, tuple) else (f,) for f in found]


def measure(load: Workload, args: argparse.Namespace) -> list[Result]:
    """Compile a network for this machine and every core, and run it on all of them."""
    net = resq.load(load.model, input_shape=load.input_shape)
    calibration = load.frames[: args.calibration]
    qnet = resq.calibrate(net, [calibration], args.scheme, period=PERIOD)
    frames = load.frames[: 1 + args.residuals]
    expected = [float_output(load, frame) for frame in frames]
    results = []
    with tempfile.TemporaryDirectory(prefix="resq-") as name:
        folder = Path(name)
        here = outputs_here(resq.compile(qnet, output=folder / "here.resq"), frames)
        for core in args.core:
            artifact = resq.compile(
                qnet, core, output=folder / f"{core}.resq", database=args.database
            )
            start = time.monotonic()
            report = simulate(artifact.path, frames=frames, period=PERIOD, residuals=args.residuals)
            took = time.monotonic() - start
            kinds = ["keyframe", *["residual"] * args.residuals]
            agreement = [
                compare(*each) for each in zip(kinds, here, report.outputs, expected, strict=True)
            ]
            result = Result(load.name, args.scheme, report, agreement)
            results.append(result)
            print(f"{load.name} on {core}: {len(frames)} frames emulated in {took:.0f} s")
            lines = [result.speed_line(), *result.cycle_lines(), *result.agreement_lines()]
            print("\n".join(lines), flush=True)
    return results


def table(results: Sequence[Result], residuals: int) -> list[str]:
    """Return the section of docs/figures.md."""
    return [
        "All times and cycles are simulated: the C++ runtime with one thread on an emulated board, "
        f"one keyframe and {residuals} residual frame(s) of the network's clip, caches included. "
        f"Means are over a period of {PERIOD}; ratios are to the keyframe.",
        "",
        "| network | core | keyframe, simulated ms | residual, simulated ms | ratio | of BOPs "
        "| mean, simulated ms | ratio | of BOPs | keyframe, MAC per simulated cycle "
        "| residual, MAC per simulated cycle |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(result.speed_line() for result in results),
        "",
        "Where the cycles go, in simulated millions; the last column is what the core's ports and "
        "width would allow, over what it took.",
        "",
        "| network | core | program | convolutions | MAC per cycle | depthwise | MAC per cycle "
        "| other kernels | outside kernels | bound / cycles |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line for result in results for line in result.cycle_lines()),
        "",
        "Their outputs beside those of the artifact for the machine above on the same frames: "
        "numbers that are not equal to the last bit, the largest difference over the largest "
        "output, and the error of the first output against the float network, here and there.",
        "",
        "| network | core | frame | outputs | differing | largest difference | error here "
        "| error there |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line for result in results for line in result.agreement_lines()),
    ]


def device() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    told = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True, check=True)
    return {
        "emulated": "boards, simulated",
        "model": f"emulator-{MODEL_VERSION}",
        "qemu": told.stdout.split()[2],
        "outputs beside": get_target().name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network", nargs="+", default=["blazepose", "ddrnet"], choices=list(SOURCES)
    )
    parser.add_argument("--core", nargs="+", default=list(CORES))
    parser.add_argument("--scheme", default="W8A8->W4A4")
    parser.add_argument("--calibration", type=int, default=8)
    parser.add_argument("--residuals", type=int, default=1, help="residual frames to run")
    parser.add_argument("--database", default="shipped", help="tuning records, or 'none'")
    parser.add_argument("--json", type=Path, help="write rows for arm_peers --join here")
    parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
    args = parser.parse_args()
    if not 1 <= args.residuals < PERIOD:
        raise SystemExit(f"residuals {args.residuals}: use 1 to {PERIOD - 1}")
    results = [
        result
        for name in args.network
        for result in measure(workload(name, max(args.calibration, 1 + args.residuals)), args)
    ]
    lines = table(results, args.residuals)
    print("\n".join(lines))
    if args.json:
        rows = [asdict(row) for result in results for row in result.rows()]
        args.json.write_text(json.dumps(rows, indent=2))
    if args.record:
        record(f"Networks on emulated boards, {args.scheme}", lines, device())


if __name__ == "__main__":
    main()

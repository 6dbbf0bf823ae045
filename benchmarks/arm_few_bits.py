r"""Simulated cycles of residual kernels whose pixels have few bits, beside the usual scheme.

    python -m benchmarks.arm_few_bits QNET --core cortex-a53 --record

The residual convolutions of a calibrated network (``QNET``, of a scheme such as W8A8->W8A{0,4,8}),
each shape once, as the compiler emits them for the core: with the most bits at all pixels, with few
bits at all pixels, and the latter again with the usual scheme alone.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from resq_tvm.compiler import lower_network
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.schedules import meaning
from resq_tvm.schedules.context import input_maps, output_maps
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.spec import Conv, FusedKernel
from resq_tvm.schedules.tuning.build import ENTRY, machine_code, program_of
from resq_tvm.schedules.tuning.tasks import describe, macs
from resq_tvm.targets.emulated.board import EmulatedBoard
from resq_tvm.targets.emulated.cores import MODEL_VERSION
from resq_tvm.targets.emulated.kernels import MEASURED, run_kernel
from resq_tvm.targets.preset import Target, get_target
from resq_tvm.targets.toolchain import export_options

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("qnet", help="folder of a calibrated network")
parser.add_argument("--core", default="cortex-a53")
parser.add_argument("--most", type=int, default=60_000_000, help="MACs of a kernel at most")
parser.add_argument("--record", action="store_true", help="write into docs/figures.md")


def given(kernel: FusedKernel, bits: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return inputs and maps in which every pixel of the anchor's inputs has so many bits."""
    anchor, sparse = kernel.anchor, kernel.sparse
    assert isinstance(anchor, Conv) and anchor.coarse is not None and sparse is not None
    values: dict[str, Any] = dict(meaning.random_inputs(kernel, rng))
    fine = bits & anchor.coarse.mask
    for name in anchor.inputs:
        if not fine:
            limit = anchor.coarse.limit
            values[name] = np.clip(values[name], -limit, limit) << anchor.coarse.shift
    for seen in input_maps(sparse):
        values[seen.name] = np.full((1, seen.h, seen.w, 1), bits, np.uint8)
    return values


def cycles(kernel: FusedKernel, decision: Decision, target: Target, values: dict[str, Any]) -> int:
    """Return the simulated cycles of one run, all tiles changed."""
    program = program_of(kernel, decision, target)
    zero, sparse = kernel.code.zero_point, kernel.sparse
    assert sparse is not None
    arrays = [meaning.to_physical(s, values[s.name], zero) for s in kernel.inputs]
    arrays += [values[m.name] for m in input_maps(sparse)]
    arrays += [np.zeros(max(1, sparse.thresholds), np.float32), *program.constants]
    kept = [np.zeros(s.shape, s.dtype) for s in (*kernel.outputs, *output_maps(sparse))]
    kept += [np.zeros(kernel.h * kernel.w, np.uint8), np.zeros(sparse.list_size, np.int32)]
    kept += [np.zeros(2 * sparse.counts, np.int32)]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        machine_code(program, target).export_library(str(library), **export_options(target))
        _, execution = run_kernel(EmulatedBoard(target.core), library, ENTRY, arrays, kept)
    return execution.regions[MEASURED].cycles


def main() -> None:
    args = parser.parse_args()
    target, rng = get_target(args.core), np.random.default_rng(0)
    lowered, _ = lower_network(QuantizedNetwork.load(args.qnet), target, frame_program=False)
    shapes = {}
    for entry in lowered.kernels.values():
        if entry.decision.coarse and macs(entry.kernel) <= args.most:
            shapes.setdefault(describe(entry.kernel), entry)
    if not shapes:
        raise SystemExit(f"{args.core} has no scheme of few bits for this network's kernels")
    rows, gains = [], []
    for shape, entry in shapes.items():
        kernel = entry.kernel
        anchor = kernel.anchor
        assert isinstance(anchor, Conv) and anchor.coarse is not None
        few, most = given(kernel, 1, rng), given(kernel, anchor.coarse.mask, rng)
        if anchor.coarse.mask & 1:
            raise SystemExit("one bit stands for few bits here; this pool uses it for the most")
        usual = replace(entry.decision, coarse="")
        spent = [
            cycles(kernel, entry.decision, target, most),
            cycles(kernel, usual, target, few),
            cycles(kernel, entry.decision, target, few),
        ]
        gains.append(spent[1] / spent[2])
        numbers = " | ".join(f"{n / 1e3:.0f}" for n in spent)
        names = f"{entry.decision.method}, {entry.decision.coarse}"
        rows.append(f"| {shape} | {names} | {numbers} | {gains[-1]:.2f} |")
        print(rows[-1], flush=True)
    lines = [
        "All figures are simulated, in thousands of cycles of a whole kernel with all tiles "
        "changed (policy and epilogue included).",
        "",
        "| kernel | schemes | most bits | few bits, usual scheme | few bits | gain |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Gain over {len(gains)} shapes, geometric mean: {np.exp(np.mean(np.log(gains))):.2f}.",
    ]
    print(lines[-1])
    if args.record:
        device = {"emulated": "board, simulated", "pipeline model": MODEL_VERSION}
        record(f"Tiles of few bits: {args.core}", lines, device)


if __name__ == "__main__":
    main()

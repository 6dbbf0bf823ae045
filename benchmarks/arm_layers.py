"""Simulated cycles of DDRNet-23-slim's convolutions per core and bits: writes docs/arm.md.

    python -m benchmarks.arm_layers --json rows.json --record
    python -m benchmarks.arm_layers --cores cortex-a53 --schemes W8A8 W4A4 --layers layer1

``--join`` takes the rows of other cores from an earlier run's ``--json`` (with ``--cores`` and
nothing behind it the page is only written anew); gains are only ever taken within one core's run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import resq_tvm as resq
from benchmarks.arm_layers_page import BASE, EVICTED, SCHEMES, Row, page
from benchmarks.networks import workload
from benchmarks.record import stamp
from resq_tvm.compiler import lower_network
from resq_tvm.files import atomic_file
from resq_tvm.passes.programs import KernelRecord
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.schedules.arm.schemes import SCHEMES as KERNEL_SCHEMES
from resq_tvm.schedules.arm.schemes import proofs
from resq_tvm.schedules.signature import digest, signature
from resq_tvm.schedules.spec import Conv, FusedKernel, TensorSpec
from resq_tvm.schedules.tuning.build import ENTRY, machine_code, program_of
from resq_tvm.schedules.tuning.records import decider
from resq_tvm.schedules.tuning.scenes import Scene
from resq_tvm.schedules.tuning.tasks import describe, macs
from resq_tvm.targets.emulated.board import EMULATOR, EmulatedBoard, Region
from resq_tvm.targets.emulated.cores import CORES, MODEL_VERSION, VARIANTS
from resq_tvm.targets.emulated.kernels import MEASURED, run_kernel
from resq_tvm.targets.preset import Target, get_target
from resq_tvm.targets.toolchain import export_options

PAGE = Path(__file__).resolve().parent.parent / "docs" / "arm.md"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--cores", nargs="*", default=list(CORES), choices=list(CORES | VARIANTS))
parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
parser.add_argument(
    "--caches", nargs="*", default=["cortex-a53", "cortex-a72"], choices=list(CORES),
    help="cores whose kernels are run a second time with caches",
)  # fmt: skip
parser.add_argument("--layers", default="", help="part of a layer's name")
parser.add_argument("--rows", type=int, default=16, help="of output that are run at most")
parser.add_argument("--calibration", type=int, default=4, help="frames")
parser.add_argument("--jobs", type=int, default=2, help="kernels that are emulated at once")
parser.add_argument("--join", nargs="*", type=Path, default=[], help="rows of other cores")
parser.add_argument("--json", type=Path, help="write the rows here")
parser.add_argument("--record", action="store_true", help="write docs/arm.md")

# Emitting and compiling is not known to be safe in several threads.
_COMPILING = threading.Lock()

Records = Mapping[str, KernelRecord]  # by layer


def networks(schemes: Sequence[str], frames: int) -> dict[str, QuantizedNetwork]:
    """Calibrate the network as a frame network of each scheme."""
    load = workload("ddrnet", frames)
    net = resq.load(load.model, input_shape=load.input_shape)
    found = {}
    for scheme in schemes:
        start = time.perf_counter()
        found[scheme] = resq.calibrate(net, [load.frames], scheme, samples=frames)
        print(f"calibrated {scheme} in {time.perf_counter() - start:.0f} s", flush=True)
    return found


def convolutions(qnet: QuantizedNetwork, target: Target) -> dict[str, KernelRecord]:
    """Return the convolution kernels as the compiler would emit them, by layer."""
    lowered, _ = lower_network(qnet, target, decide=decider(target, "shipped"))
    return {
        record.layer: record
        for record in lowered.kernels.values()
        if isinstance(record.kernel.anchor, Conv) and record.layer is not None
    }


def distinct(records: Mapping[str, Records]) -> dict[str, int]:
    """Return the first layer of those that are alike in every scheme, and how many there are.

    Parameters
    ----------
    records : mapping of str to mapping
        Scheme → layer → kernel. Kernels are alike whose code differs in numbers only: also the
        proven windows of narrow sums are the same.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    for layer in next(iter(records.values())):
        key = tuple(_likeness(kernels[layer]) for kernels in records.values())
        groups.setdefault(key, []).append(layer)
    return {layers[0]: len(layers) for layers in groups.values()}


def _likeness(record: KernelRecord) -> tuple[Any, ...]:
    method = record.decision.method
    windows = proofs(record.kernel, method) if method in KERNEL_SCHEMES else None
    flushes = tuple((w.level, w.chunks) for w in windows or ())
    return digest(signature(record.kernel)), record.decision, flushes


def crop(kernel: FusedKernel, rows: int) -> FusedKernel:
    """Return the kernel on its first rows of output; the whole one where that cannot be."""
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    out_stride, in_stride = anchor.out_stride[0], anchor.in_stride[0]
    fewer = (kernel.h - rows) // out_stride * out_stride
    others = [s for s in (*kernel.inputs, *kernel.outputs) if s.name not in anchor.inputs]
    if fewer <= 0 or any(s.h not in (1, kernel.h) for s in others):
        return kernel

    def cut(spec: TensorSpec) -> TensorSpec:
        if spec.name in anchor.inputs:
            return replace(spec, h=spec.h - fewer // out_stride * in_stride)
        return replace(spec, h=kernel.h - fewer) if spec.h == kernel.h else spec

    return replace(
        kernel,
        h=kernel.h - fewer,
        inputs=tuple(cut(s) for s in kernel.inputs),
        outputs=tuple(cut(s) for s in kernel.outputs),
    )


def execute(
    kernel: FusedKernel, record: KernelRecord, target: Target, board: EmulatedBoard
) -> Region:
    """Compile a kernel, run it on a board, and hold its outputs against the reference.

    Raises
    ------
    SystemExit
        If they differ.
    """
    scene = Scene(kernel)
    with tempfile.TemporaryDirectory(prefix="resq-") as folder:
        library = Path(folder) / "kernel.so"
        with _COMPILING:
            program = program_of(kernel, record.decision, target)
            machine_code(program, target).export_library(str(library), **export_options(target))
        outputs, execution = run_kernel(
            board, library, ENTRY, [*scene.inputs, *program.constants], scene.blank(),
            fresh=scene.fresh, evict=EVICTED if board.cache_model else 0,
        )  # fmt: skip
    if complaint := scene.complaint(outputs):
        raise SystemExit(
            f"{record.layer} on {target.name} by {record.decision.method}: {complaint}"
        )
    return execution.regions[MEASURED]


def measure(
    scheme: str,
    layers: int,
    record: KernelRecord,
    target: Target,
    boards: Sequence[EmulatedBoard],
    rows: int,
) -> Row:
    """Run the first rows of a kernel without caches, and on a second board with them."""
    anchor = record.kernel.anchor
    assert isinstance(anchor, Conv) and record.layer is not None
    kernel = crop(record.kernel, rows)
    region = execute(kernel, record, target, boards[0])
    inputs = sum(record.kernel.tensor(n).c for n in anchor.inputs)
    row = Row(
        boards[0].core.name, scheme, record.layer, layers, describe(record.kernel),
        min(inputs, record.kernel.c), anchor.weight[0].size, macs(kernel), macs(record.kernel),
        record.decision.method, region.cycles, region.bound,
    )  # fmt: skip
    for board in boards[1:]:
        cached = execute(kernel, record, target, board)
        row = replace(row, cached_cycles=cached.cycles)
    return row


def rows_of(
    core: str, qnets: Mapping[str, QuantizedNetwork], args: argparse.Namespace
) -> list[Row]:
    """Measure every distinct kernel of a core, scheme by scheme."""
    target = get_target(core.removesuffix("-cautious"))
    boards = [EmulatedBoard(core)]
    if core in args.caches:
        boards.append(EmulatedBoard(core, cache_model=True))
    records = {scheme: convolutions(qnet, target) for scheme, qnet in qnets.items()}
    layers = {layer: n for layer, n in distinct(records).items() if args.layers in layer}
    rows: list[Row] = []
    for scheme, kernels in records.items():
        start = time.perf_counter()
        with ThreadPoolExecutor(args.jobs) as pool:
            jobs = [
                pool.submit(measure, scheme, n, kernels[layer], target, boards, args.rows)
                for layer, n in layers.items()
            ]
            try:
                rows += [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        fast = [r.speed for r in rows[-len(jobs) :]]
        print(
            f"{core} {scheme}: {len(jobs)} kernels, {min(fast):.2f} to {max(fast):.2f} MAC/cycle "
            f"(simulated), outputs right; {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return rows


def device(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the cycles depend on besides the commit."""
    told = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True, check=True)
    return {
        "emulated": "boards, simulated",
        "cores": " ".join(args.cores),
        "rows of output": f"at most {args.rows}",
        "pipeline model": MODEL_VERSION,
        "qemu": told.stdout.split()[2],
    }


def write(path: Path, stamps: Sequence[str], rows: Sequence[Row]) -> None:
    """Write what `read` reads."""
    document = {"stamps": list(stamps), "rows": [asdict(row) for row in rows]}
    with atomic_file(path) as staging:
        staging.write_text(json.dumps(document, indent=1))


def read(path: Path) -> tuple[list[str], list[Row]]:
    """Return how an earlier run measured, and its rows."""
    document = json.loads(path.read_text())
    return document["stamps"], [Row(**row) for row in document["rows"]]


def main() -> None:
    args = parser.parse_args()
    if BASE not in args.schemes:
        args.schemes.insert(0, BASE)
    stamps: list[str] = []
    rows: list[Row] = []
    for path in args.join:
        how, joined = read(path)
        stamps += how
        rows += [row for row in joined if row.core not in args.cores]
    if args.cores:
        stamps.append(stamp(device(args), PAGE))
        qnets = networks(args.schemes, args.calibration)
    for core in args.cores:
        rows += rows_of(core, qnets, args)
        if args.json:
            write(args.json, stamps, rows)
    rows.sort(key=lambda r: list(CORES | VARIANTS).index(r.core))  # stable: layers keep their order
    lines = page(rows, stamps)
    print("\n".join(lines))
    if args.record:
        with atomic_file(PAGE) as path:
            path.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()

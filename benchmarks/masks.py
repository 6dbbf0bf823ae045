"""What looking and choosing cost, and how time falls with the share of changed tiles.

    python -m benchmarks.masks --record

Single convolutions with the residual epilogue, one thread: the dense kernel (every pixel, no maps),
the sparse kernel with every tile changed without and with a choice of bits, and the sparse kernel
with a part of its input changed (a rectangle of that area in the middle). Least of several repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--json", type=Path)
parser.add_argument("--record", action="store_true", help="write into docs/figures.md")
args = parser.parse_args()
os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import tvm  # noqa: E402

from benchmarks.kernels import CONVOLUTIONS, convolution  # noqa: E402
from benchmarks.record import record  # noqa: E402
from resq_tvm.device import fingerprint  # noqa: E402
from resq_tvm.schedules.context import input_maps, output_maps  # noqa: E402
from resq_tvm.schedules.emit import emit  # noqa: E402
from resq_tvm.schedules.listing import MARGIN  # noqa: E402
from resq_tvm.schedules.rules import decide  # noqa: E402
from resq_tvm.schedules.spec import Choice, FusedKernel, Sparse, TensorSpec  # noqa: E402
from resq_tvm.targets.preset import get_target  # noqa: E402

NAMES = (
    "conv 64 at 64x128", "ddrnet 128 /16", "espnet 25 d4", "blazepose 48-192 1x1",
    "blazepose dw 96 k3 s1", "blazepose dw 192 k5 s1",
)  # fmt: skip
SHARES = (1.0, 0.5, 0.25, 0.1, 0.02, 0.0)
REPEATS = 60
TARGET = get_target()


def sparse(kernel: FusedKernel, choice: Choice | None) -> FusedKernel:
    """Return the kernel as one that computes what changed."""
    (x,), (q,) = [s for s in kernel.inputs if s.name == "x"], kernel.outputs
    seen = TensorSpec("x_map", x.h, x.w, 1, "uint8", 1)
    made = TensorSpec("q_map", q.h, q.w, 1, "uint8", 1)
    room = kernel.h * kernel.w + MARGIN
    execution = Sparse({"x": seen}, False, {"q": made}, 1, 1, 0, room, None, frozenset({"x"}))
    stores = tuple(replace(s, choice=choice) for s in kernel.stores)
    return replace(kernel, stores=stores, sparse=execution)


class Runner:
    """A built kernel and its arguments."""

    def __init__(self, kernel: FusedKernel) -> None:
        func, packed = emit(kernel, decide(kernel, TARGET), TARGET)
        with tvm.transform.PassContext(opt_level=3):
            target = tvm.target.Target(TARGET.llvm)
            library = tvm.compile(tvm.IRModule({kernel.name: func}), target=target)
        self.call = library.jit()[kernel.name] if hasattr(library, "jit") else library[kernel.name]
        rng = np.random.default_rng(0)

        def tensor(spec: TensorSpec) -> Any:
            if spec.dtype.startswith("float"):
                return tvm.runtime.tensor(rng.standard_normal(spec.shape).astype(spec.dtype))
            return tvm.runtime.tensor(rng.integers(1, 120, spec.shape).astype(spec.dtype))

        inputs = [tensor(s) for s in kernel.inputs]
        constants = [tvm.runtime.tensor(a) for _, a in packed]
        outputs = [tvm.runtime.tensor(np.zeros(s.shape, s.dtype)) for s in kernel.outputs]
        self.maps: list[Any] = []
        if kernel.sparse is None:
            self.arguments = [*inputs, *constants, *outputs]
            return
        zeros = [
            tvm.runtime.tensor(np.zeros(shape, dtype))
            for shape, dtype in (
                ((kernel.h * kernel.w,), "uint8"),
                ((kernel.sparse.list_size,), "int32"),
                ((2,), "int32"),
            )
        ]
        self.maps = [
            tvm.runtime.tensor(np.zeros(s.shape, "uint8")) for s in input_maps(kernel.sparse)
        ]
        made = [tvm.runtime.tensor(np.zeros(s.shape, "uint8")) for s in output_maps(kernel.sparse)]
        thresholds = tvm.runtime.tensor(np.zeros(1, np.float32))
        self.arguments = [
            *inputs, *self.maps, thresholds, *constants, *outputs, *made, *zeros,
        ]  # fmt: skip

    def change(self, share: float) -> None:
        """Mark a rectangle of that share of the input as changed."""
        for one in self.maps:
            view = np.from_dlpack(one)
            view[...] = 0
            _, h, w, _ = view.shape
            rows, columns = round(h * share**0.5), round(w * share**0.5)
            top, left = (h - rows) // 2, (w - columns) // 2
            view[:, top : top + rows, left : left + columns] = 8

    def ms(self) -> float:
        """Return the least time of a call, in milliseconds."""
        best = float("inf")
        for _ in range(REPEATS):
            start = time.perf_counter()
            self.call(*self.arguments)
            best = min(best, time.perf_counter() - start)
        return best * 1e3


def measure(name: str) -> dict[str, Any]:
    """Measure one convolution."""
    kernel, _ = convolution(TARGET, CONVOLUTIONS[name])
    row: dict[str, Any] = {"name": name, "dense": Runner(kernel).ms()}
    for key, choice in (
        ("maps", None),
        ("choice", Choice((0, 8), (0, 0), 0)),
        ("choice3", Choice((0, 4, 8), (0, 4, 0), 0)),
    ):
        runner = Runner(sparse(kernel, choice))
        for share in SHARES if key == "choice" else (1.0,):
            runner.change(share)
            runner.ms()  # resets what no longer changed
            row[f"{key} {share:g}"] = runner.ms()
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    device = fingerprint()
    rows = [measure(name) for name in NAMES]
    if args.record:
        head = ["layer", "dense, µs", "maps", "maps, {0,8}", "maps, {0,4,8}"]
        head += [f"{100 * s:g} % changed" for s in SHARES[1:]]
        lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        for row in rows:
            keys = ["maps 1", "choice 1", "choice3 1", *(f"choice {s:g}" for s in SHARES[1:])]
            cells = [f"{row[k] / row['dense']:.2f}" for k in keys]
            lines.append(f"| {row['name']} | {1e3 * row['dense']:.0f} | {' | '.join(cells)} |")
        lines += ["", "Ratios to the dense kernel, which has neither maps nor a choice."]
        record("Cost of masks and policy, one kernel warm, 1 thread", lines, device)
    if args.json:
        args.json.write_text(json.dumps({"device": device, "rows": rows}, indent=2))


main()

"""The roofline of this machine: multiply-accumulates and bytes per second, measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from resq_tvm.schedules.code import Code, load
from resq_tvm.schedules.context import LANES
from resq_tvm.schedules.dots import dot_for
from resq_tvm.schedules.spec import Conv
from resq_tvm.schedules.tuning.tasks import Task
from resq_tvm.targets.preset import Target

_CHAINS = 12  # independent accumulators: more than latency times throughput anywhere
_STEPS = 20_000
_BYTES = 128 << 20


@dataclass(frozen=True)
class Roof:
    """What the machine can do at most, one thread.

    Attributes
    ----------
    gmacs : float
        Multiply-accumulates of the target's dot product on registers, in 10^9 per second.
    gbytes : float
        Bytes copied in memory (read and written), in 10^9 per second.
    """

    gmacs: float
    gbytes: float

    def seconds(self, task: Task) -> float:
        """Return the least time of a task's kernel: its multiplications, or its cold bytes.

        Cold is what `resq_tvm.schedules.tuning.scenes` says: state and weights in, state and
        codes out; the codes that a convolution reads are in the cache. Where a small network fits
        into the caches as a whole, its kernels may be faster than this.
        """
        kernel = task.kernel
        anchor = kernel.anchor
        names = anchor.reads if isinstance(anchor, Conv) else ()
        moved = sum(
            int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize
            for s in (*kernel.inputs, *kernel.outputs)
            if s.name not in names
        )
        weight = anchor.weight.nbytes if isinstance(anchor, Conv) else 0
        return max(task.macs / self.gmacs, (moved + weight) / self.gbytes) / 1e9


def measure_roof(target: Target) -> Roof:
    """Measure the dot product and the memory of this machine, in half a second."""
    return Roof(_dot_rate(target), _copy_rate())


def _dot_rate(target: Target) -> float:
    func = _chains(target)
    machine = tvm.target.Target(target.llvm)
    call: Any = tvm.compile(tvm.IRModule({"main": func}), target=machine)["main"]
    dot = dot_for(target)
    rng = np.random.default_rng(0)
    code = target.code.dtype
    x = tvm.runtime.tensor(rng.integers(1, 100, (1, 1, 1, 16)).astype(code))
    w = tvm.runtime.tensor(rng.integers(1, 100, (1, 1, 1, LANES * dot.group)).astype(np.int8))
    y = tvm.runtime.tensor(np.zeros((_CHAINS * LANES,), np.int32))
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        call(x, w, y)
        best = min(best, time.perf_counter() - start)
    return _CHAINS * _STEPS * LANES * dot.group / best / 1e9


def _chains(target: Target) -> Any:
    """Return a function of dot products that wait for nothing but their own accumulator."""
    dot, code = dot_for(target), Code()
    x = tirx.decl_buffer((1, 1, 1, 16), target.code.dtype, "x", layout=None)
    w = tirx.decl_buffer((1, 1, 1, LANES * dot.group), "int8", "w", layout=None)
    y = tirx.decl_buffer((_CHAINS * LANES,), "int32", "y", layout=None)
    part = LANES // dot.pieces
    accumulators = [code.allocate(LANES, "int32") for _ in range(_CHAINS)]
    for n, acc in enumerate(accumulators):
        for p in range(0, LANES, part):
            code.store(acc, [p], load(y, [n * LANES + p], part), part)
    with code.loop(_STEPS, "k"):
        activation = dot.activation(code, x, [0, 0, 0, 0])
        for piece in range(dot.pieces):
            weight = dot.weight(code, w, [0, 0, 0], piece)
            for acc in accumulators:
                value = dot.multiply(code, load(acc, [piece * part], part), activation, weight)
                code.store(acc, [piece * part], value, part)
    for n, acc in enumerate(accumulators):
        for p in range(0, LANES, part):
            code.store(y, [n * LANES + p], load(acc, [p], part), part)
    attributes = {
        "global_symbol": "main",
        "s_tir": True,
        "tirx.is_scheduled": True,
        "tirx.noalias": True,
    }
    return tirx.PrimFunc([x, w, y], code.statement()).with_attr(attributes)


def _copy_rate() -> float:
    source, destination = np.ones(_BYTES, np.uint8), np.zeros(_BYTES, np.uint8)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        np.copyto(destination, source)
        best = min(best, time.perf_counter() - start)
    return 2 * _BYTES / best / 1e9

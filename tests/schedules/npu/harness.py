"""Kernels for NPUs under test: written, run on the simulated machine, compared with their meaning.

A kernel runs in the order of its stream, and in the orders in which machines of very different
speeds begin its commands: where a wait is missing, one of them reads what is not there yet.
Besides, no two commands that touch the same bytes may be without an order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from resq_tvm.schedules import meaning
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.context import aligned, working_bytes
from resq_tvm.schedules.npu.single import ENTRY, Single, single
from resq_tvm.schedules.npu.tensors import tensor_bytes
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import Conv, FusedKernel
from resq_tvm.targets.npu.commands import Program, Stream
from resq_tvm.targets.npu.description import FUNCTIONS, OPERATORS, Npu
from resq_tvm.targets.npu.functional import Machine
from resq_tvm.targets.npu.races import races
from resq_tvm.targets.npu.timing import simulate
from resq_tvm.targets.preset import Target, npu_target
from tests.schedules.npu.kernels import limit

Array = NDArray[Any]

SLOW = 1000  # times: how much slower a part of an absurd machine is


# Machines ------------------------------------------------------------------------------------


def machine(
    *,
    array: tuple[int, int, int] = (4, 8, 8),
    sram: int = 1 << 17,
    accumulators: int = 1 << 14,
    depthwise: bool = True,
    operators: tuple[str, ...] = OPERATORS,
    functions: tuple[str, ...] = FUNCTIONS,
) -> Target:
    """Return a small NPU; ``array`` is pixels × outputs × depth, memories are in bytes."""
    npu = Npu.model_validate(
        {
            "name": "npu-drawn",
            "clock_hz": 1e9,
            "matrix": {
                "pixels": array[0], "outputs": array[1], "depth": array[2],
                "rates": {"W8A8": 1.0, "W4A8": 1.5, "W4A4": 2.0, "W2A2": 4.0},
                "depthwise": depthwise, "startup_cycles": 5, "accumulator_bytes": accumulators,
            },
            "vector": {
                "lanes": 16, "stages": 4, "startup_cycles": 5, "operators": operators,
                "functions": dict.fromkeys(functions, 4),
            },
            "sram": {"bytes": sram, "banks": 4, "bank_bytes_per_cycle": 16},
            "dram": {"bytes_per_second": 8e9, "latency_cycles": 20, "burst_bytes": 16},
            "commands": {
                "issue_cycles": 2, "dma_setup_cycles": 3, "kernel_cycles": 10, "queue_depth": 16,
            },
            "host": {"call_cycles": 100, "bytes_per_second": 1e9},
        }
    )  # fmt: skip
    return npu_target(npu)


@st.composite
def machines(draw: st.DrawFn) -> Target:
    """Draw a machine: any array, memories of any size from small to roomy."""
    array = draw(st.tuples(*(st.sampled_from(n) for n in ((1, 3, 8), (1, 3, 6, 16), (1, 5, 32)))))
    return machine(
        array=array,
        sram=draw(st.sampled_from([20_000, 33_333, 1 << 17])),
        accumulators=draw(st.sampled_from([1000, 4096, 1 << 16])),
        depthwise=draw(st.booleans()),
    )


def speeds(npu: Npu) -> dict[str, Npu]:
    """Return the machine itself, and others that are absurdly slow at one thing."""

    def slow(part: str, **changes: Any) -> Npu:
        return npu.model_copy(update={part: getattr(npu, part).model_copy(update=changes)})

    return {
        "as it is": npu,
        "slow transfers": slow("dram", bytes_per_second=npu.dram.bytes_per_second / SLOW),
        "slow products": slow("matrix", startup_cycles=SLOW * 10),
        "slow vectors": slow("vector", startup_cycles=SLOW * 10),
        "slow latency": slow("dram", latency_cycles=SLOW * 10),
    }


def orders(npu: Npu, stream: Stream, program: str) -> Iterator[tuple[str, list[int] | None]]:
    """Yield the stream's own order, and those in which machines begin its commands."""
    yield "stream", None
    seen = {tuple(range(len(stream.programs[program].commands)))}
    for name, other in speeds(npu).items():
        start = simulate(other, stream, program).commands.start
        order = np.argsort(start, kind="stable").tolist()
        if tuple(order) not in seen:
            seen.add(tuple(order))
            yield name, order


def no_races(stream: Stream, program: Program) -> None:
    """Fail where commands without an order touch the same bytes."""
    found = races(stream, program)
    assert not found, f"{len(found)}: {found[0]}"


def has_room(kernel: FusedKernel, target: Target) -> bool:
    """Return whether what stays in SRAM fits the part that tiles do not take."""
    assert target.npu is not None
    specs = [s for s in (*kernel.inputs, *kernel.outputs) if s.memory]
    taken = sum(aligned(tensor_bytes(s)) for s in specs)
    return taken <= target.npu.sram.bytes - working_bytes(target.npu)


# Running -------------------------------------------------------------------------------------


def random_inputs(kernel: FusedKernel, rng: np.random.Generator) -> dict[str, Array]:
    """Draw codes over their range, and floats of several magnitudes."""
    inputs = meaning.random_inputs(kernel, rng)
    anchor = kernel.anchor
    anchored = anchor.inputs if isinstance(anchor, Conv) else ()
    for spec in kernel.inputs:
        if spec.dtype == "int8" and spec.name not in anchored:
            most = limit(spec.bits or 8)
            inputs[spec.name] = rng.integers(-most, most + 1, (spec.h, spec.w, spec.c))
    return inputs


def run_single(
    made: Single, target: Target, inputs: dict[str, Array], order: list[int] | None = None
) -> dict[str, Array]:
    """Run a kernel's stream on a new machine; return every tensor that it writes."""
    assert target.npu is not None
    device = Machine(target.npu, made.stream, made.dram.copy())
    for name, value in inputs.items():
        device.write(made.tensors[name], value)
    device.run(ENTRY, order=order)
    return {p.name: device.read(p) for p in made.stream.programs[ENTRY].outputs}


def check(
    kernel: FusedKernel,
    target: Target,
    rng: np.random.Generator,
    *,
    decision: Decision | None = None,
    inputs: dict[str, Array] | None = None,
    ulps: int = 0,
) -> Single:
    """Compare a kernel with its meaning, in every order; ``ulps`` may be off (of float32)."""
    assert target.npu is not None
    inputs = inputs or random_inputs(kernel, rng)
    made = single(kernel, decision or decide(kernel, target), target)
    no_races(made.stream, made.stream.programs[ENTRY])
    wanted = meaning.run(kernel, inputs)
    for name, order in orders(target.npu, made.stream, ENTRY):
        found = run_single(made, target, inputs, order)
        for tensor, value in wanted.items():
            _compare(found[tensor], value, f"{tensor} ({name})", ulps)
    return made


def _compare(found: Array, wanted: Array, what: str, ulps: int) -> None:
    if not ulps or wanted.dtype != np.float32:
        np.testing.assert_array_equal(found, wanted, err_msg=what)
        return
    room = ulps * 2.0**-23 * np.maximum(np.abs(wanted), 1e-6)
    assert (np.abs(found.astype(np.float64) - wanted) <= room).all(), what

"""How many cycles a command takes on its engine, if nothing holds it up.

Pure functions of the machine and the command; `resq_tvm.targets.npu.timing` puts them in a row.
The section "Cycle model" of docs/npu.md tells the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import TargetError
from resq_tvm.targets.npu.commands import HostCall, Matrix, Transfer, Vector, VectorProgram
from resq_tvm.targets.npu.description import FUNCTIONS, Npu

FREE_STEPS = frozenset({"read", "scalar", "write", "bits", "spread", "any"})
CHOOSE_OPERATIONS = 4  # per entry of the pool: shift, compare with the finest, add up, select
ENERGY_OPERATIONS = 2  # quantize; square and add
BILINEAR_OPERATIONS = 6  # two multiplications along each axis and their sums


def _quotient(a: float, b: float) -> int:
    """Round a quotient up; a rate such as 4/3 is no exact number, which must not cost a cycle."""
    return math.ceil(a / b - 1e-9)


# --- matrix unit ------------------------------------------------------------------------------


def macs(command: Matrix) -> int:
    """Return the products of a command, those by zero and outside the plane included."""
    per_output = math.prod(command.taps) * (1 if command.depthwise else command.source.channels)
    return command.h * command.w * command.out * per_output


def pixel_blocks(npu: Npu, command: Matrix) -> int:
    """Return how many blocks of neighbouring output pixels of a row a command works on."""
    return command.h * -(-command.w // npu.matrix.pixels)


def block_classes(
    command: Matrix, bits_map: NDArray[np.unsignedinteger[Any]], npu: Npu
) -> dict[int, int]:
    """Count the pixel blocks of a command by the bits that they need.

    A block needs the most bits that a pixel of its receptive field has.

    Parameters
    ----------
    command : Matrix
    bits_map : array of uint8, (h, w) or (h, w, 1)
        Bits per pixel of ``command.source``; pixels outside have 0.
    npu : Npu

    Returns
    -------
    dict of int to int
        Bits → blocks; the counts sum up to `pixel_blocks`.

    Raises
    ------
    ValueError
        If the map is not as large as the source.
    """
    source = command.source
    plane: NDArray[Any] = bits_map.reshape(bits_map.shape[:2])
    if plane.shape != (source.h, source.w):
        raise ValueError(f"bits map of {plane.shape} is not of {(source.h, source.w)} pixels")
    rows = _most(plane, command.h, command.origin[0], command.stride[0], command.taps[0],
                 command.dilation[0])  # fmt: skip
    pixels = _most(rows.T, command.w, command.origin[1], command.stride[1], command.taps[1],
                   command.dilation[1]).T  # fmt: skip
    width = npu.matrix.pixels
    blocks = np.zeros((command.h, -(-command.w // width) * width), plane.dtype)
    blocks[:, : command.w] = pixels
    most = blocks.reshape(command.h, -1, width).max(axis=2)
    bits, counts = np.unique(most, return_counts=True)
    return dict(zip(bits.tolist(), counts.tolist(), strict=True))


def _most(
    plane: NDArray[Any], outputs: int, origin: int, stride: int, taps: int, dilation: int
) -> NDArray[Any]:
    """Return the largest of every window of rows."""
    out = np.zeros((outputs, plane.shape[1]), plane.dtype)
    for tap in range(taps):
        rows = np.arange(outputs) * stride + origin + tap * dilation
        inside = (rows >= 0) & (rows < plane.shape[0])
        out[inside] = np.maximum(out[inside], plane[rows[inside]])
    return out


def matrix_cycles(npu: Npu, command: Matrix, classes: Mapping[int, int] | None = None) -> int:
    """Return the cycles of a convolution.

    Parameters
    ----------
    npu : Npu
    command : Matrix
    classes : mapping of int to int, optional
        Pixel blocks by bits, of a command with a bits map (`block_classes`). Without it every
        block needs the bits of ``command.precision``.

    Notes
    -----
    The array takes m pixel blocks × n groups of outputs × k steps along the sums, at the rate of
    the precision; a block of 0 bits costs one cycle per group (it is looked at). It is not faster
    than the SRAM delivers: the activations of every step, and the weights once. A depthwise
    command fetches every input pixel once.
    """
    array = npu.matrix
    weight_bits, bits = command.precision
    classes = {bits: pixel_blocks(npu, command)} if classes is None else classes
    empty = classes.get(0, 0)
    blocks = sum(classes.values()) - empty

    n, k = _groups_and_steps(npu, command)
    work = sum(
        count / npu.precision(weight_bits, bits)[1] for bits, count in classes.items() if bits
    )
    products = _quotient(work * n * k, 1) + empty * n

    if command.depthwise:
        new = [min(s, t) for s, t in zip(command.stride, command.taps, strict=True)]
        codes = blocks * array.pixels * math.prod(new) * command.out
        weights = command.out * math.prod(command.taps)
    else:
        codes = blocks * n * k * array.pixels * array.depth
        weights = n * k * array.outputs * array.depth
    if not blocks:
        weights = 0
    fetched = (codes * command.source.bits + weights * command.weight_bits) / 8
    delivery = _quotient(fetched, npu.sram.banks * npu.sram.bank_bytes_per_cycle)
    return max(products, delivery) + array.startup_cycles


def _groups_and_steps(npu: Npu, command: Matrix) -> tuple[int, int]:
    """Return groups of outputs and steps along the sums."""
    array = npu.matrix
    taps = math.prod(command.taps)
    if command.depthwise:
        at_once = array.outputs if array.depthwise else 1
        return -(-command.out // at_once), -(-taps // array.depth) if array.packs_taps else taps
    channels = command.source.channels
    if array.packs_taps:
        steps = -(-taps * channels // array.depth)
    else:
        steps = taps * -(-channels // array.depth)
    return -(-command.out // array.outputs), steps


# --- vector unit ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a vector program does: operations per output element, and per input element.

    ``windows`` are comparisons that do not depend on the tile: of the elements of maps in which it
    looks for something.
    """

    output: int
    input: int
    windows: int = 0


def program_work(npu: Npu, program: VectorProgram) -> Work:
    """Return the operations of a vector program.

    Raises
    ------
    TargetError
        If it uses a function that the vector unit lacks.
    """
    output = sum(_operations(npu, step.op, step.facts) for step in program)
    windows = sum(_compared(step.facts) for step in program if step.op == "active")
    return Work(output, sum(step.op == "mean" for step in program), windows)


def _compared(facts: Mapping[str, Any]) -> int:
    """Return the comparisons that find windows of a map: along its rows, then of these results."""
    down, across = ([past - first for first, past in facts[name]] for name in ("rows", "columns"))
    width = max(past for _, past in facts["columns"])
    return sum(down) * width + len(down) * sum(across)


def _operations(npu: Npu, op: str, facts: Mapping[str, Any]) -> int:
    if op in FREE_STEPS or op in ("mean", "active"):
        return 0
    if op in FUNCTIONS:
        if op not in npu.vector.functions:
            known = ", ".join(npu.vector.functions) or "none"
            raise TargetError(
                f"the vector unit of {npu.name} has no function {op!r} (it has {known}); add it "
                "to the description or choose another target"
            )
        return npu.vector.functions[op]
    match op:
        case "pool":
            return int(math.prod(facts["window"])) + ("mask" in facts)
        case "resize":
            linear = facts["method"] == "linear"
            return (BILINEAR_OPERATIONS if linear else 1) + ("mask" in facts)
        case "window":
            return 1 + ("mask" in facts)
        case "choose":
            return CHOOSE_OPERATIONS * len(facts["pool"])
        case "energy":
            return ENERGY_OPERATIONS
        case "changed":  # a comparison, then the largest of every row and column within reach
            return 1 + 2 * 2 * int(facts["reach"])
    return 1


def vector_cycles(npu: Npu, work: Work, command: Vector) -> int:
    """Return the cycles of a vector program on one tile.

    Parameters
    ----------
    npu : Npu
    work : Work
        Of the command's program (`program_work`).
    command : Vector
    """
    unit = npu.vector
    passes = -(-work.output // unit.stages) or (0 if work.input else 1)
    cycles = -(-command.h * command.w * command.c // unit.lanes) * passes
    if work.input:
        source = command.operands[0]
        cycles += -(-source.h * source.w * source.c // unit.lanes) * -(-work.input // unit.stages)
    return cycles + -(-work.windows // unit.lanes) + unit.startup_cycles


# --- memory and host --------------------------------------------------------------------------


def dram_bytes(npu: Npu, command: Transfer) -> int:
    """Return the bytes that a transfer occupies the DRAM bus for: whole bursts.

    What lies back to back is one run. Gaps are carried along where that is less than to begin a
    new burst for every piece.
    """
    burst = npu.dram.burst_bytes

    def whole(nbytes: int) -> int:
        return -(-nbytes // burst) * burst

    row_span = (command.columns - 1) * abs(command.dram_column) + command.piece
    row = min(command.columns * whole(command.piece), whole(row_span))
    span = (command.rows - 1) * abs(command.dram_row) + row_span
    return min(command.rows * row, whole(span))


def bus_cycles(npu: Npu, command: Transfer) -> int:
    """Return how long a transfer that has the DRAM bus for itself occupies it.

    The set-up of the DMA comes before, the latency of the memory after it.
    """
    return _quotient(dram_bytes(npu, command), npu.bytes_per_cycle)


def host_cycles(npu: Npu, call: HostCall) -> int:
    """Return the cycles (of the NPU) of a function of the host."""
    moved = sum(place.nbytes for place in (*call.reads, *call.writes))
    return npu.host.call_cycles + _quotient(moved * npu.clock_hz, npu.host.bytes_per_second)

"""The vector unit: runs a vector program on one tile, in float32 with IEEE rounding.

A value keeps the extents of what it was made from: a vector of one row and one column broadcasts
only where it meets a tile. Every operation rounds once; products are not fused into sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special

from resq_tvm.targets.npu import unit_spatial
from resq_tvm.targets.npu.commands import Operand, Step, Vector, VectorProgram
from resq_tvm.targets.npu.memory import Fault, Memory
from resq_tvm.targets.npu.unit_choose import choose_bits
from resq_tvm.targets.npu.unit_gate import (
    active_windows,
    block_energies,
    changed_blocks,
    spread,
)
from resq_tvm.targets.npu.unit_operands import read_operand, write_operand

Array = NDArray[Any]

_UFUNCS: Final[dict[str, np.ufunc]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "max": np.maximum, "min": np.minimum, "neg": np.negative, "abs": np.abs,
    "exp": np.exp, "tanh": np.tanh, "sqrt": np.sqrt,
}  # fmt: skip
_SPATIAL: Final[dict[str, Callable[[Array, Vector, dict[str, Any]], Array]]] = {
    "pool": unit_spatial.pool,
    "mean": lambda tile, command, table: unit_spatial.mean(tile),
    "resize": unit_spatial.resize,
    "window": unit_spatial.window,
}
_NOT_OURS: Final = frozenset({"read", "scalar"})  # values that later steps must not overwrite


@dataclass(frozen=True)
class PlannedStep:
    """A step with what later steps allow: an argument to overwrite (−1: none), values to drop."""

    step: Step
    reuse: int
    dropped: tuple[int, ...]
    facts: dict[str, Any]


def plan(program: VectorProgram) -> tuple[PlannedStep, ...]:
    """Find where every value is used last, so that its memory can take a result.

    Raises
    ------
    Fault
        If a step's arguments do not precede it.
    """
    last = {a: i for i, step in enumerate(program) for a in step.args}
    planned = []
    for i, step in enumerate(program):
        if any(not 0 <= a < i or program[a].op == "write" for a in step.args):
            raise Fault(f"step {i} ({step.op}) of its vector program has wrong arguments")
        dying = tuple(a for a in dict.fromkeys(step.args) if last[a] == i)
        free = [a for a in dying if program[a].op not in _NOT_OURS]
        planned.append(PlannedStep(step, free[0] if free else -1, dying, step.facts))
    return tuple(planned)


def run_vector(
    command: Vector,
    program: tuple[PlannedStep, ...],
    memories: dict[str, Memory],
    threshold_scale: float = 1.0,
) -> None:
    """Run a vector command.

    Parameters
    ----------
    program : tuple of PlannedStep
        The `plan` of the command's vector program.
    memories : dict
        ``"sram"`` and ``"acc"``.
    threshold_scale : float
        Multiplies the thresholds of ``choose`` and ``changed``, in float32.

    Raises
    ------
    Fault
        If an operand lies outside its memory or does not broadcast, a code does not fit, or an
        operation is unknown.
    """
    values: list[Any] = []
    bits: dict[int, Array] = {}
    for planned in program:
        step = planned.step
        match step.op:
            case "read":
                operand = _tile_operand(command, step.index)
                values.append(read_operand(memories[operand.memory], operand))
            case "write":
                operand = command.operands[step.index]
                write_operand(memories[operand.memory], operand, values[step.args[0]])
                values.append(None)
            case "choose":
                codes, chosen = choose_bits(values[step.args[0]], planned.facts, threshold_scale)
                bits[len(values)] = chosen
                values.append(codes)
            case "bits":
                values.append(bits[step.args[0]])
            case "energy":
                difference = _as_float(values[step.args[0]])
                values.append(block_energies(difference, step.value, planned.facts["block"]))
            case "changed":
                energies = values[step.args[0]]
                values.append(changed_blocks(energies, planned.facts, threshold_scale))
            case "spread":
                operand = command.operands[step.index]
                plane = read_operand(memories[operand.memory], operand)
                values.append(spread(plane, command, planned.facts["block"]))
            case "active":
                operand = command.operands[step.index]
                plane = read_operand(memories[operand.memory], operand)
                values.append(active_windows(plane, planned.facts))
            case "any":
                found = np.any(values[step.args[0]])
                values.append(np.full((1, 1, 1), found, np.float32))
            case "nonzero":
                there = np.any(values[step.args[0]] != 0, axis=2, keepdims=True)
                values.append(there * np.float32(step.value))
            case "pool" | "mean" | "resize" | "window":
                operand = command.operands[0]
                tile = _as_float(read_operand(memories[operand.memory], operand))
                if "mask" in planned.facts:
                    mask = command.operands[planned.facts["mask"]]
                    tile = np.where(read_operand(memories[mask.memory], mask) != 0, tile, 0)
                values.append(_SPATIAL[step.op](tile, command, planned.facts))
            case _:
                args = [values[a] for a in step.args]
                out = values[planned.reuse] if planned.reuse >= 0 else None
                values.append(_compute(step, args, out))
        for i in planned.dropped:
            values[i] = None


def _tile_operand(command: Vector, index: int) -> Operand:
    """Return an operand that has the tile's extents, or one where it broadcasts."""
    operand = command.operands[index]
    tile = (command.h, command.w, command.c)
    extents = (operand.h, operand.w, operand.c)
    if extents != tile and any(n not in (1, m) for n, m in zip(extents, tile, strict=True)):
        raise Fault(f"operand {index} has {extents} elements, and the tile {tile}")
    return operand


def _compute(step: Step, args: list[Array], out: Array | None) -> Array:
    """Evaluate an elementwise step; its result may overwrite ``out``, one of its arguments."""
    f = np.float32
    if step.op == "scalar":
        return np.full((1, 1, 1), step.value, f)
    if step.op == "dequantize":
        # The product takes the place of the converted accumulators where it is as large.
        number = args[0].astype(f)
        return np.multiply(number, args[1], out=_fitting(number, [number, args[1]]))
    args = [_as_float(a) for a in args]
    into = _fitting(out, args)
    if step.op in _UFUNCS:
        return _UFUNCS[step.op](*args, out=into)
    match step.op:
        case "sigmoid":
            return (1 / (1 + np.exp(-args[0].astype(np.float64)))).astype(f)
        case "erf":
            return special.erf(args[0].astype(np.float64)).astype(f)
        case "prelu":
            return np.where(args[0] > 0, args[0], args[0] * args[1])
        case "select":
            return np.where(args[0] != 0, args[1], args[2])
        case "round16":
            return args[0].astype(np.float16).astype(f)
        case "quantize":
            rounded = np.multiply(args[0], f(step.value), out=into)
            np.rint(rounded, out=rounded)
            np.minimum(rounded, f(step.limit), out=rounded)
            np.maximum(rounded, f(-step.limit), out=rounded)
            return rounded.astype(np.int8 if step.limit < 128 else np.int32)
    raise Fault(f"the vector unit has no operation {step.op!r}")


def _as_float(value: Array) -> Array:
    return value if value.dtype == np.float32 else value.astype(np.float32)


def _fitting(out: Array | None, args: list[Array]) -> Array | None:
    """Return ``out`` if a result of these arguments has its type and its extents."""
    if out is None or out.dtype != np.float32:
        return None
    if all(a is out or a.shape == out.shape or _broadcasts(a, out) for a in args):
        return out
    return None


def _broadcasts(value: Array, to: Array) -> bool:
    (h, w, c), (rows, columns, channels) = value.shape, to.shape
    return h in (1, rows) and w in (1, columns) and c in (1, channels)

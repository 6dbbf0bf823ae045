"""Streams as text: one line per command, for people."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from resq_tvm.errors import ArtifactError, ConfigError
from resq_tvm.targets.npu.commands import (
    Command,
    HostCall,
    Load,
    Matrix,
    Operand,
    Plane,
    Program,
    Step,
    Stream,
    TensorPlace,
    Transfer,
    Vector,
    VectorProgram,
    Waits,
)


def disassemble(stream: Stream, program: str | None = None, kernel: str | None = None) -> str:
    """Return a stream as text.

    Parameters
    ----------
    stream : Stream
    program : str, optional
        Name of the program; all of them by default.
    kernel : str, optional
        Shell pattern over names of kernels: their commands alone, with the vector programs that
        these run.

    Returns
    -------
    str
        Lines, without a line break at the end. Addresses are hexadecimal, in bytes. ``#n`` is the
        command's number in its program, ``engine n`` its number on its engine, and ``after engine
        n`` the command that it waits for.

    Raises
    ------
    ArtifactError
        If there is no such program.
    ConfigError
        If the pattern matches no kernel.
    """
    if program is not None and program not in stream.programs:
        known = ", ".join(stream.programs) or "none"
        raise ArtifactError(f"the stream has no program {program!r}; it has {known}")
    shown = {i for i, n in enumerate(stream.kernels) if kernel is None or fnmatchcase(n, kernel)}
    if kernel is not None and not shown:
        raise ConfigError(
            f"kernel {kernel!r} matches none of the stream's {len(stream.kernels)}, such as "
            f"{', '.join(repr(n) for n in stream.kernels[:3])}; use a name or a pattern"
        )
    return "\n".join(_lines(stream, program, shown))


def _lines(stream: Stream, only: str | None, shown: set[int]) -> Iterator[str]:
    chosen = [p for name, p in stream.programs.items() if only in (None, name)]
    used = {
        command.program
        for program in chosen
        for command in program.commands
        if isinstance(command, Vector) and command.kernel in shown
    }
    yield f"stream for {stream.npu}: {len(stream.kernels)} kernels, DRAM {stream.dram_bytes} bytes"
    for number, steps in enumerate(stream.vector_programs):
        if number in used:
            yield ""
            yield f"vector program {number}"
            yield from (f"  {line}" for line in vector_program_lines(steps))
    for program in chosen:
        yield ""
        yield from _program_lines(stream, program, shown)


def _program_lines(stream: Stream, program: Program, shown: set[int]) -> Iterator[str]:
    yield f"program {program.name}: {len(program.commands)} commands"
    for kind in ("inputs", "outputs", "state"):
        for place in getattr(program, kind):
            yield f"  {kind:<7} {_place(place)}"
    everything = len(shown) == len(stream.kernels)
    counts = dict.fromkeys(("load", "store", "matrix", "vector"), 0)
    number, kernel = 0, -1
    for item in program.items:
        if isinstance(item, HostCall):
            if everything:
                yield f"host {item.function} ({item.operator})"
                yield from (f"  reads   {_place(place)}" for place in item.reads)
                yield from (f"  writes  {_place(place)}" for place in item.writes)
            kernel = -1
            continue
        for command in item:
            engine = command.engine.name.lower()
            counts[engine] += 1
            if command.kernel in shown:
                if command.kernel != kernel:
                    yield f"kernel {stream.kernels[command.kernel]}"
                kernel = command.kernel
                place = f"#{number:<6d} {engine} {counts[engine]}"
                yield f"  {place:<22} {command_text(command)}"
            number += 1


def command_text(command: Command) -> str:
    """Return what a command does and what it waits for, in one line."""
    if isinstance(command, Transfer):
        text = _transfer(command)
    elif isinstance(command, Matrix):
        text = _matrix(command)
    else:
        text = _vector(command)
    condition = "" if command.flag is None else f"  if sram {command.flag:#x}"
    return text + condition + _after(command.waits)


def vector_program_lines(program: VectorProgram) -> Iterator[str]:
    """Yield a vector program, one step per line, such as ``%2 = mul %0, %1``."""
    for number, step in enumerate(program):
        yield _step(number, step)


def _step(number: int, step: Step) -> str:
    args = ", ".join(f"%{a}" for a in step.args)
    if step.op == "write":
        return f"operand {step.index} = {args}"
    if step.op in ("read", "spread", "active"):
        args = f"operand {step.index}"
    details = [f"{key}={_value(value)}" for key, value in step.table]
    if step.op in ("scalar", "quantize", "energy", "nonzero"):
        details.insert(0, f"value={step.value!r}")
    if step.op == "quantize":
        details.append(f"limit={step.limit}")
    return " ".join(filter(None, [f"%{number} = {step.op}", args, *details]))


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "(" + ",".join(map(_value, value)) + ")"
    return str(value)


def _after(waits: Waits) -> str:
    if not waits:
        return ""
    return "  after " + ", ".join(f"{engine.name.lower()} {count}" for engine, count in waits)


def _transfer(command: Transfer) -> str:
    outside = f"dram {command.dram:#x}"
    inside = f"sram {command.sram:#x}"
    ends = f"{outside} -> {inside}" if isinstance(command, Load) else f"{inside} -> {outside}"
    if command.rows == command.columns == 1:
        return f"{ends}  {command.nbytes} bytes"
    strides = (
        f"dram +{command.dram_row} +{command.dram_column}, "
        f"sram +{command.sram_row} +{command.sram_column}"
    )
    shape = f"{command.rows}x{command.columns} pieces of {command.piece}"
    return f"{ends}  {shape} = {command.nbytes} bytes  ({strides})"


def _matrix(command: Matrix) -> str:
    kind = "depthwise" if command.depthwise else "conv"
    weight, activation = command.precision
    words = [
        f"acc {command.accumulators:#x} {'+=' if command.accumulate else '='} {kind}",
        f"{command.h}x{command.w}x{command.out}",
        f"W{weight}A{activation}",
        f"taps {_pair(command.taps)}",
    ]
    if command.stride != (1, 1):
        words.append(f"stride {_pair(command.stride)}")
    if command.dilation != (1, 1):
        words.append(f"dilation {_pair(command.dilation)}")
    words.append(f"of {_plane(command.source)} from ({command.origin[0]},{command.origin[1]})")
    words.append(f"weights {command.weights:#x} c{command.weight_bits}")
    if command.bits_map is not None:
        words.append(f"bits {_plane(command.bits_map)}")
    return " ".join(words)


def _vector(command: Vector) -> str:
    operands = "; ".join(map(_operand, command.operands))
    words = [f"program {command.program} on {command.h}x{command.w}x{command.c}"]
    words.append(f"at ({','.join(map(str, command.place))})")
    if command.window != (0, 0):
        words.append(f"reading from ({command.window[0]},{command.window[1]})")
    words.append(f"[{operands}]")
    return " ".join(words)


def _pair(values: tuple[int, int]) -> str:
    return f"{values[0]}x{values[1]}"


def _plane(plane: Plane) -> str:
    channels = f"{plane.first}:{plane.first + plane.channels}"
    return (
        f"sram {plane.address:#x} {plane.h}x{plane.w}x[{channels}] c{plane.bits} "
        f"(+{plane.row} +{plane.pixel}){_ring(plane)}"
    )


def _operand(operand: Operand) -> str:
    return (
        f"{operand.memory} {operand.address:#x} {operand.h}x{operand.w}x{operand.c} "
        f"{operand.format} (+{operand.row} +{operand.pixel}){_ring(operand)}"
    )


def _ring(place: Plane | Operand) -> str:
    """Return where rows lie in a circular buffer, if they do."""
    return f" ring {place.ring} from {place.top}" if place.ring else ""


def _place(place: TensorPlace) -> str:
    return (
        f"{place.name}: {place.memory} {place.address:#x} {place.h}x{place.w}x{place.c} "
        f"{place.format}"
    )

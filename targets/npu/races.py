"""Missing waits: commands that touch the same bytes without an order between them.

Whether a program is right must not depend on how long its commands take. Two commands have an
order if one engine runs both, or if waits lead from one to the other; what is found here are pairs
that have none, though one of them writes bytes that the other reads or writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.npu.codes import code_bytes
from resq_tvm.targets.npu.commands import (
    Command,
    Engine,
    HostCall,
    Load,
    Matrix,
    Operand,
    Plane,
    Program,
    Store,
    Stream,
    Transfer,
    Vector,
    VectorProgram,
    pixel_bytes,
    ring_runs,
)
from resq_tvm.targets.npu.unit_matrix import reach

_ENGINES = tuple(Engine)


@dataclass(frozen=True)
class Span:
    """Bytes that a command touches: ``rows × columns`` pieces in ``memory``."""

    memory: str  # "dram", "sram" or "acc"
    address: int
    rows: int
    columns: int
    piece: int
    row: int
    column: int
    written: bool


@dataclass(frozen=True)
class Race:
    """Two commands, numbered as in ``Program.commands``, that nothing keeps apart."""

    first: int
    second: int
    memory: str
    address: int  # the first byte of the second's span that is in question

    def __str__(self) -> str:
        """Name the commands and the byte."""
        return (
            f"commands {self.first} and {self.second} both touch byte {self.address} of "
            f"{self.memory}, and neither waits for the other"
        )


def races(stream: Stream, program: Program) -> list[Race]:
    """Find commands without an order that touch the same bytes.

    Parameters
    ----------
    stream : Stream
        Its vector programs tell which operands are read and which are written.
    program : Program

    Returns
    -------
    list of Race
        For every command and every span of it at most one per engine; empty: no wait is missing.

    Raises
    ------
    ValueError
        If a command waits for one that the stream holds only later.
    """
    found: list[Race] = []
    shadows: dict[tuple[str, Engine, bool], NDArray[np.int32]] = {}
    sizes = _sizes(stream, program)
    order = _Order()
    number = 0
    for item in program.items:
        if isinstance(item, HostCall):
            order.everything_ended()
            continue
        for command in item:
            ended = order.begin(number, command)
            for span in spans(command, stream.vector_programs):
                for engine in _ENGINES:
                    # An engine's own commands have an order.
                    if engine == command.engine:
                        continue
                    for written in (True, False) if span.written else (True,):
                        shadow = shadows.get((span.memory, engine, written))
                        if shadow is None:
                            continue
                        last = _within(shadow, span)
                        if last.size and last.max() > ended[engine]:
                            found.append(_race(order, number, engine, span, last, ended))
                key = (span.memory, command.engine, span.written)
                if key not in shadows:
                    shadows[key] = np.zeros(sizes[span.memory], np.int32)
                _within(shadows[key], span)[...] = order.counts[command.engine]
            number += 1
    return found


@dataclass
class _Order:
    """How many commands of every engine have surely ended when a command begins."""

    counts: dict[Engine, int] = field(default_factory=lambda: dict.fromkeys(_ENGINES, 0))
    numbers: dict[Engine, list[int]] = field(default_factory=lambda: {e: [] for e in _ENGINES})
    known: dict[Engine, list[dict[Engine, int]]] = field(
        default_factory=lambda: {e: [] for e in _ENGINES}
    )
    barrier: dict[Engine, int] = field(default_factory=lambda: dict.fromkeys(_ENGINES, 0))

    def begin(self, number: int, command: Command) -> dict[Engine, int]:
        """Add a command; returns how many of every engine end before it begins."""
        own = command.engine
        ended = dict(self.barrier)
        for engine, count in ((own, self.counts[own]), *command.waits):
            if count > self.counts[engine]:
                raise ValueError(
                    f"command {number} waits for {count} commands of {engine.name}, and only "
                    f"{self.counts[engine]} come before it"
                )
            if count:
                for other, least in self.known[engine][count - 1].items():
                    ended[other] = max(ended[other], least)
                ended[engine] = max(ended[engine], count)
        self.counts[own] += 1
        self.numbers[own].append(number)
        self.known[own].append(ended)
        return ended

    def everything_ended(self) -> None:
        """Note that all commands so far end before the next one begins."""
        self.barrier = dict(self.counts)


def _race(
    order: _Order,
    number: int,
    engine: Engine,
    span: Span,
    last: NDArray[np.int32],
    ended: dict[Engine, int],
) -> Race:
    """Describe the first byte of a span that an unordered command touched."""
    row, column, byte = np.unravel_index(int((last > ended[engine]).argmax()), last.shape)
    address = span.address + int(row) * span.row + int(column) * span.column + int(byte)
    other = order.numbers[engine][int(last[row, column, byte]) - 1]
    return Race(other, number, span.memory, address)


def _within(shadow: NDArray[np.int32], span: Span) -> NDArray[np.int32]:
    """Return the entries of a shadow, one per byte, that belong to a span."""
    shape = (span.rows, span.columns, span.piece)
    if 0 in shape:
        return np.empty(shape, np.int32)
    return np.ndarray(shape, np.int32, shadow, 4 * span.address, (4 * span.row, 4 * span.column, 4))


def _sizes(stream: Stream, program: Program) -> dict[str, int]:
    """Return how many bytes of every memory the program touches, counted from the first one."""
    sizes = dict.fromkeys(("dram", "sram", "acc"), 0)
    for command in program.commands:
        for span in spans(command, stream.vector_programs):
            end = span.address + span.piece
            end += (span.rows - 1) * max(span.row, 0) + (span.columns - 1) * max(span.column, 0)
            sizes[span.memory] = max(sizes[span.memory], end)
    return sizes


def spans(command: Command, programs: tuple[VectorProgram, ...]) -> Iterator[Span]:
    """Yield what a command touches; of a vector command's operands, those that its program uses.

    A command with a flag touches the same whether it is skipped or not: its order must not depend
    on that.
    """
    if command.flag is not None:
        yield Span("sram", command.flag, 1, 1, 1, 1, 1, False)
    match command:
        case Load() | Store():
            yield from _transfer_spans(command)
        case Matrix():
            yield from _matrix_spans(command)
        case Vector():
            steps = programs[command.program]
            read = {s.index for s in steps if s.op in ("read", "spread", "active")}
            for step in steps:
                if step.op in ("pool", "mean", "resize", "window"):
                    read |= {0, step.facts.get("mask", 0)}
            for index in sorted(read):
                yield from _operand_spans(command.operands[index], False)
            for index in sorted({s.index for s in steps if s.op == "write"}):
                yield from _operand_spans(command.operands[index], True)


def _transfer_spans(move: Transfer) -> Iterator[Span]:
    shape = (move.rows, move.columns, move.piece)
    loads = isinstance(move, Load)
    yield Span("dram", move.dram, *shape, move.dram_row, move.dram_column, not loads)
    yield Span("sram", move.sram, *shape, move.sram_row, move.sram_column, loads)


def _matrix_spans(command: Matrix) -> Iterator[Span]:
    y, x = reach(command)
    source = command.source
    yield from _plane_spans(source, y.first, x.first, y.end - y.first, x.end - x.first)
    vectors, length = command.out, command.taps[0] * command.taps[1] * source.channels
    if command.depthwise:
        vectors, length = command.taps[0] * command.taps[1], command.out
    nbytes = vectors * code_bytes(length, command.weight_bits)
    yield Span("sram", command.weights, 1, 1, nbytes, nbytes, nbytes, False)
    if command.bits_map is not None:
        plane = command.bits_map
        yield from _plane_spans(plane, 0, 0, plane.h, plane.w)
    nbytes = 4 * command.h * command.w * command.out
    yield Span("acc", command.accumulators, 1, 1, nbytes, nbytes, nbytes, True)


def _plane_spans(plane: Plane, top: int, left: int, h: int, w: int) -> Iterator[Span]:
    begin = plane.first * plane.bits // 8
    end = code_bytes(plane.first + plane.channels, plane.bits)
    for row, rows in ring_runs(plane.top + top, h, plane.ring):
        address = plane.address + row * plane.row + left * plane.pixel + begin
        yield Span("sram", address, rows, w, end - begin, plane.row, plane.pixel, False)


def _operand_spans(operand: Operand, written: bool) -> Iterator[Span]:
    piece = pixel_bytes(operand.c, operand.format)
    for row, rows in ring_runs(operand.top, operand.h, operand.ring):
        yield Span(
            operand.memory,
            operand.address + row * operand.row,
            rows,
            operand.w,
            piece,
            operand.row,
            operand.pixel,
            written,
        )

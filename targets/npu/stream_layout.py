"""The binary records of a stream file: commands to NumPy structured arrays and back.

docs/npu.md, section "Stream file", tells the layout. Everything is little-endian and unaligned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.npu.commands import (
    Command,
    Engine,
    Load,
    Matrix,
    Operand,
    Plane,
    Store,
    Transfer,
    Vector,
    Waits,
)

MEMORIES: Final = ("sram", "acc", "dram")
FORMATS: Final = ("i32", "f32", "f16", "c2", "c4", "c8", "u8")
MOST_WAITS: Final = len(Engine)

NO_ENGINE: Final = 255
NO_FLAG: Final = 0xFFFFFFFF
_NO_WAIT: Final = (NO_ENGINE, 0)
_NO_PLANE: Final = (0,) * 10

_HEAD: Final = [
    ("kernel", "<u4"), ("flag", "<u4"),
    ("waits", [("engine", "u1"), ("count", "<u4")], MOST_WAITS),
]  # fmt: skip
_PLANE: Final = [
    ("address", "<u4"), ("h", "<u4"), ("w", "<u4"), ("first", "<u4"), ("channels", "<u4"),
    ("row", "<u4"), ("pixel", "<u4"), ("bits", "u1"), ("ring", "<u4"), ("top", "<u4"),
]  # fmt: skip

TRANSFER = np.dtype(
    [
        *_HEAD,
        ("dram", "<u8"), ("sram", "<u4"), ("rows", "<u4"), ("columns", "<u4"), ("piece", "<u4"),
        ("dram_row", "<i8"), ("dram_column", "<i8"), ("sram_row", "<i4"), ("sram_column", "<i4"),
    ]
)  # fmt: skip
MATRIX = np.dtype(
    [
        *_HEAD,
        ("source", _PLANE), ("weights", "<u4"), ("weight_bits", "u1"), ("precision", "u1", 2),
        ("h", "<u4"), ("w", "<u4"), ("out", "<u4"), ("origin", "<i4", 2), ("stride", "<u4", 2),
        ("taps", "<u4", 2), ("dilation", "<i4", 2), ("depthwise", "u1"),
        ("accumulators", "<u4"), ("accumulate", "u1"), ("has_map", "u1"), ("bits_map", _PLANE),
    ]
)  # fmt: skip
VECTOR = np.dtype(
    [
        *_HEAD,
        ("program", "<u4"), ("h", "<u4"), ("w", "<u4"), ("c", "<u4"), ("place", "<i4", 3),
        ("window", "<i4", 2), ("operands", "u1"),
    ]
)  # fmt: skip
OPERAND = np.dtype(
    [
        ("memory", "u1"), ("format", "u1"), ("address", "<u4"), ("h", "<u4"), ("w", "<u4"),
        ("c", "<u4"), ("row", "<u4"), ("pixel", "<u4"), ("ring", "<u4"), ("top", "<u4"),
    ]
)  # fmt: skip

# Tables of a program, in the order in which they lie in the file: name, record.
TABLES: Final = (
    ("order", np.dtype("u1")),  # engine of every command, in the order of the program
    ("load", TRANSFER),
    ("store", TRANSFER),
    ("matrix", MATRIX),
    ("vector", VECTOR),
    ("operand", OPERAND),  # of all vector commands, one after the other
)

_PLANE_FIELDS = attrgetter(
    "address", "h", "w", "first", "channels", "row", "pixel", "bits", "ring", "top"
)
_TRANSFER_FIELDS = attrgetter(
    "dram", "sram", "rows", "columns", "piece", "dram_row", "dram_column", "sram_row", "sram_column"
)
_MATRIX_FIELDS = attrgetter(
    "weights", "weight_bits", "precision", "h", "w", "out", "origin", "stride", "taps", "dilation",
    "depthwise", "accumulators", "accumulate",
)  # fmt: skip
_VECTOR_FIELDS = attrgetter("program", "h", "w", "c", "place", "window")


class Unfit(ValueError):
    """A value does not fit its field; the message names it."""


def pack(commands: Sequence[Command]) -> dict[str, NDArray[Any]]:
    """Return the tables of a program's commands.

    Raises
    ------
    Unfit
        If a number is out of its field's range, or a command has more waits than engines.
    """
    rows: dict[str, list[Any]] = {name: [] for name, _ in TABLES}
    rows["order"] = [c.engine for c in commands]
    for command in commands:
        flag = NO_FLAG if command.flag is None else command.flag
        head = (command.kernel, flag, _pack_waits(command.waits))
        if isinstance(command, Transfer):
            table = "load" if command.engine == Engine.LOAD else "store"
            rows[table].append(head + _TRANSFER_FIELDS(command))
        elif isinstance(command, Matrix):
            mapped = command.bits_map
            plane = (0, _NO_PLANE) if mapped is None else (1, _PLANE_FIELDS(mapped))
            source = (_PLANE_FIELDS(command.source),)
            rows["matrix"].append(head + source + _MATRIX_FIELDS(command) + plane)
        else:
            rows["vector"].append((*head, *_VECTOR_FIELDS(command), len(command.operands)))
            rows["operand"].extend(map(_pack_operand, command.operands))
    return {name: _table(name, rows[name], record) for name, record in TABLES}


def _table(name: str, rows: list[Any], record: np.dtype[Any]) -> NDArray[Any]:
    try:
        return np.array(rows, record)
    except OverflowError as error:
        raise Unfit(f"{name}.{_misfit(rows, record)}: {error}") from None


def _misfit(rows: list[Any], record: np.dtype[Any]) -> str:
    """Return the name of the field that a number does not fit into."""
    for place, field in enumerate(record.names or ()):
        try:
            np.array([row[place] for row in rows], record[field].base)
        except OverflowError:
            return field
    raise AssertionError("every field fits")


def _pack_waits(waits: Waits) -> list[tuple[int, int]]:
    if len(waits) > MOST_WAITS:
        raise Unfit(f"{len(waits)} waits of one command; one per engine is enough")
    return [*waits, *(_NO_WAIT,) * (MOST_WAITS - len(waits))]  # a list: NumPy's rule for arrays


def _pack_operand(operand: Operand) -> tuple[int, ...]:
    return (
        MEMORIES.index(operand.memory),
        FORMATS.index(operand.format),
        operand.address, operand.h, operand.w, operand.c, operand.row, operand.pixel,
        operand.ring, operand.top,
    )  # fmt: skip


def unpack(tables: dict[str, NDArray[Any]]) -> tuple[Command, ...]:
    """Return the commands that `pack` made the tables of.

    Raises
    ------
    Unfit
        If the tables contradict each other, or a value is none of those that exist.
    """
    order = tables["order"]
    operands = iter(_operands(tables["operand"]))
    engines: dict[int, Iterator[Command]] = {
        Engine.LOAD: _transfers(Load, tables["load"]),
        Engine.STORE: _transfers(Store, tables["store"]),
        Engine.MATRIX: _matrices(tables["matrix"]),
        Engine.VECTOR: _vectors(tables["vector"], operands),
    }
    for engine, name in zip(Engine, ("load", "store", "matrix", "vector"), strict=True):
        listed = int((order == engine).sum())
        if listed != len(tables[name]):
            raise Unfit(f"{listed} {name} commands are listed, {len(tables[name])} are there")
    if len(order) != sum(len(tables[e.name.lower()]) for e in Engine):
        raise Unfit("a command is of an engine that does not exist")
    if int(tables["vector"]["operands"].sum()) != len(tables["operand"]):
        raise Unfit(f"{len(tables['operand'])} operands are not those of the vector commands")
    return tuple(next(engines[engine]) for engine in order.tolist())


def _columns(table: NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the fields of every record: waits, kernel and flag, then the others.

    A record's own ``tolist`` would leave NumPy's numbers in fields of several, which overflow.
    """
    engines, counts = table["waits"]["engine"].tolist(), table["waits"]["count"].tolist()
    waits = map(_waits, engines, counts)
    flags = (None if flag == NO_FLAG else flag for flag in table["flag"].tolist())
    head = zip(waits, table["kernel"].tolist(), flags, strict=True)
    names = [n for n in table.dtype.names or () if n not in ("kernel", "flag", "waits")]
    others = [table[name].tolist() for name in names]
    return zip(head, *others, strict=True)


_ENGINES: Final = dict(enumerate(Engine))


def _waits(engines: list[int], counts: list[int]) -> Waits:
    pairs = zip(engines, counts, strict=True)
    return tuple((_ENGINES[engine], count) for engine, count in pairs if engine != NO_ENGINE)


def _transfers(kind: type[Load] | type[Store], table: NDArray[Any]) -> Iterator[Command]:
    for row in _columns(table):
        head, *numbers = row
        yield kind(*numbers, *head)


def _matrices(table: NDArray[Any]) -> Iterator[Command]:
    for row in _columns(table):
        (head, source, weights, weight_bits, precision, h, w, out, origin, stride, taps,
         dilation, depthwise, accumulators, accumulate, has_map, bits_map) = row  # fmt: skip
        yield Matrix(
            Plane(*source), weights, weight_bits, _pair(precision), h, w, out, _pair(origin),
            _pair(stride), _pair(taps), _pair(dilation), bool(depthwise), accumulators,
            bool(accumulate), Plane(*bits_map) if has_map else None, *head,
        )  # fmt: skip


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]


def _vectors(table: NDArray[Any], operands: Iterator[Operand]) -> Iterator[Command]:
    for head, program, h, w, c, place, window, count in _columns(table):
        own = tuple(next(operands) for _ in range(count))
        y, x, channel = place
        yield Vector(program, h, w, c, own, (y, x, channel), _pair(window), *head)


def _operands(table: NDArray[Any]) -> list[Operand]:
    known = (("memory", MEMORIES), ("format", FORMATS))
    for field, names in known:
        if len(table) and int(table[field].max()) >= len(names):
            raise Unfit(f"operand with {field} {int(table[field].max())}")
    return [
        Operand(MEMORIES[memory], FORMATS[format], *fields)
        for memory, format, *fields in table.tolist()
    ]

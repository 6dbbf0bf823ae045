"""A kernel's commands before anything has an address: its loops are run once, and placed often.

Tuning lowers a network many times, and most kernels stay as they are but for where things lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from resq_tvm.schedules.npu.hazards import Access
from resq_tvm.schedules.npu.kernel_run import Base, KernelRun, Place
from resq_tvm.targets.npu.commands import (
    Command,
    Engine,
    Load,
    Matrix,
    Plane,
    Store,
    VectorProgram,
    Waits,
)

_BITS: Final = 44  # of an offset; the bits above are the number of the base
_MASK: Final = (1 << _BITS) - 1


@dataclass(frozen=True)
class Entry:
    """A command with what it reads and writes; addresses are numbers of bases with offsets."""

    command: Command
    reads: Sequence[Access]
    writes: Sequence[Access]


class Template:
    """The commands of one kernel.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        What `resq_tvm.schedules.npu.emit.emit_npu` wrote.
    places : sequence of Place
        Of the function's parameters; only their memories count, and which are constants.
    bands : int
        How many bands of rows are told apart; 0: it runs whole.

    Attributes
    ----------
    buffers : list of (int, str, int)
        Of tiles: number of the base, memory, bytes. Parameters are the bases before them.
    kept : set of int
        Bases of buffers that are loaded before the first band, for all of them.
    turns : list of list of Entry
        The commands of every band; those of the first begin with what is loaded once.
    programs : list of VectorProgram
        Those that ``Vector.program`` numbers.
    """

    def __init__(self, func: Any, places: Sequence[Place], bands: int) -> None:
        self.entries: list[Entry] = []
        self.programs: list[VectorProgram] = []
        self._latest: Any = None  # bases, kernel and programs of what was placed last
        self._placed: dict[int, list[Entry]] = {}  # by turn
        recorder = Recorder(self)
        run = KernelRun(recorder, func, 0, places)
        self.name = run.name
        for number, (var, place) in enumerate(zip(func.params, places, strict=True)):
            run.bases[var] = _base(number, place.memory, place.key is not None)
        self.buffers: list[tuple[int, str, int]] = []
        numbers: dict[Any, int] = {}
        for buffer, memory, size in run.buffers():
            number = numbers[buffer] = len(run.bases)
            run.bases[buffer] = _base(number, memory, True)
            self.buffers.append((number, memory, size))
        self.kept: set[int] = set()
        self.turns: list[list[Entry]] = []
        if bands == 0:
            run.execute()
            self._end_turn()
            return
        run.split(bands)
        self.kept = {numbers[buffer] for buffer in run.kept()}
        for band in range(bands):
            run.band(band)
            self._end_turn()

    def _end_turn(self) -> None:
        self.turns.append(self.entries)
        self.entries = []

    def placed(
        self,
        turn: int,
        bases: tuple[Base, ...],
        kernel: int,
        programs: dict[VectorProgram, int],
    ) -> list[Entry]:
        """Return the commands of a turn with addresses, but without waits.

        Parameters
        ----------
        turn : int
            Which band.
        bases : tuple of Base
            Of parameters and buffers.
        kernel : int
            The kernel's number, for the commands to carry.
        programs : dict
            Vector programs known so far → their numbers; it grows.
        """
        numbers = tuple(programs.setdefault(p, len(programs)) for p in self.programs)
        if self._latest != (bases, kernel, numbers):
            self._latest, self._placed = (bases, kernel, numbers), {}
        if turn not in self._placed:
            self._placed[turn] = [_place(e, bases, kernel, numbers) for e in self.turns[turn]]
        return self._placed[turn]


def _place(entry: Entry, bases: Sequence[Base], kernel: int, numbers: Sequence[int]) -> Entry:
    """Return an entry with addresses, and with the numbers of the kernel and its programs."""

    def at(address: int) -> int:
        return bases[address >> _BITS].address + (address & _MASK)

    def accesses(found: Sequence[Access]) -> list[Access]:
        return [
            Access(bases[a.start >> _BITS].key, at(a.start), at(a.start) + a.end - a.start)
            for a in found
        ]

    def plane(found: Plane) -> Plane:
        return replace(found, address=at(found.address))

    command = entry.command
    flag = None if command.flag is None else at(command.flag)
    made: Command
    if isinstance(command, Load | Store):
        dram, sram = at(command.dram), at(command.sram)
        made = replace(command, dram=dram, sram=sram, kernel=kernel, flag=flag)
    elif isinstance(command, Matrix):
        bits = command.bits_map
        made = replace(
            command,
            source=plane(command.source),
            weights=at(command.weights),
            accumulators=at(command.accumulators),
            bits_map=None if bits is None else plane(bits),
            kernel=kernel,
            flag=flag,
        )
    else:
        operands = tuple(replace(o, address=at(o.address)) for o in command.operands)
        number = numbers[command.program]
        made = replace(command, program=number, operands=operands, kernel=kernel, flag=flag)
    return Entry(made, accesses(entry.reads), accesses(entry.writes))


class Recorder:
    """Stands where an assembler does while a kernel's loops are run."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self.hazards = self.commands = self
        self._accesses: tuple[Sequence[Access], Sequence[Access]] = ((), ())

    def command(self, _engine: Engine, reads: Sequence[Access], writes: Sequence[Access]) -> Waits:
        """Keep what the next command reads and writes."""
        self._accesses = (reads, writes)
        return ()

    def append(self, command: Command) -> None:
        """Keep a command."""
        self._template.entries.append(Entry(command, *self._accesses))

    def intern(self, program: VectorProgram) -> int:
        """Return the template's number of a vector program."""
        known = self._template.programs
        if program not in known:
            known.append(program)
        return known.index(program)


def _base(number: int, memory: str, written: bool) -> Base:
    return Base(memory, number << _BITS, number if written else None)

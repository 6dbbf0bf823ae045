"""Cascades: kernels that take turns band by band, so that tensors between them stay in SRAM.

A tensor that is too large for the SRAM stays there nevertheless if its readers follow its maker
closely: a circular buffer holds the rows that are still to be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from resq_tvm.passes.npu.arrangement import Group
from resq_tvm.passes.npu.items import Item, ProgramItems
from resq_tvm.passes.npu.memory import Arena, Value, keep_on_chip
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.bands import (
    Stage,
    Turn,
    can_run_by_bands,
    order_of_bands,
    rows_between,
)
from resq_tvm.schedules.npu.context import aligned
from resq_tvm.schedules.npu.emit import Footprint
from resq_tvm.schedules.npu.rules import decide_bands
from resq_tvm.schedules.npu.tensors import channel_bytes
from resq_tvm.schedules.spec import FusedKernel, TensorSpec
from resq_tvm.targets.preset import Target

LENGTHS: Final = (16, 4, 8, 32)  # most kernels of a cascade; the first one unless it is measured
# Bands ahead, and rows of a band of the kernel with the most rows; the first that fit are taken.
_ATTEMPTS: Final = tuple((ahead, rows) for ahead in (1, 0) for rows in (16, 8, 4, 2, 1))


@dataclass(frozen=True)
class Cascade:
    """Items that take turns.

    Attributes
    ----------
    group : Group
        Which, and how.
    turns : tuple of (int, int)
        Item (counted from the first) and its band, in order.
    decisions : tuple of Decision
        Of the items.
    rings : dict
        Variable → rows that are there at once, of the tensors that stay in SRAM.
    saved : int
        Bytes that need not move between DRAM and SRAM.
    """

    group: Group
    turns: tuple[Turn, ...]
    decisions: tuple[Decision, ...]
    rings: Mapping[Any, int]
    saved: int

    @property
    def first(self) -> int:
        """The first item's number."""
        return self.group.first

    @property
    def last(self) -> int:
        """The last item's number."""
        return self.group.last


@dataclass
class Findings:
    """What planners of a program find that does not depend on where the state lies.

    Attributes
    ----------
    sized : dict
        Item, rows, what stays in SRAM, and tiles wanted → how it runs by bands and what it takes.
    stages : dict
        Item and rows → stage.
    numbers : dict
        Variable → number: a quick key.
    passing : dict
        First and last item → what is made and read among them alone.
    turns : dict
        Group → turns, and how many rows of every tensor are there at once.
    """

    sized: dict[Any, tuple[Decision, Footprint] | None] = field(default_factory=dict)
    stages: dict[tuple[int, int], Stage] = field(default_factory=dict)
    numbers: dict[Any, int] = field(default_factory=dict)
    passing: dict[tuple[int, int], dict[Any, Value]] = field(default_factory=dict)
    turns: dict[Group, tuple[tuple[Turn, ...], Mapping[Any, int]]] = field(default_factory=dict)


class Planner:
    """Finds cascades of a program.

    Parameters
    ----------
    program : ProgramItems
        Its tensors have no places on chip yet, but for state.
    target : Target
    arena : (int, int)
        Addresses of the SRAM for tensors.
    working : int
        Bytes of the SRAM for constants and tiles.
    findings : Findings
        Of planners of the same program for the same target; they grow.
    """

    def __init__(
        self,
        program: ProgramItems,
        target: Target,
        arena: tuple[int, int],
        working: int,
        findings: Findings,
    ) -> None:
        self.program, self.target, self.arena, self.working = program, target, arena, working
        self._viewed = {program.root(v) for v in program.views}
        self._found = findings
        self._cascades: dict[tuple[int, int], Cascade | None] = {}
        self._attempts: dict[int, int] = {}  # first item → what the cascade before came to
        self._outside = self._left_outside()

    def plan(self, longest: int) -> list[Cascade]:
        """Return cascades that do not overlap and save as much as possible, in order.

        Of several that save as much, long ones: they do more of what takes DRAM and of what takes
        products at the same time.

        Parameters
        ----------
        longest : int
            Kernels of a cascade at most.
        """
        found: list[Cascade] = []
        for first, end in self._runs():
            found += self._best(first, end, longest)
        return found

    def _left_outside(self) -> set[Any]:
        """Return the tensors that would go through DRAM without cascades."""
        values = {v: replace(value) for v, value in self.program.values.items()}
        keep_on_chip(values.values(), Arena(*self.arena))
        return {v for v, value in values.items() if value.memory == "dram"}

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Yield runs of items that could take turns: the first, and the one behind the last."""
        items = self.program.items
        first = 0
        for index in range(len(items) + 1):
            if index < len(items) and self._may_take_turns(items[index]):
                continue
            if index - first > 1:
                yield first, index
            first = index + 1

    @staticmethod
    def _may_take_turns(item: Item) -> bool:
        return item.call is None and item.kernel is not None and can_run_by_bands(item.kernel)

    def _best(self, first: int, end: int, longest: int) -> list[Cascade]:
        """Return the cascades among these items that save most altogether."""
        best: list[tuple[int, tuple[Cascade, ...]]] = [(0, ())]
        ending: dict[int, list[Cascade]] = {}
        for begin in range(first, end - 1):
            for last in range(begin + 1, min(begin + longest, end)):
                if (begin, last) not in self._cascades:
                    self._cascades[begin, last] = self.cascade(begin, last)
                cascade = self._cascades[begin, last]
                if cascade is None:
                    break
                ending.setdefault(last, []).append(cascade)
        for index in range(first, end):
            choices = [best[-1]]
            for cascade in ending.get(index, []):
                saved, before = best[cascade.first - first]
                choices.append((saved + cascade.saved, (*before, cascade)))
            best.append(max(choices, key=lambda c: (c[0], _links(c[1]))))
        return list(best[-1][1])

    def cascade(self, first: int, last: int) -> Cascade | None:
        """Return the cascade of items ``first`` to ``last`` with the largest bands that fit."""
        # What does not fit does not fit with one more kernel either.
        for attempt in range(self._attempts.get(first, 0), len(_ATTEMPTS)):
            ahead, rows = _ATTEMPTS[attempt]
            found = self.banded(Group(first, last, rows, ahead))
            if found is not None:
                self._attempts[first] = attempt
                return found
        return None

    def banded(
        self, group: Group, tiles: Mapping[int, Decision] = MappingProxyType({})
    ) -> Cascade | None:
        """Return the cascade of a group, if it can run so and fits.

        Parameters
        ----------
        group : Group
        tiles : mapping
            Item → the columns and channels that its tiles have at most.
        """
        if not 0 <= group.first < group.last < len(self.program.items):
            return None
        items = self.program.items[group.first : group.last + 1]
        if not all(map(self._may_take_turns, items)):
            return None
        return self._with_bands(group, items, self._passing(group.first, group.last), tiles)

    def _passing(self, first: int, last: int) -> dict[Any, Value]:
        """Return the tensors that are made and read among these items alone."""
        key = (first, last)
        if key not in self._found.passing:
            self._found.passing[key] = self._find_passing(first, last)
        return self._found.passing[key]

    def _find_passing(self, first: int, last: int) -> dict[Any, Value]:
        return {
            var: value
            for var, value in self.program.values.items()
            if not isinstance(var, str)
            and value.movable
            and not value.fixed
            and value.readers > 0
            and first <= value.first
            and value.last <= last
            and var not in self._viewed
        }

    def _with_bands(
        self,
        group: Group,
        items: Sequence[Item],
        passing: Mapping[Any, Value],
        tiles: Mapping[int, Decision],
    ) -> Cascade | None:
        """Return the cascade in bands of as large a part of every plane, if it fits."""
        first = group.first
        part = group.rows / max(i.kernel.h for i in items if i.kernel is not None)
        stages, decisions = [], []
        kept = widest = 0
        room = self.arena[1] - self.arena[0]
        root = self.program.root
        for number, item in enumerate(items):
            kernel = item.kernel
            assert kernel is not None
            rows = max(1, int(kernel.h * part))
            reads, writes = tuple(map(root, item.reads)), tuple(map(root, item.results))
            inside = {
                s.name
                for s, v in zip((*kernel.inputs, *kernel.outputs), (*reads, *writes), strict=True)
                if v in passing
            }
            wanted = tiles.get(first + number)
            sized = self._sized(first + number, kernel, rows, frozenset(inside), wanted)
            if sized is None:
                return None
            decision, taken = sized
            kept, widest = kept + taken.kept, max(widest, taken.passing)
            stages.append(self._stage(first + number, item, rows))
            decisions.append(decision)
        if kept + widest > self.working or self._least_rings(items, passing, part) > room:
            return None
        if group not in self._found.turns:
            order = order_of_bands(stages, group.ahead)
            self._found.turns[group] = tuple(order), rows_between(stages, order)
        turns, between = self._found.turns[group]
        rings = {v: min(between[self._number(v)], value.spec.h) for v, value in passing.items()}
        if sum(_ring_bytes(value.spec, rings[v]) for v, value in passing.items()) > room:
            return None
        saved = sum(
            value.nbytes * (1 + value.readers) for v, value in passing.items() if v in self._outside
        )
        return Cascade(group, turns, tuple(decisions), rings, saved)

    def _least_rings(self, items: Sequence[Item], passing: Mapping[Any, Value], part: float) -> int:
        """Return the bytes that circular buffers take at least: a band of each tensor."""
        root = self.program.root
        made = {
            root(v): item.kernel.h
            for item in items
            for v in item.results
            if item.kernel is not None
        }
        return sum(
            _ring_bytes(value.spec, min(max(1, int(made[v] * part)), value.spec.h))
            for v, value in passing.items()
        )

    def _stage(self, index: int, item: Item, rows: int) -> Stage:
        """Return an item in bands of so many rows; its tensors are numbers: quick keys."""
        key = (index, rows)
        if key not in self._found.stages:
            assert item.kernel is not None
            reads, writes = (
                tuple(self._number(self.program.root(v)) for v in tensors)
                for tensors in (item.reads, item.results)
            )
            self._found.stages[key] = Stage(item.kernel, rows, reads, writes)
        return self._found.stages[key]

    def _number(self, var: Any) -> int:
        return self._found.numbers.setdefault(var, len(self._found.numbers))

    def _sized(
        self,
        index: int,
        kernel: FusedKernel,
        rows: int,
        inside: frozenset[str],
        wanted: Decision | None,
    ) -> tuple[Decision, Footprint] | None:
        """Return how a kernel runs by bands and what it takes; None if it cannot."""
        key = (index, rows, inside, wanted)
        if key not in self._found.sized:
            self._found.sized[key] = decide_bands(
                _resident(kernel, inside), rows, self.target, wanted
            )
        return self._found.sized[key]


def _links(cascades: Sequence[Cascade]) -> int:
    return sum(c.last - c.first for c in cascades)


def _resident(kernel: FusedKernel, names: frozenset[str]) -> FusedKernel:
    """Return a kernel of whose tensors these stay in SRAM."""

    def lay(spec: TensorSpec) -> TensorSpec:
        return replace(spec, memory="sram") if spec.name in names else spec

    return replace(
        kernel,
        inputs=tuple(map(lay, kernel.inputs)),
        outputs=tuple(map(lay, kernel.outputs)),
    )


def _ring_bytes(spec: TensorSpec, rows: int) -> int:
    return aligned(rows * spec.w * int(channel_bytes(spec, spec.c)))


def place_cascades(program: ProgramItems, cascades: Sequence[Cascade], arena: Arena) -> None:
    """Give what passes through cascades its places, and all their tensors longer lives.

    Kernels of a cascade run at the same time: what one of them makes or reads is there from the
    first to the last.

    Parameters
    ----------
    program : ProgramItems
    cascades : sequence of Cascade
    arena : Arena
        The part of SRAM that is for tensors; nothing else was placed yet in the cascades' time.
    """
    for cascade in cascades:
        for value in program.values.values():
            if cascade.first < value.first <= cascade.last:
                value.first = cascade.first
            if cascade.first <= value.last < cascade.last:
                value.last = cascade.last
        for var, rows in cascade.rings.items():
            value = program.values[var]
            if rows < value.spec.h:
                value.spec = replace(value.spec, ring=rows)
            address = arena.place(value.nbytes, value.first, value.last)
            assert address is not None  # the planner counted
            value.memory, value.address = "sram", address

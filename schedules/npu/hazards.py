"""Which commands must have ended before another may begin.

Engines run their commands in order, so that a command waits for at most one count per other engine:
that of the last command whose bytes overlap with its own where one of the two writes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final

from resq_tvm.targets.npu.commands import Engine, Waits

Counts = dict[Engine, int]
SCRATCH: Final = ("sram", "acc")  # memories of a kernel's own tiles


@dataclass(frozen=True)
class Access:
    """Bytes ``start`` to ``end`` of a tensor (its key) or of a memory's scratch part."""

    key: Hashable
    start: int
    end: int


def _raise(counts: Counts, engine: Engine, count: int) -> None:
    if counts.get(engine, 0) < count:
        counts[engine] = count


def _merge(counts: Counts, more: Counts) -> None:
    for engine, count in more.items():
        _raise(counts, engine, count)


@dataclass(slots=True)
class _Interval:
    """Bytes with who wrote and read them last."""

    start: int
    end: int
    written: Counts
    read: Counts = field(default_factory=dict)

    def overlaps(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end

    def outside(self, start: int, end: int) -> list[_Interval]:
        """Return what is left without ``start`` to ``end``."""
        pieces = ((self.start, min(self.end, start)), (max(self.start, end), self.end))
        return [_Interval(a, b, dict(self.written), dict(self.read)) for a, b in pieces if a < b]


class _Scratch:
    """A memory that tiles of many kernels share: intervals that do not overlap.

    Bytes are written before they are read.
    """

    def __init__(self) -> None:
        self._intervals: list[_Interval] = []

    def read(self, start: int, end: int, engine: Engine, count: int) -> Counts:
        waits: Counts = {}
        for interval in self._intervals:
            if interval.start < end and start < interval.end:
                for writer, number in interval.written.items():
                    if waits.get(writer, 0) < number:
                        waits[writer] = number
                interval.read[engine] = count  # counts only rise
        return waits

    def write(self, start: int, end: int, engine: Engine, count: int) -> Counts:
        waits: Counts = {}
        kept = []
        for interval in self._intervals:
            if interval.start >= end or start >= interval.end:
                kept.append(interval)
                continue
            _merge(waits, interval.written)
            _merge(waits, interval.read)
            if interval.start < start or end < interval.end:
                kept += interval.outside(start, end)
        kept.append(_Interval(start, end, {engine: count}))
        self._intervals = kept
        return waits


class _Tensor:
    """A tensor's writes in order; its reads only as counts: bytes are written once, then read."""

    def __init__(self, memory: str, start: int, end: int, birth: Counts) -> None:
        self.memory, self.start, self.end = memory, start, end
        self.birth = birth  # who used these bytes before
        self.writes: dict[Engine, list[tuple[int, int, int]]] = {}
        self.reads: Counts = {}

    def read(self, start: int, end: int, engine: Engine, count: int) -> Counts:
        _raise(self.reads, engine, count)
        waits: Counts = {}
        for writer, writes in self.writes.items():
            for first, last, number in reversed(writes):
                if first < end and start < last:
                    waits[writer] = number
                    break
        return waits

    def write(self, start: int, end: int, engine: Engine, count: int) -> Counts:
        self.writes.setdefault(engine, []).append((start, end, count))
        return dict(self.birth)

    def drained(self) -> _Tensor:
        """Return the tensor after everything has ended."""
        return type(self)(self.memory, self.start, self.end, {})

    def last(self) -> Counts:
        """Return the counts after which nobody uses the tensor."""
        counts = dict(self.reads)
        _merge(counts, self.birth)
        for engine, writes in self.writes.items():
            _raise(counts, engine, writes[-1][2])
        return counts


class _Passing(_Tensor):
    """A tensor that is read while it is written, perhaps in a circular buffer."""

    def __init__(self, memory: str, start: int, end: int, birth: Counts) -> None:
        super().__init__(memory, start, end, birth)
        self._bytes = _Scratch()
        self._last: Counts = {}

    def read(self, start: int, end: int, engine: Engine, count: int) -> Counts:
        _raise(self._last, engine, count)
        return self._bytes.read(start, end, engine, count)

    def write(self, start: int, end: int, engine: Engine, count: int) -> Counts:
        _raise(self._last, engine, count)
        waits = dict(self.birth)
        _merge(waits, self._bytes.write(start, end, engine, count))
        return waits

    def last(self) -> Counts:
        counts = dict(self.birth)
        _merge(counts, self._last)
        return counts


class Hazards:
    """Follows every access of a program."""

    def __init__(self) -> None:
        self.counts: Counts = dict.fromkeys(Engine, 0)
        self._tensors: dict[Hashable, _Tensor] = {}
        self._former: dict[str, list[_Interval]] = {}  # bytes of tensors that are no more
        self._scratch = {memory: _Scratch() for memory in SCRATCH}
        self._waited: dict[Engine, Counts] = {engine: {} for engine in Engine}

    def declare(
        self, key: Hashable, memory: str, start: int, end: int, passing: bool = False
    ) -> None:
        """Make a tensor known; whoever used its bytes before has to be done with them.

        Parameters
        ----------
        key : hashable
        memory : str
            ``"dram"`` or ``"sram"``.
        start, end : int
            Addresses.
        passing : bool
            It is read while it is written, and its bytes may be written again.
        """
        former = self._former.setdefault(memory, [])
        for old, tensor in list(self._tensors.items()):
            if tensor.memory == memory and tensor.start < end and start < tensor.end:
                former.append(_Interval(tensor.start, tensor.end, tensor.last()))
                del self._tensors[old]
        birth: Counts = {}
        kept = []
        for interval in former:
            if interval.overlaps(start, end):
                _merge(birth, interval.written)
                kept += interval.outside(start, end)
            else:
                kept.append(interval)
        self._former[memory] = kept
        kind = _Passing if passing else _Tensor
        self._tensors[key] = kind(memory, start, end, birth)

    def drain(self) -> None:
        """Note that everything so far has ended."""
        for key, old in self._tensors.items():
            self._tensors[key] = old.drained()
        self._former = {}
        self._scratch = {memory: _Scratch() for memory in SCRATCH}

    def command(self, engine: Engine, reads: Iterable[Access], writes: Iterable[Access]) -> Waits:
        """Count a command; return what it has to wait for.

        Parameters
        ----------
        engine : Engine
        reads, writes : iterable of Access
        """
        self.counts[engine] += 1
        count = self.counts[engine]
        waits: Counts = {}
        for access in reads:
            _merge(waits, self._place(access).read(access.start, access.end, engine, count))
        for access in writes:
            _merge(waits, self._place(access).write(access.start, access.end, engine, count))
        waits.pop(engine, None)
        known = self._waited[engine]
        fresh = {e: n for e, n in waits.items() if known.get(e, 0) < n}
        _merge(known, fresh)
        return tuple(sorted(fresh.items()))

    def _place(self, access: Access) -> _Scratch | _Tensor:
        if isinstance(access.key, str) and access.key in self._scratch:
            return self._scratch[access.key]
        return self._tensors[access.key]

"""Where tensors lie: lifetimes, addresses in DRAM, and which of them stay in SRAM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from resq_tvm.schedules.npu.context import aligned
from resq_tvm.schedules.npu.tensors import tensor_bytes
from resq_tvm.schedules.spec import TensorSpec


@dataclass(eq=False)
class Value:
    """A tensor of a program.

    Attributes
    ----------
    spec : TensorSpec
    first, last : int
        Numbers of the item that makes it and of the last one that reads it.
    fixed : bool
        It has a place in DRAM that outlives the program: frames, outputs, state.
    movable : bool
        Kernels of the NPU alone make and read it, so that it may stay in SRAM.
    readers : int
    memory, address
        Its place, once it has one.
    """

    spec: TensorSpec
    first: int
    last: int
    fixed: bool = False
    movable: bool = True
    readers: int = 0
    memory: str = "dram"
    address: int = -1

    @property
    def nbytes(self) -> int:
        """Bytes in the machine's memory."""
        return tensor_bytes(self.spec)


@dataclass
class Arena:
    """A memory that is handed out by address and lifetime.

    Attributes
    ----------
    begin, end : int
        Addresses; ``end`` None: it grows as it must.
    """

    begin: int
    end: int | None = None
    taken: list[tuple[int, int, int, int]] = field(default_factory=list)
    top: int = 0

    def place(self, nbytes: int, first: int, last: int) -> int | None:
        """Return the lowest address that is free from ``first`` to ``last``, or None."""
        size = aligned(nbytes)
        address = self.begin
        rivals = sorted(t for t in self.taken if t[2] <= last and first <= t[3])
        for start, stop, _, _ in rivals:
            if address + size <= start:
                break
            address = max(address, stop)
        if self.end is not None and address + size > self.end:
            return None
        self.taken.append((address, address + size, first, last))
        self.top = max(self.top, address + size)
        return address


def keep_on_chip(values: Iterable[Value], arena: Arena) -> None:
    """Let tensors stay in SRAM: those that save the most transfers for the time they take room.

    Maps come first: they are small, and commands depend on them.

    Parameters
    ----------
    values : iterable of Value
        Those that stay get their place; the others are left alone.
    arena : Arena
        The part of SRAM that is for tensors.
    """

    def worth(value: Value) -> tuple[bool, float, int]:
        time = 1 + value.last - value.first
        return value.spec.dtype == "uint8", (1 + value.readers) / time, value.nbytes

    for value in sorted(
        (v for v in values if v.movable and not v.fixed and v.address < 0), key=worth, reverse=True
    ):
        address = arena.place(value.nbytes, value.first, value.last)
        if address is not None:
            value.memory, value.address = "sram", address


def spill(values: Iterable[Value], arena: Arena) -> None:
    """Give every tensor that has no place yet one in DRAM."""
    for value in sorted((v for v in values if v.address < 0), key=_size, reverse=True):
        address = arena.place(value.nbytes, value.first, value.last)
        assert address is not None  # it grows
        value.address = address


def _size(value: Any) -> int:
    return int(value.nbytes)

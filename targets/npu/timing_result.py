"""What the cycle model tells of a program: totals, engines, kernels, every command.

All figures are simulated. docs/npu.md, section "Cycle model", tells what they count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.npu.commands import Engine

Ints = NDArray[np.int64]

# Why an engine stands still: `CommandTimings.reason` is an index. "bus": the other engine has it.
REASONS: Final = ("load", "store", "matrix", "vector", "issue", "nothing", "bus", "done")


@dataclass(frozen=True, eq=False)
class CommandTimings:
    """What became of every command: arrays in the order of the program, times in cycles.

    Attributes
    ----------
    engine, kernel : array of int
    issued : array of int
        When the command entered its engine's queue.
    start, free : array of int
        The engine works on it from ``start`` to before ``free``.
    end : array of int
        When commands that wait for it may begin: ``free``, for transfers plus the latency.
    stall : array of int
        Cycles that the engine stood still before it.
    reason : array of int
        Why: index into `REASONS`.
    contention : array of int
        Cycles between ``start`` and ``free`` in which the other DMA engine had the bus.
    work : array of int
        Bytes on the bus of a transfer, products of a matrix command, 0 of a vector command.
    skipped : array of bool
        Whether the engine did no more than read its flag.
    """

    engine: Ints
    kernel: Ints
    issued: Ints
    start: Ints
    free: Ints
    end: Ints
    stall: Ints
    reason: Ints
    contention: Ints
    work: Ints
    skipped: NDArray[np.bool_]


@dataclass(frozen=True)
class EngineTiming:
    """An engine over the whole program; ``busy`` and ``stalls`` sum up to all but the host's time.

    Attributes
    ----------
    commands : int
    busy : int
        Cycles in which it worked.
    stalls : dict of str to int
        Cycles in which it stood still: waiting for a command of another engine (``load store matrix
        vector``), for the command processor (``issue``), for the bus (``bus``), or with nothing
        left to do (``done``).
    """

    commands: int
    busy: int
    stalls: dict[str, int]


@dataclass(frozen=True)
class KernelTurn:
    """One of the times that a kernel runs.

    Attributes
    ----------
    kernel : int
        Index into the stream's kernels.
    first, last : int
        Cycles of its first start and its last end.
    begin, end : int
        The time that counts as its own: from when all turns before it have ended until it has, too.
    """

    kernel: int
    first: int
    last: int
    begin: int
    end: int


@dataclass(frozen=True)
class KernelTiming:
    """One kernel of a program, all turns together.

    Attributes
    ----------
    kernel : int
        Index into the stream's kernels.
    name : str
    turns : int
        How often it runs in the program.
    first, last : int
        Cycles of its first start and its last end.
    span : int
        Cycles from the first start to the last end of a turn; of all turns.
    cycles : int
        By how much its commands move the latest end so far, in the order of the stream; these sum
        up to the program's cycles without the host's.
    commands : int
    busy : dict of str to int
        Engine → cycles in which it worked for this kernel.
    bounds : dict of str to int
        Cycles that the kernel takes if one thing alone counts: ``matrix``, ``vector``, ``dram``
        (its bytes at full bandwidth) or ``issue`` (the command processor).
    macs : int
        Products, those that are left out included.
    dram_read, dram_written : int
        Bytes on the bus.
    """

    kernel: int
    name: str
    turns: int
    first: int
    last: int
    span: int
    cycles: int
    commands: int
    busy: dict[str, int]
    bounds: dict[str, int]
    macs: int
    dram_read: int
    dram_written: int

    @property
    def bound_by(self) -> str:
        """What the kernel cannot be faster than: the largest of ``bounds``."""
        return max(self.bounds, key=self.bounds.__getitem__)

    @property
    def macs_per_cycle(self) -> float:
        """Products per cycle of ``cycles``."""
        return self.macs / self.cycles if self.cycles else 0.0

    def utilisation(self, engine: Engine) -> float:
        """Return the part of the kernel's span in which an engine worked for it, 0 to 1."""
        return self.busy[engine.name.lower()] / self.span if self.span else 0.0


@dataclass(frozen=True)
class HostTiming:
    """A call of a host function: when the NPU began to wait for it, and for how many cycles."""

    function: str
    start: int
    cycles: int


@dataclass(frozen=True, eq=False)
class Timing:
    """How long a program takes. All figures are simulated.

    Attributes
    ----------
    program, npu : str
    clock_hz : float
    cycles : int
        From the first command to the last result, the host's calls included.
    commands : CommandTimings
    engines : dict of str to EngineTiming
        ``load store matrix vector``.
    kernels : tuple of KernelTiming
        In the order of their first commands.
    turns : tuple of KernelTurn
        In the order of their first commands.
    host : tuple of HostTiming
    dram_read, dram_written : int
        Bytes on the bus.
    state_read, state_written : int
        Those of them that are residual state.
    """

    program: str
    npu: str
    clock_hz: float
    cycles: int
    commands: CommandTimings
    engines: dict[str, EngineTiming]
    kernels: tuple[KernelTiming, ...]
    turns: tuple[KernelTurn, ...]
    host: tuple[HostTiming, ...]
    dram_read: int
    dram_written: int
    state_read: int
    state_written: int

    @property
    def seconds(self) -> float:
        """Simulated seconds."""
        return self.cycles / self.clock_hz

    @property
    def host_cycles(self) -> int:
        """Cycles in which the NPU waits for the host."""
        return sum(call.cycles for call in self.host)

    @property
    def macs(self) -> int:
        """Products of all kernels."""
        return sum(kernel.macs for kernel in self.kernels)

    @property
    def bounds(self) -> dict[str, int]:
        """Cycles that the program takes if one thing alone counts, as of `KernelTiming`."""
        names = ("matrix", "vector", "dram", "issue")
        return {name: sum(k.bounds[name] for k in self.kernels) for name in names}

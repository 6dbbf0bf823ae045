"""The pipeline model (pipeline.c) from Python: cycles of a trace, or of a piece of code."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import TargetError
from resq_tvm.targets.emulated.cores import Core
from resq_tvm.targets.emulated.instructions import Instruction, decode, disassemble
from resq_tvm.targets.emulated.native import host_library

# What trace.h and pipeline.c fix.
NO_REGISTER = 255
MOST_SOURCES, MOST_RESULTS, MOST_USES = 8, 6, 4
COUNTERS = 5
REGIONS = 256
_DEFINE, _REPEAT, _BEGIN, _END = 0x80, 0x81, 0x82, 0x83
_MOST_UNKNOWN = 1 << 16
_NONE = 0xFFFFFFFF

# Accumulations of one number forward to each other.
_CHAINS = {
    kind: n
    for n, kind in enumerate(("mla", "mlal", "qmla", "dot", "adalp", "aba", "sra", "fma"), 1)
}


class _Use(ctypes.Structure):
    _fields_ = (("ports", ctypes.c_uint16), ("cycles", ctypes.c_uint8), ("count", ctypes.c_uint8))


class _Op(ctypes.Structure):
    _fields_ = (
        ("sources", ctypes.c_uint8),
        ("source", ctypes.c_uint8 * MOST_SOURCES),
        ("accumulator", ctypes.c_uint8),
        ("results", ctypes.c_uint8),
        ("result", ctypes.c_uint8 * MOST_RESULTS),
        ("latency", ctypes.c_uint8 * MOST_RESULTS),
        ("chain", ctypes.c_uint8),
        ("chain_latency", ctypes.c_uint8),
        ("slots", ctypes.c_uint8),
        ("fence", ctypes.c_uint8),
        ("uses", ctypes.c_uint8),
        ("use", _Use * MOST_USES),
    )


class _Core(ctypes.Structure):
    _fields_ = (
        ("in_order", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("retire_width", ctypes.c_int32),
        ("window", ctypes.c_int32),
        ("ports", ctypes.c_int32),
        ("taken_branch", ctypes.c_int32),
        ("mispredict", ctypes.c_int32),
        ("miss", ctypes.c_int32 * 2),
    )


@dataclass(frozen=True)
class BlockCount:
    """What became of a basic block in a region, in one call of its function.

    Attributes
    ----------
    call : int
        Number in the list of `Simulator.calls`.
    address : int
        Where it began in the program's memory.
    length : int
        Instructions.
    executions : int
    cycles : int
        Of all executions.
    bound : float
        Cycles that the core's ports and width need for all executions, if nothing ever waits.
    """

    call: int
    address: int
    length: int
    executions: int
    cycles: int
    bound: float


@dataclass(frozen=True)
class Call:
    """A function that was called from a certain place: a node of the tree of calls.

    Attributes
    ----------
    caller : int or None
        The caller's number in the list of `Simulator.calls`, always a lower one; None: the region
        began there.
    site : int
        The address of the block that calls; 0 without a caller.
    """

    caller: int | None
    site: int


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(host_library("pipeline", ("pipeline.c", "trace.h"))))
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    declarations = {
        "new": (pointer, [ctypes.POINTER(_Core)]),
        "free": (None, [pointer]),
        "op": (None, [pointer, u32, ctypes.POINTER(_Op)]),
        "scan": (u32, [pointer, pointer, ctypes.c_size_t, pointer, u32]),
        "run": (ctypes.c_int64, [pointer, pointer, ctypes.c_size_t]),
        "block": (ctypes.c_int, [pointer, u32, pointer, pointer, pointer]),
        "slots": (u32, [pointer, u32]),
        "count": (ctypes.c_int, [pointer, u32, u32, pointer, pointer]),
        "contexts": (u32, [pointer]),
        "context": (None, [pointer, u32, pointer]),
        "region": (u64, [pointer, u32, pointer]),
        "stays": (u32, [pointer]),
        "stay": (u32, [pointer, u32, ctypes.POINTER(u64)]),
        "maps": (ctypes.c_char_p, [pointer, ctypes.POINTER(u64)]),
        "threads": (ctypes.c_int, [pointer]),
        "effort": (None, [pointer, pointer]),
    }
    for name, (result, arguments) in declarations.items():
        function = getattr(library, f"resq_pipeline_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class Simulator:
    """Counts the cycles of a trace on a core.

    Parameters
    ----------
    core : Core
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._library = _library()
        description = _Core(
            core.in_order,
            core.width,
            core.width,
            core.window,
            len(core.ports),
            core.taken_branch,
            core.mispredict,
            (ctypes.c_int32 * 2)(*core.misses),
        )
        self._handle = ctypes.c_void_p(self._library.resq_pipeline_new(ctypes.byref(description)))
        self._rest = np.empty(0, np.uint32)
        self._unknown = np.empty(_MOST_UNKNOWN, np.uint32)

    def close(self) -> None:
        """Free its memory; it cannot be used afterwards."""
        if self._handle:
            self._library.resq_pipeline_free(self._handle)
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def feed(self, trace: NDArray[np.uint32]) -> None:
        """Take in the next part of a trace (trace.h).

        Raises
        ------
        TargetError
            If the trace is damaged, or binutils for aarch64 are absent.
        """
        words = np.concatenate((self._rest, trace)) if len(self._rest) else trace
        words = np.ascontiguousarray(words, np.uint32)
        at = words.ctypes.data
        count = self._library.resq_pipeline_scan(
            self._handle, at, len(words), self._unknown.ctypes.data, _MOST_UNKNOWN
        )
        self._learn(np.unique(self._unknown[:count]))
        used = self._library.resq_pipeline_run(self._handle, at, len(words))
        if used < 0:
            raise TargetError("the emulator's trace is damaged; run the program again")
        self._rest = words[used:].copy()

    def finish(self) -> None:
        """Check that the trace is whole.

        Raises
        ------
        TargetError
            If it ends in the middle, or more than one thread ran in a region.
        """
        if len(self._rest):
            raise TargetError("the emulator's trace is cut off; run the program again")
        if self._library.resq_pipeline_threads(self._handle):
            raise TargetError(
                "more than one thread ran in a measured region; set TVM_NUM_THREADS=1"
            )

    def _learn(self, words: NDArray[np.uint32]) -> None:
        for word, line in zip(words.tolist(), disassemble(words.tolist()), strict=True):
            op = _op(decode(line), self._core)
            self._library.resq_pipeline_op(self._handle, word, ctypes.byref(op))

    def regions(self) -> list[int]:
        """Return the numbers of the regions that were entered."""
        return [n for n in range(REGIONS) if self.entries(n)[0]]

    def entries(self, region: int) -> tuple[int, tuple[int, ...]]:
        """Return how often a region was entered, and its cache counters (trace.h)."""
        counters = np.zeros(COUNTERS, np.uint64)
        entries = self._library.resq_pipeline_region(self._handle, region, counters.ctypes.data)
        return entries, tuple(int(c) for c in counters)

    def timeline(self) -> list[tuple[int, int]]:
        """Return the region and the cycles of every entry of a region, in the order of time."""
        cycles = ctypes.c_uint64()
        found = []
        for n in range(self._library.resq_pipeline_stays(self._handle)):
            region = self._library.resq_pipeline_stay(self._handle, n, ctypes.byref(cycles))
            found.append((region, cycles.value))
        return found

    def blocks(self, region: int) -> list[BlockCount]:
        """Return the blocks that were executed in a region, by call and by address."""
        place, counts = (ctypes.c_uint32 * 2)(), (ctypes.c_uint64 * 2)()
        found = []
        for slot in range(self._library.resq_pipeline_slots(self._handle, region)):
            if self._library.resq_pipeline_count(
                self._handle, region, slot, ctypes.byref(place), ctypes.byref(counts)
            ):
                executions, cycles = counts
                address, length, bound = self._block(place[1])
                found.append(
                    BlockCount(place[0], address, length, executions, cycles, bound * executions)
                )
        return sorted(found, key=lambda b: (b.call, b.address, b.length))

    def _block(self, number: int) -> tuple[int, int, float]:
        address, length = ctypes.c_uint64(), ctypes.c_uint32()
        bound = ctypes.c_double()
        self._library.resq_pipeline_block(
            self._handle, number, ctypes.byref(address), ctypes.byref(length), ctypes.byref(bound)
        )
        return address.value, length.value, bound.value

    def calls(self) -> list[Call]:
        """Return the tree of calls in all regions; callers come before what they call."""
        caller = (ctypes.c_uint32 * 2)()
        found = []
        for n in range(self._library.resq_pipeline_contexts(self._handle)):
            self._library.resq_pipeline_context(self._handle, n, ctypes.byref(caller))
            context, site = caller
            if context == _NONE:
                found.append(Call(None, 0))
            else:
                found.append(Call(context, self._block(site)[0]))
        return found

    def maps(self) -> tuple[str, int]:
        """Return the text of ``/proc/self/maps``, and the guest's address 0 in it."""
        base = ctypes.c_uint64()
        text = self._library.resq_pipeline_maps(self._handle, ctypes.byref(base))
        return text.decode(errors="replace"), base.value

    def effort(self) -> tuple[int, int, int]:
        """Return the pipeline states seen, blocks simulated and branches mispredicted."""
        counts = np.zeros(3, np.uint64)
        self._library.resq_pipeline_effort(self._handle, counts.ctypes.data)
        return int(counts[0]), int(counts[1]), int(counts[2])


def _op(instruction: Instruction, core: Core) -> _Op:
    timing = core.timings[instruction.kind]
    sources = list(dict.fromkeys(instruction.sources))[:MOST_SOURCES]
    written = [(r, timing.latency) for r in instruction.results]
    written += [(r, 1) for r in instruction.updates]
    written = written[:MOST_RESULTS]
    uses = timing.wide if instruction.wide else timing.narrow
    accumulator = instruction.accumulator
    op = _Op(
        sources=len(sources),
        accumulator=NO_REGISTER if accumulator is None else accumulator,
        results=len(written),
        chain=_CHAINS.get(instruction.kind, 0) if timing.chain else 0,
        chain_latency=timing.chain,
        slots=1,
        fence=instruction.kind == "fence",
        uses=len(uses),
    )
    op.source[: len(sources)] = sources
    op.result[: len(written)] = [r for r, _ in written]
    op.latency[: len(written)] = [latency for _, latency in written]
    for n, use in enumerate(uses):
        op.use[n] = _Use(sum(1 << port for port in use.ports), use.cycles, use.count)
    return op


def cycles_of(core: Core, words: Sequence[int], iterations: int = 1000) -> float:
    """Return the cycles per iteration of a loop whose body is the given code.

    Parameters
    ----------
    core : Core
    words : sequence of int
        Instruction words; the last one is the branch back.
    iterations : int
        After as many to warm up.

    Returns
    -------
    float
    """
    header = [_DEFINE << 24 | len(words), 0, 0x10000, 0, *words]
    end = [_END << 24, *[0] * (2 * COUNTERS)]
    with Simulator(core) as simulator:
        # The first region warms up what foretells branches.
        for region, runs in ((0, iterations), (1, iterations), (2, 2 * iterations)):
            body = [0, _REPEAT << 24 | (runs - 1), *end]
            trace = [_BEGIN << 24 | region, *([] if region else header), *body]
            simulator.feed(np.array(trace, np.uint32))
        simulator.finish()
        once, twice = (simulator.blocks(region)[0].cycles for region in (1, 2))
    return (twice - once) / iterations

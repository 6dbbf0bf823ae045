"""Which kernel the time of a program belongs to.

Kernels overlap: the next one's loads begin while the last one computes. A kernel that several
layers share runs several times, its *turns*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.npu.commands import Engine
from resq_tvm.targets.npu.timing_result import CommandTimings, Ints, KernelTiming, KernelTurn


def number_turns(kernels: Ints) -> Ints:
    """Return the turn of every command; a kernel that several layers share has more than one.

    Its next turn begins where some other kernel lies as a whole between two of its commands;
    commands that only change places with another kernel's make no new turn.
    """
    count = len(kernels)
    _, first, inverse = np.unique(kernels, return_index=True, return_inverse=True)
    last = np.zeros(len(first), np.int64)
    np.maximum.at(last, inverse, np.arange(count))
    # Of all kernels that begin at a place or behind it, where the one that ends first ends.
    whole = np.full(count + 1, count)
    whole[first] = last
    whole = np.minimum.accumulate(whole[::-1])[::-1]

    alike = np.argsort(kernels, kind="stable")
    before, after = alike[:-1], alike[1:]
    new = (kernels[before] != kernels[after]) | (whole[before + 1] < after)
    turns = np.zeros(count, np.int64)
    turns[after] = np.cumsum(new)
    return turns


def turns_of_run(
    timings: CommandTimings, turn: Ints, first: int, past: int, begin: int
) -> Iterator[KernelTurn]:
    """Yield the turns of a run of commands; its time passes from one to the next as each ends.

    Parameters
    ----------
    timings : CommandTimings
    turn : array of int
        Number of the turn of every command.
    first, past : int
        The run: its first command, and the one behind its last.
    begin : int
        When the run begins.
    """
    if first == past:
        return
    start, end = timings.start[first:past], timings.end[first:past]
    _, places, inverse = np.unique(turn[first:past], return_index=True, return_inverse=True)
    last = np.zeros(len(places), np.int64)
    np.maximum.at(last, inverse, end)
    earliest = np.full(len(places), np.iinfo(np.int64).max)
    np.minimum.at(earliest, inverse, start)
    for number in np.argsort(places).tolist():
        kernel = int(timings.kernel[first + places[number]])
        ended = max(begin, int(last[number]))
        yield KernelTurn(kernel, int(earliest[number]), int(last[number]), begin, ended)
        begin = ended


def advances(timings: CommandTimings, first: int, past: int, begin: int) -> Ints:
    """Return by how much every command of a run moves the latest end so far, in stream order.

    The advances of a run sum up to its time, also where kernels take turns band by band.

    Parameters
    ----------
    timings : CommandTimings
    first, past, begin : int
        As of `turns_of_run`.
    """
    latest = np.maximum.accumulate(np.maximum(timings.end[first:past], begin))
    return np.diff(latest, prepend=begin)


def kernel_timings(
    names: Sequence[str],
    timings: CommandTimings,
    turns: Sequence[KernelTurn],
    advance: Ints,
    duration: Ints,
    issue: Ints,
) -> tuple[KernelTiming, ...]:
    """Sum up what is known of commands by kernel.

    Parameters
    ----------
    names : sequence of str
        Of the stream's kernels.
    timings : CommandTimings
    turns : sequence of KernelTurn
    advance : array of int
        Of every command: as of `advances`.
    duration, issue : array of int
        Cycles of every command on its engine (of transfers: on the bus) and in the command
        processor.

    Returns
    -------
    tuple of KernelTiming
        In the order of their first turns.
    """
    of_kernel: dict[int, list[KernelTurn]] = {}
    for turn in turns:
        of_kernel.setdefault(turn.kernel, []).append(turn)

    def total(values: Ints, only: NDArray[np.bool_] | None = None) -> Ints:
        # int64, so that products beyond 2**53 stay exact
        out = np.zeros(len(names), np.int64)
        own = slice(None) if only is None else only
        np.add.at(out, timings.kernel[own], values[own])
        return out

    engine = timings.engine
    busy = timings.free - timings.start - timings.contention
    on_engine = {e.name.lower(): total(busy, engine == e) for e in Engine}
    dram = total(duration, engine <= Engine.STORE)
    processor = total(issue)
    commands, cycles = total(np.ones_like(busy)), total(advance)
    work = {e: total(timings.work, engine == e) for e in Engine}
    return tuple(
        KernelTiming(
            kernel=k,
            name=names[k],
            turns=len(own),
            first=min(turn.first for turn in own),
            last=max(turn.last for turn in own),
            span=sum(turn.last - turn.first for turn in own),
            cycles=int(cycles[k]),
            commands=int(commands[k]),
            busy={name: int(values[k]) for name, values in on_engine.items()},
            bounds={
                "matrix": int(on_engine["matrix"][k]),
                "vector": int(on_engine["vector"][k]),
                "dram": int(dram[k]),
                "issue": int(processor[k]),
            },
            macs=int(work[Engine.MATRIX][k]),
            dram_read=int(work[Engine.LOAD][k]),
            dram_written=int(work[Engine.STORE][k]),
        )
        for k, own in of_kernel.items()
    )

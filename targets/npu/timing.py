"""The cycle model: how long a program takes on an NPU, and what it waits for.

All figures are simulated. docs/npu.md, section "Cycle model", tells what is modelled and what not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import ArtifactError
from resq_tvm.targets.npu import cost
from resq_tvm.targets.npu.commands import (
    Command,
    Engine,
    HostCall,
    Matrix,
    Program,
    Stream,
    Transfer,
)
from resq_tvm.targets.npu.description import Npu
from resq_tvm.targets.npu.engines import Deadlock, Machine
from resq_tvm.targets.npu.timing_result import (
    REASONS,
    CommandTimings,
    EngineTiming,
    HostTiming,
    Ints,
    Timing,
)
from resq_tvm.targets.npu.turns import advances, kernel_timings, number_turns, turns_of_run

__all__ = ["Timing", "simulate"]

_BUS, _DONE = REASONS.index("bus"), REASONS.index("done")


def simulate(
    npu: Npu,
    stream: Stream,
    program: str,
    *,
    classes: Mapping[int, Mapping[int, int]] | None = None,
    skipped: Collection[int] = (),
    state_traffic: bool = True,
) -> Timing:
    """Time one program of a stream.

    Parameters
    ----------
    npu : Npu
    stream : Stream
    program : str
        Name of the program.
    classes : mapping of int to mapping, optional
        Number of a matrix command in ``Program.commands`` → its pixel blocks by bits
        (`resq_tvm.targets.npu.cost.block_classes`). Commands with a bits map that are not named
        take as long as if every pixel had all bits.
    skipped : collection of int
        Numbers of the commands whose flags are 0; all others run.
    state_traffic : bool
        Without it, transfers of residual state take no time on the bus: what the network would
        take if state cost nothing.

    Returns
    -------
    Timing
        Simulated.

    Raises
    ------
    ArtifactError
        If the stream has no such program, or commands wait for what never ends.
    TargetError
        If a vector program uses a function that the machine lacks.
    """
    if program not in stream.programs:
        known = ", ".join(stream.programs) or "none"
        raise ArtifactError(f"the stream has no program {program!r}; it has {known}")
    run = _Run(npu, stream, stream.programs[program], classes or {}, skipped, state_traffic)
    return run.timing()


_TRANSFER_SHAPE = attrgetter("rows", "columns", "piece", "dram_row", "dram_column")
_MATRIX_SHAPE = attrgetter(
    "h", "w", "out", "taps", "stride", "depthwise", "precision", "weight_bits",
    "source.channels", "source.bits",
)  # fmt: skip


class _Run:
    """One simulation: costs first, then the engines, then sums."""

    def __init__(
        self,
        npu: Npu,
        stream: Stream,
        program: Program,
        classes: Mapping[int, Mapping[int, int]],
        skipped: Collection[int],
        state_traffic: bool,
    ) -> None:
        self.npu = npu
        self.stream = stream
        self.program = program
        self.commands = program.commands
        self.engine = np.array([c.engine for c in self.commands], np.int64)
        self.kernel = np.array([c.kernel for c in self.commands], np.int64)
        self.duration, self.bytes, self.macs = self._costs(classes)
        self.skipped = np.zeros(len(self.commands), bool)
        self.skipped[list(skipped)] = True
        self.duration[self.skipped] = self.bytes[self.skipped] = 0
        self.state = self._state_transfers()
        if not state_traffic:
            self.duration[self.state] = 0
        self.turn = self._number_turns()
        self.issue = self._issue_costs()

    def timing(self) -> Timing:
        npu = self.npu
        depth, setup = npu.commands.queue_depth, npu.commands.dma_setup_cycles
        machine = Machine(depth, setup, npu.dram.latency_cycles)
        durations = self.duration.tolist()
        order, issue = self.engine.tolist(), self.issue.tolist()
        columns = zip(order, durations, self.commands, self.skipped.tolist(), strict=True)
        for engine, duration, command, skipped in columns:
            test = 0 if command.flag is None else npu.commands.test_cycles
            machine.lanes[engine].add(duration, command.waits, test, skipped)

        now, position = 0, 0
        host: list[HostTiming] = []
        runs: list[tuple[int, int, int]] = []  # first and past command, begin
        done = [0] * len(Engine)
        for item in self.program.items:
            if isinstance(item, HostCall):
                cycles = cost.host_cycles(npu, item)
                host.append(HostTiming(item.function, now, cycles))
                now += cycles
                continue
            past = position + len(item)
            try:
                end = machine.run(order[position:past], issue[position:past], now)
            except Deadlock as deadlock:
                raise ArtifactError(self._describe(deadlock, machine)) from None
            for engine in Engine:
                done[engine] += end - machine.lanes[engine].free
            runs.append((position, past, now))
            now, position = end, past

        timings = self._collect(machine)
        turns = tuple(t for run in runs for t in turns_of_run(timings, self.turn, *run))
        none = np.zeros(0, np.int64)
        advance = np.concatenate([none, *(advances(timings, *run) for run in runs)])
        read, written = self.engine == Engine.LOAD, self.engine == Engine.STORE
        return Timing(
            program=self.program.name,
            npu=npu.name,
            clock_hz=npu.clock_hz,
            cycles=now,
            commands=timings,
            engines={e.name.lower(): self._engine(timings, e, done[e]) for e in Engine},
            kernels=kernel_timings(
                self.stream.kernels, timings, turns, advance, self.duration, self.issue
            ),
            turns=turns,
            host=tuple(host),
            dram_read=int(self.bytes[read].sum()),
            dram_written=int(self.bytes[written].sum()),
            state_read=int(self.bytes[read & self.state].sum()),
            state_written=int(self.bytes[written & self.state].sum()),
        )

    # --- before the simulation ----------------------------------------------------------------

    def _costs(self, classes: Mapping[int, Mapping[int, int]]) -> tuple[Ints, Ints, Ints]:
        """Return cycles (of transfers: on the bus), bytes on the bus and products of commands."""
        npu = self.npu
        works = [cost.program_work(npu, p) for p in self.stream.vector_programs]
        known: dict[Any, tuple[int, int, int]] = {}  # many commands are alike
        out = []
        for number, command in enumerate(self.commands):
            key: Any
            if isinstance(command, Transfer):
                key = _TRANSFER_SHAPE(command)
                if key not in known:
                    known[key] = cost.bus_cycles(npu, command), cost.dram_bytes(npu, command), 0
                out.append(known[key])
            elif isinstance(command, Matrix):
                key = _MATRIX_SHAPE(command)
                if key not in known:
                    known[key] = cost.matrix_cycles(npu, command), 0, cost.macs(command)
                if command.bits_map is not None and number in classes:
                    cycles = cost.matrix_cycles(npu, command, classes[number])
                    out.append((cycles, 0, known[key][2]))
                else:
                    out.append(known[key])
            else:
                out.append((cost.vector_cycles(npu, works[command.program], command), 0, 0))
        columns = np.array(out, np.int64).reshape(-1, 3).T.copy()
        return columns[0], columns[1], columns[2]

    def _state_transfers(self) -> NDArray[np.bool_]:
        """Return which commands move residual state."""
        found = np.zeros(len(self.commands), bool)
        places = [p for p in self.program.state if p.memory == "dram"]
        if not places:
            return found
        moving = np.flatnonzero(self.engine <= Engine.STORE)
        transfers = [self.commands[i] for i in moving.tolist()]
        addresses = np.array([t.dram for t in transfers if isinstance(t, Transfer)], np.int64)
        for place in places:
            inside = (addresses >= place.address) & (addresses < place.address + place.nbytes)
            found[moving[inside]] = True
        return found

    def _number_turns(self) -> Ints:
        """Return the turn of its kernel that every command belongs to; host calls end turns."""
        out = np.zeros(len(self.commands), np.int64)
        position = count = 0
        for item in self.program.items:
            if not isinstance(item, HostCall) and item:
                past = position + len(item)
                out[position:past] = count + number_turns(self.kernel[position:past])
                count = int(out[position:past].max()) + 1
                position = past
        return out

    def _issue_costs(self) -> Ints:
        """Return the cycles of the command processor, kernels' beginnings included."""
        processor = self.npu.commands
        out = np.full(len(self.commands), processor.issue_cycles, np.int64)
        out[np.unique(self.turn, return_index=True)[1]] += processor.kernel_cycles
        return out

    # --- after the simulation -----------------------------------------------------------------

    def _collect(self, machine: Machine) -> CommandTimings:
        """Bring the results of the engines into the order of the program."""
        columns = {name: np.zeros(len(self.commands), np.int64) for name in
                   ("issued", "start", "free", "end", "stall", "reason", "contention")}  # fmt: skip
        for engine in Engine:
            lane, own = machine.lanes[engine], self.engine == engine
            columns["issued"][own] = lane.issued
            columns["start"][own] = lane.started
            columns["end"][own] = lane.ended
            columns["free"][own] = lane.freed
            columns["stall"][own] = lane.stall
            columns["reason"][own] = lane.reason
            if lane.contention:
                columns["contention"][own] = lane.contention
        work = self.bytes + self.macs  # a command has one of them
        return CommandTimings(
            engine=self.engine, kernel=self.kernel, work=work, skipped=self.skipped, **columns
        )

    def _engine(self, timings: CommandTimings, engine: Engine, done: int) -> EngineTiming:
        own = timings.engine == engine
        stalled = np.zeros(len(REASONS), np.int64)
        np.add.at(stalled, timings.reason[own], timings.stall[own])
        contention = int(timings.contention[own].sum())
        stalled[_BUS] += contention
        stalled[_DONE] += done
        busy = int((timings.free - timings.start)[own].sum()) - contention
        stalls = {n: int(s) for n, s in zip(REASONS, stalled, strict=True) if n != "nothing"}
        return EngineTiming(int(own.sum()), busy, stalls)

    def _describe(self, deadlock: Deadlock, machine: Machine) -> str:
        """Tell which command of a program is stuck."""
        number = int(np.flatnonzero(self.engine == deadlock.engine)[deadlock.number])
        command: Command = self.commands[number]
        awaited, count = deadlock.wait
        lane = machine.lanes[awaited]
        name = awaited.name.lower()
        return (
            f"program {self.program.name!r}: command {number} ({deadlock.engine.name.lower()}, "
            f"kernel {self.stream.kernels[command.kernel]!r}) waits for {count} {name} command(s), "
            f"but no more than {len(lane.ended)} of {len(lane.duration)} can end; "
            "compile the network again"
        )

"""The event-driven heart of the cycle model: when every command is issued, starts and ends.

Times are whole cycles. Matrix and vector commands follow from what is before them; transfers also
share the DRAM bus, in turns of one cycle each while both engines want it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from resq_tvm.targets.npu.commands import Engine, Waits

# Why a command did not start when its engine was free. What it waited for last counts.
ISSUE: Final = 4  # the command processor had not issued it; 0 to 3: a command of that engine
NOTHING: Final = 5

_TRANSFERS = (Engine.LOAD, Engine.STORE)


@dataclass
class Lane:
    """An engine with its queue: lists by the number of the command among the engine's own.

    Attributes
    ----------
    duration : list of int
        Cycles of a matrix or vector command; cycles on the bus of a transfer.
    setup, latency : int
        Of a transfer, before and after the bus.
    waits : list of Waits
    issued, started, ended, stall, reason : list of int
        Results. ``stall``: cycles between when the engine was free and the start.
    freed : list of int
        Result: when the engine was done with it. A transfer has *ended* its latency later.
    contention : list of int
        Cycles that a transfer had to leave the bus to the other engine.
    tests : list of int
        Cycles to read the command's flag.
    skipped : list of bool
        Whether nothing but that is done.
    """

    duration: list[int] = field(default_factory=list)
    waits: list[Waits] = field(default_factory=list)
    tests: list[int] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    setup: int = 0
    latency: int = 0
    issued: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)
    stall: list[int] = field(default_factory=list)
    reason: list[int] = field(default_factory=list)
    contention: list[int] = field(default_factory=list)
    free: int = 0  # since when the engine has had nothing to do
    awaited: list[int] = field(default_factory=list)  # the ends that its next command waits for
    needed: int = 0  # how many of them

    def add(self, duration: int, waits: Waits, test: int = 0, skipped: bool = False) -> None:
        """Append a command."""
        self.duration.append(duration)
        self.waits.append(waits)
        self.tests.append(test)
        self.skipped.append(skipped)

    def finish(self, time: int, latency: int = 0) -> None:
        """Note when the engine is done with its command, which ends no sooner than those before."""
        self.free = time
        self.freed.append(time)
        self.ended.append(max(time + latency, self.ended[-1]) if self.ended else time + latency)


class Deadlock(Exception):
    """No command can go on. ``engine``, ``number`` and ``wait`` tell of one that is stuck."""

    def __init__(self, engine: Engine, number: int, wait: tuple[Engine, int]) -> None:
        self.engine = engine
        self.number = number
        self.wait = wait
        super().__init__(f"command {number} of {engine.name}")


class Machine:
    """The engines, the command processor and the bus.

    Parameters
    ----------
    queue_depth : int
        Commands that are issued to an engine and have not started.
    setup, latency : int
        Cycles of a transfer before and after its time on the bus.
    """

    def __init__(self, queue_depth: int, setup: int, latency: int) -> None:
        self.queue_depth = queue_depth
        self.lanes = tuple(Lane() for _ in Engine)
        for engine in _TRANSFERS:
            self.lanes[engine].setup = setup
            self.lanes[engine].latency = latency
        self._bus = _Bus(self.lanes[Engine.LOAD], self.lanes[Engine.STORE])

    def run(self, order: Sequence[int], costs: Sequence[int], begin: int) -> int:
        """Run the commands that were added to the lanes since the last run.

        Parameters
        ----------
        order : sequence of int
            Their engines, in the order of the stream.
        costs : sequence of int
            Cycles of the command processor for each.
        begin : int
            When the command processor begins; everything before has ended by then.

        Returns
        -------
        int
            When the last command has ended.

        Raises
        ------
        Deadlock
            If commands wait for what never ends.
        """
        lanes = self.lanes
        first = [len(lane.ended) for lane in lanes]
        for lane in lanes:
            lane.free = begin
        position, now = 0, begin
        while True:
            position, now, progress = self._issue(order, costs, position, now)
            progress |= self._compute(Engine.MATRIX)
            progress |= self._compute(Engine.VECTOR)
            progress |= self._start_transfer(Engine.LOAD)
            progress |= self._start_transfer(Engine.STORE)
            if progress:
                continue
            # All that is known without the bus is known now, so its next event is the next one.
            if not self._bus.step():
                break
        self._check_done(order, position)
        return max(
            (lane.ended[-1] for lane, n in zip(lanes, first, strict=True) if len(lane.ended) > n),
            default=begin,
        )

    def _issue(
        self, order: Sequence[int], costs: Sequence[int], position: int, now: int
    ) -> tuple[int, int, bool]:
        """Issue commands as long as there is room in the queues."""
        lanes, depth, before = self.lanes, self.queue_depth, position
        while position < len(order):
            lane = lanes[order[position]]
            issued = lane.issued
            leaver = len(issued) - depth  # whose start makes room
            ready = now + costs[position]
            if leaver >= 0:
                if leaver >= len(lane.started):
                    break
                room = lane.started[leaver]
                if room > ready:
                    ready = room
            issued.append(ready)
            now = ready
            position += 1
        return position, now, position > before

    def _compute(self, engine: Engine) -> bool:
        """Run the commands of a unit whose waits are fulfilled."""
        lane = self.lanes[engine]
        if lane.needed > len(lane.awaited):
            return False
        before = number = len(lane.ended)
        while number < len(lane.issued):
            start = self._start(lane, number)
            if start < 0:
                break
            work = 0 if lane.skipped[number] else lane.duration[number]
            lane.finish(start + lane.tests[number] + work)
            number += 1
        return number > before

    def _start_transfer(self, engine: Engine) -> bool:
        """Start the next transfer of an engine if that engine and the waits allow it."""
        lane = self.lanes[engine]
        if lane.needed > len(lane.awaited):
            return False
        number = len(lane.started)
        if number > len(lane.ended) or number >= len(lane.issued):
            return False
        start = self._start(lane, number)
        if start < 0:
            return False
        start += lane.tests[number]
        if lane.skipped[number]:
            lane.contention.append(0)
            lane.finish(start)
        else:
            self._bus.request(engine, start + lane.setup, lane.duration[number])
        return True

    def _start(self, lane: Lane, number: int) -> int:
        """Note when and why then a command starts, and return it; −1 if it is not known yet."""
        lanes = self.lanes
        start = lane.issued[number]
        reason = ISSUE
        for engine, count in lane.waits[number]:
            if count > 0:
                ended = lanes[engine].ended
                if count > len(ended):
                    lane.awaited, lane.needed = ended, count
                    return -1
                end = ended[count - 1]
                if end > start:
                    start, reason = end, engine
        free = lane.free
        if start <= free:
            start, reason = free, NOTHING
        lane.started.append(start)
        lane.stall.append(start - free)
        lane.reason.append(reason)
        return start

    def _check_done(self, order: Sequence[int], position: int) -> None:
        for engine in Engine:
            lane = self.lanes[engine]
            number = len(lane.ended)
            if number < len(lane.issued):
                for awaited, count in lane.waits[number]:
                    if count > len(self.lanes[awaited].ended):
                        raise Deadlock(engine, number, (awaited, count))
        if position < len(order):  # a full queue implies a command that waits in it
            raise AssertionError("the command processor is stuck although no engine is")


class _Bus:
    """The DRAM bus: the transfers that want it, and how much is left of them."""

    def __init__(self, load: Lane, store: Lane) -> None:
        self._lanes = (load, store)
        self._asked = [0, 0]  # from when on the engine wants the bus
        self._work = [0, 0]  # cycles of the transfer, alone
        self._left = [-1, -1]  # cycles that are left of it; −1: there is none
        self._now = 0

    def request(self, engine: Engine, time: int, cycles: int) -> None:
        """Let a transfer want the bus from ``time`` on."""
        self._asked[engine] = time
        self._work[engine] = self._left[engine] = cycles

    def step(self) -> bool:
        """Run until a transfer ends; return False if there is none."""
        left, asked = self._left, self._asked
        if left[0] < 0 and left[1] < 0:
            return False
        if left[0] < 0 or left[1] < 0:
            alone = 0 if left[0] >= 0 else 1
            self._finish(alone, max(asked[alone], self._now) + left[alone])
            return True
        first = 0 if asked[0] <= asked[1] else 1
        second = 1 - first
        begin = max(asked[first], self._now)
        both = max(asked[second], begin)
        if begin + left[first] <= both:
            self._finish(first, begin + left[first])
            return True
        left[first] -= both - begin
        # From now on in turns; the one that came first has the first turn.
        shorter = first if left[first] <= left[second] else second
        turns = left[shorter]
        time = both + 2 * turns - (1 if shorter == first and turns else 0)
        left[1 - shorter] -= time - both - turns
        self._finish(shorter, time)
        return True

    def _finish(self, engine: int, time: int) -> None:
        lane = self._lanes[engine]
        self._left[engine] = -1
        self._now = time
        lane.contention.append(time - self._asked[engine] - self._work[engine])
        lane.finish(time, lane.latency)

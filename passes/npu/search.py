"""One search over tiles and bands: what takes a whole program the fewest simulated cycles.

It climbs: a small change is kept if the program gets faster by it. Kernels overlap, so that what a
change gains is seen in the whole program alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from resq_tvm.errors import CompileError
from resq_tvm.passes.npu.arrangement import Arrangement
from resq_tvm.passes.npu.lowering import Lowering, Source
from resq_tvm.passes.npu.moves import Moves
from resq_tvm.schedules.decision import Decision
from resq_tvm.targets.npu.timing import simulate

_PATIENCE = 6  # state tensors in a row that gained nothing, before the others are left alone
Trial = tuple[str, str]  # program, key of the arrangement


@dataclass(frozen=True)
class Step:
    """Where the search stands; given to the observer after every trial.

    Attributes
    ----------
    trials, most : int
        Arrangements of a program that were simulated in this run, and how many may be.
    seconds : float
        Since the search began.
    cycles : dict of str to int
        Program → simulated cycles of the best arrangement.
    first : dict of str to int
        The same with the rules' tiles and without cascades.
    """

    trials: int
    most: int
    seconds: float
    cycles: Mapping[str, int]
    first: Mapping[str, int]


@dataclass
class Search:
    """Climbs from an arrangement to better ones.

    Attributes
    ----------
    source : Source
    weights : dict of str to float
        Program → how often it runs in a period.
    options : dict of str to sequence of Decision
        Kernel → tiles that are fast when it runs by itself.
    known : dict
        Trial → its cycles, 0: it does not fit. Of earlier runs; it grows.
    note : callable
        Called with every new trial and its cycles.
    improved : callable
        Called with every better arrangement and its cycles.
    observe : callable
        Called with a `Step` after every new trial.
    seed : int
    """

    source: Source
    weights: Mapping[str, float]
    options: Mapping[str, Sequence[Decision]]
    known: dict[Trial, int]
    note: Callable[[Trial, int], None] = lambda _trial, _cycles: None
    improved: Callable[[Arrangement, Mapping[str, int]], None] = lambda _found, _cycles: None
    observe: Callable[[Step], None] = lambda _step: None
    seed: int = 0
    trials: int = 0
    cycles: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    def run(self, starts: Sequence[Arrangement], trials: int) -> Arrangement:
        """Return the best arrangement that at most so many new trials find.

        Parameters
        ----------
        starts : sequence of Arrangement
            The first must fit. They are simulated in any case.
        trials : int
        """
        self._most = self.trials + trials
        self._begun = time.perf_counter()
        self._starting = True
        self._random = random.Random(self.seed)
        self.best = starts[0]
        self.cycles = self.first = self.cycles_of(starts[0])
        for start in starts[1:]:
            self._try(start)
            if start.state != self.best.state:
                continue
            for name in self.source.names:
                parts = {**self.best.programs, name: start.program(name)}
                self._try(Arrangement(parts, start.state))
        self._starting = False
        while self.trials < self._most:
            before = dict(self.cycles)
            self._move_state()
            self._climb()
            if self.cycles == before:
                break
        return self.best

    # Trials ----------------------------------------------------------------------------------

    def cycles_of(self, arrangement: Arrangement) -> dict[str, int]:
        """Return the cycles of all programs; 0 of those that do not fit."""
        return {n: self._time(arrangement, n) for n in self.source.names}

    def _time(self, arrangement: Arrangement, name: str) -> int:
        """Return the cycles of a program; 0: it does not fit, or no trial is left."""
        only = Arrangement({name: arrangement.program(name)}, arrangement.state)
        trial = (name, only.key)
        if trial not in self.known:
            if self.trials >= self._most and not self._starting:
                return 0
            self.trials += 1
            self.known[trial] = self._simulate(only, name)
            self.note(trial, self.known[trial])
            seconds = time.perf_counter() - self._begun
            self.observe(Step(self.trials, self._most, seconds, dict(self.cycles), self.first))
        return self.known[trial]

    def _simulate(self, arrangement: Arrangement, name: str) -> int:
        npu = self.source.target.npu
        assert npu is not None
        try:
            lowered = Lowering(self.source, arrangement, (name,)).run()
        except CompileError:
            return 0
        return simulate(npu, lowered.stream, name).cycles

    def _try(self, arrangement: Arrangement) -> bool:
        """Keep an arrangement if a period takes less time with it."""
        found = self.cycles_of(arrangement)
        if not all(found.values()) or self._period(found) >= self._period(self.cycles):
            return False
        self.best, self.cycles = arrangement, found
        self.improved(self.best, self.cycles)
        return True

    def _period(self, cycles: Mapping[str, int]) -> float:
        return sum(cycles[n] * self.weights[n] for n in cycles)

    # Moves -----------------------------------------------------------------------------------

    def _climb(self) -> None:
        """Go through all changes of all programs once, those first that change most."""
        state = self.best.state
        movers = {n: Moves(self.source, n, self.options, state) for n in self.source.names}
        found = [(n, move) for n in movers for move in movers[n].all(self.best.program(n))]
        self._random.shuffle(found)
        found.sort(key=lambda pair: pair[1].rank)
        for name, move in found:
            if self.trials >= self._most:
                return
            part = movers[name].apply(self.best.program(name), move)
            if part is not None and part != self.best.program(name):
                self._try(Arrangement({**self.best.programs, name: part}, state))

    def _move_state(self) -> None:
        """Let more or less of the state stay in SRAM."""
        if self.source.state_memory != "auto":
            return
        failed = 0
        for number in self.source.largest_state():
            if failed == _PATIENCE:
                return
            state = tuple(sorted({*(self.best.state or ())} ^ {number}))
            parts = {
                name: Moves(self.source, name, self.options, state).refit(self.best.program(name))
                for name in self.source.names
            }
            if any(part is None for part in parts.values()):
                continue  # it does not fit
            kept = self._try(Arrangement({n: p for n, p in parts.items() if p is not None}, state))
            failed = 0 if kept else failed + 1

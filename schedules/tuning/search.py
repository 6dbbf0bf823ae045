"""The search of one task: which candidates to measure next, and when it is enough."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.space import as_sample
from resq_tvm.schedules.tuning.job import Measurement
from resq_tvm.schedules.tuning.measured import Measured, winner
from resq_tvm.schedules.tuning.model import CostModel
from resq_tvm.schedules.tuning.tasks import Task

_EXPLORE = 0.2  # share of a batch that is drawn at random
_PRODUCTIVE = 0.005  # a batch that gains less brought nothing
_PATIENCE = 2  # such batches, and the search of a task ends
FINALISTS = 3  # candidates that are held against the heuristic's decision
_FIRST_POTENTIAL = 0.15  # the gain expected of a task that nobody looked at


class Search:
    """State of one task's search.

    Parameters
    ----------
    task : Task
    measured : sequence of Measured
        What an earlier run left, the heuristic's decision first.
    tried : sequence of Decision
        What was tried then, failures too.
    seed : int
    """

    def __init__(
        self,
        task: Task,
        measured: Sequence[Measured] = (),
        tried: Sequence[Decision] = (),
        seed: int = 0,
    ) -> None:
        self.task = task
        self.measured = {as_sample(m.decision): m for m in measured}
        self.failures: Counter[str] = Counter()
        self.codes: dict[str, tuple[float, ...]] = {
            m.code: tuple(m.runs[0]) for m in measured if m.code and 0 in m.runs
        }
        self._tried = {*self.measured, *(as_sample(d) for d in tried)}
        self._random = random.Random(f"{seed} {task.key}")
        self._idle = 0
        self.potential = _FIRST_POTENTIAL

    @property
    def settled(self) -> bool:
        """Whether the fastest candidates were held against the heuristic's decision."""
        finalists = self.finalists()
        contest = finalists[0].latest if finalists else 0
        return contest > 0 and all(contest in m.runs for m in finalists)

    @property
    def heuristic(self) -> Measured | None:
        """What was measured of the heuristic's decision."""
        return self.measured.get(as_sample(self.task.heuristic))

    @property
    def trials(self) -> int:
        """Candidates tried so far."""
        return len(self._tried)

    @property
    def best(self) -> Measured | None:
        """The best decision so far."""
        heuristic = self.heuristic
        if heuristic is None:
            return None
        return winner([heuristic, *(m for m in self.measured.values() if m is not heuristic)])

    @property
    def fastest_s(self) -> float | None:
        """The least time that was seen in the search."""
        times = [m.seconds(0) for m in self.measured.values()]
        return min(times, default=None)

    @property
    def urgency(self) -> float:
        """Seconds per period that another batch may save."""
        seconds = self.fastest_s
        if seconds is None:  # nothing measured: from the multiplications, at 50 GMAC/s
            seconds = 2e-6 + self.task.macs / 50e9
        return seconds * self.task.weight * self.potential

    @property
    def done(self) -> bool:
        """Whether nothing is left or likely to be gained."""
        return self._idle >= _PATIENCE or not self._left()

    def _left(self) -> list[Decision]:
        return [d for d in self.task.decisions if as_sample(d) not in self._tried]

    def propose(self, count: int, model: CostModel, hints: Sequence[Decision]) -> list[Decision]:
        """Return up to ``count`` candidates to measure; the heuristic's is the first ever.

        Parameters
        ----------
        count : int
        model : CostModel
        hints : sequence of Decision
            What won on tasks with the same convolution.
        """
        left = self._left()
        chosen: list[Decision] = []
        if self.heuristic is None and as_sample(self.task.heuristic) not in self._tried:
            chosen.append(self.task.heuristic)
        offered = {as_sample(d): d for d in left}
        chosen += [offered[as_sample(h)] for h in hints if as_sample(h) in offered]
        rest = [d for d in left if d not in chosen]
        self._random.shuffle(rest)
        if model.ready and rest:
            explore = int(count * _EXPLORE)
            scores = model.predict(self.task, rest)
            ranked = [rest[i] for i in scores.argsort(kind="stable")]
            rest = ranked[: max(0, count - explore - len(chosen))] + rest
        chosen = list(dict.fromkeys([*chosen, *rest]))[:count]
        self._tried |= {as_sample(d) for d in chosen}
        return chosen

    def take(self, decision: Decision, result: Measurement, contest: int = 0) -> list[float]:
        """Note a result; return the seconds that go on record, empty if there are none."""
        if result.failure is not None:
            self.failures[result.failure] += 1
            return []
        # Without seconds it is the same program as another candidate's.
        seconds = list(result.seconds or self.codes[result.code])
        if contest == 0:
            self.codes[result.code] = tuple(seconds)
        entry = self.measured.setdefault(as_sample(decision), Measured(decision))
        entry.runs[contest] = seconds
        entry.code = result.code
        return seconds

    def end_batch(self, before: float | None) -> None:
        """Note what a batch gained over the fastest time before it."""
        now = self.fastest_s
        if now is None:
            self._idle += 1
            return
        gain = _FIRST_POTENTIAL if before is None else max(0.0, 1 - now / before)
        if before is not None:
            self._idle = 0 if gain > _PRODUCTIVE else self._idle + 1
        self.potential = 0.5 * self.potential + 0.5 * gain

    def finalists(self) -> list[Measured]:
        """Return the heuristic's decision and the fastest others, each program once."""
        heuristic = self.heuristic
        if heuristic is None:
            return []
        chosen = [heuristic]
        others = (m for m in self.measured.values() if m is not heuristic and 0 in m.runs)
        for entry in sorted(others, key=lambda m: (m.seconds(0), as_sample(m.decision))):
            if len(chosen) <= FINALISTS and all(m.code != entry.code for m in chosen):
                chosen.append(entry)
        return chosen

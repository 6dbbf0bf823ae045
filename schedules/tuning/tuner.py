"""Tuning a network: batches of candidates where they promise most, then a contest per task."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm

from resq_tvm.errors import TuningError
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.signature import signature
from resq_tvm.schedules.tuning.database import Database
from resq_tvm.schedules.tuning.job import Failure, Job, Measurement, Subject
from resq_tvm.schedules.tuning.model import CostModel
from resq_tvm.schedules.tuning.pool import Pool
from resq_tvm.schedules.tuning.search import Search
from resq_tvm.schedules.tuning.tasks import Task
from resq_tvm.targets.preset import Target

BATCH = 16
FIRST_BATCH = 8  # of a task: so that every task gets a measured schedule
TRIALS_PER_TASK = 40
FOOTPRINT = 24 << 20  # bytes, where the network's is not known
_REPEATS = 12
_CONTEST_REPEATS = 40
_HOPELESS = 1.5  # a candidate this much slower than the best is not repeated
# What says something about the candidate, not about the hour: it is not tried again.
_LASTING: frozenset[Failure] = frozenset({"build", "wrong", "crash", "run"})


@dataclass(frozen=True)
class TaskResult:
    """What tuning found for one task.

    Attributes
    ----------
    task : Task
    heuristic_s, best_s : float or None
        Median seconds of a run, of the contest where there was one; None if nothing was measured.
    best : Decision
    trials : int
        Candidates tried, earlier runs included.
    failures : dict of str to int
        Kind of failure → count.
    settled : bool
        Whether the contest was held.
    """

    task: Task
    heuristic_s: float | None
    best_s: float | None
    best: Decision
    trials: int
    failures: dict[str, int]
    settled: bool

    @property
    def gain(self) -> float:
        """Time of the heuristic's decision over the best one's; 1 if nothing was measured."""
        if self.heuristic_s is None or self.best_s is None:
            return 1.0
        return self.heuristic_s / self.best_s

    @property
    def gmacs(self) -> float | None:
        """Multiplications per second of the best decision, in 10^9."""
        return self.task.macs / self.best_s / 1e9 if self.best_s and self.task.macs else None


@dataclass(frozen=True)
class Progress:
    """Where tuning stands; given to the observer after every measurement.

    Attributes
    ----------
    stage : str
        ``"search"`` or ``"contest"``.
    task : Task
        What was measured last.
    done, total : int
        Candidates measured in this run and to be measured at most; in a contest, tasks.
    seconds : float
        Since the run began.
    failures : dict of str to int
        Of this run.
    results : callable
        Gives the results so far, by task.
    simulated : bool
        Whether times are simulated.
    """

    stage: str
    task: Task
    done: int
    total: int
    seconds: float
    failures: dict[str, int]
    results: Callable[[], list[TaskResult]]
    simulated: bool = False

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the pace so far."""
        if not self.done:
            return None
        return self.seconds / self.done * (self.total - self.done)


Observer = Callable[[Progress], None]


class Tuner:
    """Searches the tasks of a network on a pool of workers, and records what it measures.

    Parameters
    ----------
    tasks : sequence of Task
    target : Target
    database : Database
        Where records go, and what an earlier run left.
    pool : Pool
    footprint : int
        Bytes that the network touches per frame.
    observe : callable, optional
    seed : int
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        target: Target,
        database: Database,
        pool: Pool,
        *,
        footprint: int = FOOTPRINT,
        observe: Observer | None = None,
        seed: int = 0,
    ) -> None:
        self.target, self.database, self.pool = target, database, pool
        self._machine = tvm.target.Target(target.llvm)
        self._observe = observe or (lambda _progress: None)
        self._model = CostModel()
        self.failures: Counter[str] = Counter()
        self._begun = time.perf_counter()
        self.measured = 0  # in this run
        self._learned: set[tuple[str, Decision]] = set()
        self._alike: dict[str, list[Search]] = {}  # task → searches of the same convolution
        anchors: dict[str, list[Search]] = {}
        self.searches = []
        for task in tasks:
            pool.register(Subject(task.key, task.kernel, target, footprint))
            old = database.measured(task.kernel, task.heuristic)
            search = Search(task, old, database.tried(task.kernel), seed)
            self.searches.append(search)
            anchor = json.dumps(json.loads(signature(task.kernel))["anchor"])
            self._alike[task.key] = anchors.setdefault(anchor, [])
            self._alike[task.key].append(search)
            self._learn_all(search)

    @property
    def seconds(self) -> float:
        """Since the tuner was made."""
        return time.perf_counter() - self._begun

    def results(self) -> list[TaskResult]:
        """Return what is known of every task."""
        return [_result(s) for s in self.searches]

    def run(self, trials: int) -> list[TaskResult]:
        """Measure candidates until there are ``trials`` on record, then hold the contests.

        Whatever ends it, everything that was measured is on record.
        """
        self._search(trials - sum(s.trials for s in self.searches))
        self._contests([s for s in self.searches if s.heuristic is not None and not s.settled])
        return self.results()

    def _search(self, trials: int) -> None:
        while self.measured < trials:
            # Batches of several tasks together: no worker waits for the last of one.
            batch: dict[str, tuple[Search, float | None]] = {}
            jobs: list[Job] = []
            room = trials - self.measured
            for search in self._most_urgent():
                count = min(BATCH if search.trials else FIRST_BATCH, room - len(jobs))
                if count <= 0 or len(jobs) >= BATCH * self.pool.workers:
                    break
                chosen = search.propose(count, self._model, self._hints(search))
                limit = None if search.fastest_s is None else search.fastest_s * _HOPELESS
                known = frozenset(search.codes)
                batch[search.task.key] = (search, search.fastest_s)
                jobs += [Job(search.task.key, (d,), _REPEATS, limit, known) for d in chosen]
            if not jobs:
                return
            for job, (result,) in self.pool.run(jobs):
                self.measured += 1
                self._note(batch[job.task][0], job.decisions[0], result)
                self._tell("search", batch[job.task][0], self.measured, trials)
            for search, before in batch.values():
                search.end_batch(before)
                self._learn_all(search)
            self._give_up_if_nothing_works()

    def _most_urgent(self) -> list[Search]:
        """Return the searches that go on, those first that nobody looked at."""
        left = (s for s in self.searches if not s.done)
        return sorted(left, key=lambda s: (s.trials > 0, -s.urgency))

    def _hints(self, search: Search) -> list[Decision]:
        others = (s.best for s in self._alike[search.task.key] if s is not search)
        return [m.decision for m in others if m is not None]

    def _note(
        self, search: Search, decision: Decision, result: Measurement, contest: int = 0
    ) -> None:
        seconds = search.take(decision, result, contest)
        if result.failure is not None:
            self.failures[result.failure] += 1
        if seconds or result.failure in _LASTING:
            self.database.add(
                search.task.kernel,
                search.task.space,
                decision,
                seconds,
                self._machine,
                contest=contest,
                code=result.code,
            )

    def _learn_all(self, search: Search) -> None:
        heuristic = search.heuristic
        if heuristic is not None and 0 in heuristic.runs:
            for entry in search.measured.values():
                key = (search.task.key, entry.decision)
                if key not in self._learned and 0 in entry.runs:
                    self._learned.add(key)
                    ratio = entry.seconds(0) / heuristic.seconds(0)
                    self._model.learn(search.task, entry.decision, ratio)

    def _contests(self, searches: list[Search]) -> None:
        """Let the best candidates of each task and the heuristic's decision take turns."""
        by_task = {s.task.key: s for s in searches}
        jobs = [
            Job(s.task.key, tuple(m.decision for m in s.finalists()), _CONTEST_REPEATS)
            for s in searches
        ]
        for done, (job, results) in enumerate(self.pool.run(jobs), 1):
            search = by_task[job.task]
            if all(r.failure is None for r in results):
                number = 1 + max(m.latest for m in search.measured.values())
                for decision, result in zip(job.decisions, results, strict=True):
                    self._note(search, decision, result, number)
            self._tell("contest", search, done, len(jobs))

    def _tell(self, stage: str, search: Search, done: int, total: int) -> None:
        self._observe(
            Progress(
                stage,
                search.task,
                done,
                total,
                self.seconds,
                dict(self.failures),
                self.results,
                self.database.fingerprint.simulated,
            )
        )

    def _give_up_if_nothing_works(self) -> None:
        failed = sum(self.failures.values())
        if self.measured >= BATCH and failed == self.measured:
            kinds = ", ".join(f"{n} {k}" for k, n in self.failures.most_common())
            raise TuningError(
                f"all of the first {failed} candidates failed ({kinds}); see that the device "
                "answers and fits the target"
            )


def _result(search: Search) -> TaskResult:
    heuristic, best = search.heuristic, search.best
    return TaskResult(
        search.task,
        None if heuristic is None else heuristic.seconds(),
        None if best is None else best.seconds(heuristic.latest if heuristic else None),
        search.task.heuristic if best is None else best.decision,
        search.trials,
        dict(search.failures),
        search.settled,
    )


def geometric_mean_gain(results: Iterable[TaskResult]) -> float:
    """Return the geometric mean of the gains of the tasks that were measured."""
    logs = [math.log(r.gain) for r in results if r.best_s is not None]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


def describe(result: TaskResult) -> dict[str, Any]:
    """Return a result as JSON values."""
    return {
        "task": result.task.key,
        "kernel": result.task.describe(),
        "runs": result.task.weight,
        "kernels": list(result.task.names),
        "macs": result.task.macs,
        "heuristic": str(result.task.heuristic),
        "heuristic_ms": None if result.heuristic_s is None else result.heuristic_s * 1e3,
        "best": str(result.best),
        "change": result.task.heuristic.difference(result.best),
        "decision": result.best.to_json(),
        "best_ms": None if result.best_s is None else result.best_s * 1e3,
        "gain": result.gain,
        "gmacs": result.gmacs,
        "trials": result.trials,
        "failures": result.failures,
        "settled": result.settled,
    }

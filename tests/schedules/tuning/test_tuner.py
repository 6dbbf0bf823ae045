from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest

from resq_tvm.errors import TuningError
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.space import as_sample
from resq_tvm.schedules.tuning.database import Database
from resq_tvm.schedules.tuning.fingerprint import Fingerprint
from resq_tvm.schedules.tuning.job import Job, Measurement, Subject
from resq_tvm.schedules.tuning.model import CostModel, features
from resq_tvm.schedules.tuning.tasks import Task, describe, extract, macs
from resq_tvm.schedules.tuning.tuner import BATCH, Tuner, geometric_mean_gain
from resq_tvm.targets.preset import get_target
from tests.schedules.tuning.kernels import convolution, task

TARGET = get_target("auto")
HERE = Fingerprint(TARGET.name, "Some CPU")
SHAPES = [{"o": 64}, {"o": 32}, {"o": 64, "k": 1}, {"o": 48, "channels": (24,)}]


def milliseconds(decision: Decision) -> float:
    """Return a made-up time: the best tile is 2 x 3 x 2 with prefetch 1."""
    wanted = {"tile_y": 2, "tile_x": 3, "tile_o": 2}
    cost = sum(abs(math.log(getattr(decision, k) / v)) for k, v in wanted.items())
    return 1.0 + cost + 0.2 * (decision.prefetch != 1) + 0.1 * decision.inner_o


class Pretending:
    """A pool that measures nothing."""

    workers = 2

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.stop_after: int | None = None
        self.fails = lambda _job: None
        self.same_code = False

    def register(self, subject: Subject) -> None:
        pass

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, list[Measurement]]]:
        for job in jobs:
            if self.stop_after is not None and len(self.jobs) >= self.stop_after:
                raise KeyboardInterrupt
            self.jobs.append(job)
            yield job, [self.measure(job, d) for d in job.decisions]

    def measure(self, job: Job, decision: Decision) -> Measurement:
        code = "one" if self.same_code else str(as_sample(decision))
        if code in job.known:
            return Measurement(code=code)
        if failure := self.fails(job):
            return Measurement(failure=failure, message="so it is", code=code)
        return Measurement((milliseconds(decision) / 1e3,) * job.repeats, code=code)


def tasks() -> list[Task]:
    return extract([(convolution(**s), 1.0) for s in SHAPES], TARGET)


def run(folder, trials, pool=None, **options):
    pool = pool or Pretending()
    database = Database(folder, HERE)
    try:
        tuner = Tuner(tasks(), TARGET, database, pool, **options)
        return tuner, tuner.run(trials), pool
    finally:
        database.close()


def test_kernels_alike_are_one_task():
    kernels = [(convolution(n, o=32), w) for n, w in ((0, 1.0), (1, 3.0))]
    made = extract([*kernels, (convolution(o=64), 1.0)], TARGET)
    assert sorted((t.weight, len(t.names)) for t in made) == [(1.0, 1), (4.0, 2)]
    assert [t.macs for t in made] == [6 * 9 * 32 * 16 * 9, 6 * 9 * 64 * 16 * 9]
    assert made[0].weight == 4.0  # what takes most of a period comes first
    assert describe(made[1].kernel) == "conv 3x3 16 > 6x9x64"
    assert macs(convolution(o=32, channels=(32,), groups=32)) == 6 * 9 * 32 * 9


def test_the_best_is_found(tmp_path):
    tuner, results, _ = run(tmp_path, 400)
    assert tuner.measured <= 400
    for result in results:
        best = min(milliseconds(d) for d in result.task.decisions) / 1e3
        assert result.best_s == pytest.approx(milliseconds(result.best) / 1e3)
        assert result.best_s <= 1.1 * best
        assert result.gain >= 1 and result.settled
    assert geometric_mean_gain(results) > 1.05


def test_the_heuristic_is_candidate_0_and_never_lost(tmp_path):
    _, results, pool = run(tmp_path, 200)
    first = {}
    for job in pool.jobs:
        first.setdefault(job.task, job.decisions[0])
    for result in results:
        assert first[result.task.key] == result.task.heuristic
        assert result.best_s <= result.heuristic_s


def test_the_same_call_again_measures_nothing(tmp_path):
    _, before, _ = run(tmp_path, 150)
    tuner, after, pool = run(tmp_path, 150)
    assert tuner.measured == 0 and pool.jobs == []
    assert [r.best for r in after] == [r.best for r in before]


def test_more_trials_go_on(tmp_path):
    run(tmp_path, 100)
    tuner, results, pool = run(tmp_path, 160)
    assert 0 < tuner.measured <= 60
    singles = [(j.task, as_sample(j.decisions[0])) for j in pool.jobs if len(j.decisions) == 1]
    assert len(set(singles)) == len(singles)
    assert sum(r.trials for r in results) <= 160
    database = Database(tmp_path, HERE, read_only=True)
    assert all(r.settled for r in results if r.best_s is not None)
    assert len(database) > 160  # contests are records, too


@pytest.mark.parametrize("after", [1, 5, 40, 77])
def test_an_interrupted_run_loses_nothing(tmp_path, after):
    pool = Pretending()
    pool.stop_after = after
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 120, pool)
    assert len(Database(tmp_path, HERE, read_only=True)) == after
    _, results, again = run(tmp_path, 120)
    done = {(j.task, as_sample(j.decisions[0])) for j in pool.jobs}
    redone = {(j.task, as_sample(j.decisions[0])) for j in again.jobs if len(j.decisions) == 1}
    assert not done & redone
    assert all(r.settled for r in results if r.best_s is not None)


def test_failures_are_counted_and_not_tried_again(tmp_path):
    pool = Pretending()
    pool.fails = lambda job: "wrong" if job.decisions[0].tile_x == 3 else None
    tuner, results, _ = run(tmp_path, 200, pool)
    assert tuner.failures["wrong"] == sum(r.failures.get("wrong", 0) for r in results) > 0
    assert all(r.best.tile_x != 3 for r in results if r.best_s is not None)
    _, _, again = run(tmp_path, 260)
    tried = {(j.task, as_sample(j.decisions[0])) for j in pool.jobs}
    assert not tried & {(j.task, as_sample(j.decisions[0])) for j in again.jobs if j.limit_s}


def test_a_late_candidate_may_be_tried_again(tmp_path):
    pool = Pretending()
    pool.fails = lambda job: "timeout" if job.decisions[0].tile_x == 2 else None
    run(tmp_path, 100, pool)
    assert len(Database(tmp_path, HERE, read_only=True).failed(task(o=64).kernel)) == 0


def test_if_everything_fails_it_ends(tmp_path):
    pool = Pretending()
    pool.fails = lambda _job: "crash"
    with pytest.raises(TuningError, match=r"all of the first \d+ candidates failed.*crash"):
        run(tmp_path, 10_000, pool)
    assert len(pool.jobs) <= 2 * BATCH * pool.workers


def test_equal_programs_are_measured_once(tmp_path):
    pool = Pretending()
    pool.same_code = True
    _, results, _ = run(tmp_path, 100, pool)
    measured = [j for j in pool.jobs if "one" not in j.known]
    assert len({j.task for j in measured}) == sum(r.best_s is not None for r in results) > 1
    assert all(r.best == r.task.heuristic for r in results)


def test_a_flat_space_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.schedules.tuning.test_tuner.milliseconds", lambda _d: 1.0)
    tuner, _, _ = run(tmp_path, 100_000)
    assert tuner.measured <= len(SHAPES) * BATCH * 4


def test_progress_is_told(tmp_path):
    seen = []
    run(tmp_path, 64, observe=seen.append)
    assert [p.done for p in seen if p.stage == "search"] == list(range(1, 65))
    assert seen[-1].stage == "contest" and seen[-1].done == seen[-1].total
    assert all(p.eta_s is not None and p.eta_s >= 0 for p in seen)


def test_the_model_learns_what_is_good():
    model, one, other = CostModel(), task(o=64), task(o=48, channels=(24,))
    assert not model.ready
    base = milliseconds(one.heuristic)
    # Targets with fewer registers have fewer decisions.
    for decision in one.decisions[:: min(max(len(one.decisions) // 64, 1), 7)]:
        model.learn(one, decision, milliseconds(decision) / base)
    assert model.ready
    assert features(other, other.decisions[:3]).shape[0] == 3
    scores = model.predict(other, other.decisions)  # a task that it never saw
    best = [other.decisions[i] for i in scores.argsort()[:20]]
    typical = sorted(milliseconds(d) for d in other.decisions)[len(other.decisions) // 4]
    assert sum(milliseconds(d) for d in best) / 20 < typical

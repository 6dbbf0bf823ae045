from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.tuning.devices import LocalDevice
from resq_tvm.schedules.tuning.job import Job, Subject
from resq_tvm.schedules.tuning.pool import Pool
from resq_tvm.schedules.tuning.scenes import Scene
from resq_tvm.targets.preset import get_target
from tests.schedules.tuning.kernels import Misbehaving, convolution, task

TARGET = get_target("auto")


def measure(make, decisions, timeout_s=60.0, workers=1, **options):
    one = task()
    with Pool(make, workers, timeout_s) as pool:
        pool.register(Subject(one.key, one.kernel, TARGET, 1 << 20))
        jobs = [Job(one.key, (d,), 5, **options) for d in decisions]
        return {job.decisions[0]: result for job, (result,) in pool.run(jobs)}


def test_candidates_are_measured():
    decisions = task().decisions[:5]
    found = measure(partial(LocalDevice, 1), decisions, workers=2)
    assert set(found) == set(decisions)
    for result in found.values():
        assert result.failure is None and len(result.seconds) == 5
        assert all(0 < s < 1 for s in result.seconds)


@pytest.mark.parametrize("evil", ["crash", "hang", "raise", "wrong", "lost"])
def test_a_bad_candidate_costs_itself_only(evil, tmp_path):
    decisions = task().decisions[:4]
    make = partial(Misbehaving, evil, 2, str(tmp_path / "runs"))
    # A hanging candidate must be told from a slow start-up: the first has been measured by then.
    found = measure(make, decisions, timeout_s=8.0 if evil == "hang" else 60.0)
    failures = [found[d].failure for d in decisions]
    expected = {"hang": "timeout", "raise": "run", "lost": None}.get(evil, evil)
    assert failures == [None, expected, None, None]
    if evil == "wrong":
        assert "differ from the reference" in found[decisions[1]].message
    if evil == "raise":
        assert "forbidden" in found[decisions[1]].message


def test_what_cannot_be_built_is_told():
    impossible = Decision("drawn", "no such method")
    found = measure(partial(LocalDevice, 1), [impossible, task().decisions[0]])
    assert found[impossible].failure == "build" and "no such method" in found[impossible].message
    assert found[task().decisions[0]].failure is None


def test_known_programs_are_not_run_again():
    one = task()
    first = measure(partial(LocalDevice, 1), one.decisions[:1])[one.decisions[0]]
    known = frozenset({first.code})
    again = measure(partial(LocalDevice, 1), one.decisions[:2], known=known)
    assert again[one.decisions[0]].code == first.code and not again[one.decisions[0]].seconds
    assert again[one.decisions[1]].seconds


def test_hopeless_candidates_are_not_repeated():
    decision = task().decisions[0]
    one = task()
    with Pool(partial(LocalDevice, 1), 1) as pool:
        pool.register(Subject(one.key, one.kernel, TARGET, 1 << 20))
        job = Job(one.key, (decision,), 100, limit_s=1e-12)
        ((_, (result,)),) = pool.run([job])
    assert result.failure is None and len(result.seconds) == 6


def test_stopping_in_the_middle_leaves_no_process(tmp_path):
    one = task()
    pool = Pool(partial(LocalDevice, 1), 2)
    pool.register(Subject(one.key, one.kernel, TARGET, 1 << 20))
    run = pool.run([Job(one.key, (d,), 5) for d in one.decisions[:8]])
    next(run)
    processes = [s.process for s in pool._slots if s is not None]
    run.close()
    pool.close()
    end = time.monotonic() + 10
    while any(p.poll() is None for p in processes):
        assert time.monotonic() < end
    assert len(processes) == 2


def test_the_scene_tells_right_from_wrong():
    kernel = convolution()
    scene = Scene(kernel)
    blank = scene.blank()
    assert "halo" in scene.complaint(blank)
    for spec, array in zip(kernel.outputs, blank, strict=True):
        array[:] = kernel.code.zero_point if "int" in spec.dtype else 0
    assert "differ from the reference" in scene.complaint(blank)
    assert np.array_equal(scene.inputs[0], Scene(kernel).inputs[0])

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import tvm
from tvm.s_tir import meta_schedule as ms

from resq_tvm.errors import ConfigError
from resq_tvm.schedules.space import as_sample
from resq_tvm.schedules.tuning.database import (
    RECORDS_NAME,
    WORKLOADS_NAME,
    Database,
    open_records,
    pack,
)
from resq_tvm.schedules.tuning.fingerprint import FINGERPRINT_NAME, Fingerprint
from resq_tvm.schedules.tuning.measured import Measured, winner
from resq_tvm.targets.preset import get_target
from tests.schedules.tuning.kernels import convolution, task

HERE = Fingerprint("x86-generic", "Some CPU (R)")
MACHINE = tvm.target.Target("llvm")


def filled(folder: Path, count: int = 4) -> Database:
    made = Database(folder, HERE)
    one = task()
    for n, decision in enumerate(one.decisions[:count]):
        made.add(one.kernel, one.space, decision, [1e-3 - n * 1e-4] * 3, MACHINE)
    return made


def test_records_come_back(tmp_path):
    filled(tmp_path / "r").close()
    one = task(seed=9)  # other weights, the same task
    back = Database(tmp_path / "r", HERE, read_only=True)
    measured = back.measured(one.kernel, one.heuristic)
    assert measured[0].decision == one.heuristic
    found = {m.decision: m.seconds() for m in measured}
    assert found == pytest.approx(dict(zip(one.decisions, [1e-3, 9e-4, 8e-4, 7e-4], strict=False)))
    best = back.best(one.kernel, one.heuristic)
    assert best is not None and best.decision == one.decisions[3]
    assert back.best(convolution(o=48), one.heuristic) is None


def test_files_are_metaschedules(tmp_path):
    filled(tmp_path / "r").close()
    theirs = ms.database.JSONDatabase(work_dir=str(tmp_path / "r"))
    assert len(theirs) == 4
    workload = theirs.get_all_tuning_records()[0].workload
    assert float(theirs.get_top_k(workload, 1)[0].run_secs[0]) == pytest.approx(7e-4)


def test_failures_are_remembered(tmp_path):
    made = filled(tmp_path / "r")
    one = task()
    made.add(one.kernel, one.space, one.decisions[7], (), MACHINE)
    made.close()
    back = Database(tmp_path / "r", HERE)
    assert [as_sample(d) for d in back.failed(one.kernel)] == [as_sample(one.decisions[7])]
    assert len(back.measured(one.kernel, one.heuristic)) == 4


@pytest.mark.parametrize("name", [WORKLOADS_NAME, RECORDS_NAME])
def test_a_torn_last_line_is_cut_off(tmp_path, name):
    folder = tmp_path / "r"
    filled(folder).close()
    whole = (folder / name).read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    for part in (1, len(line) // 2, len(line) - 2):
        (folder / name).write_bytes(whole + line[:part])
        assert len(Database(folder, HERE, read_only=True)) == 4
        assert (folder / name).read_bytes() == whole + line[:part]  # readers change nothing
        again = Database(folder, HERE)
        assert len(again) == 4
        again.close()
        assert (folder / name).read_bytes() == whole


def test_a_line_without_its_end_is_kept(tmp_path):
    folder = tmp_path / "r"
    filled(folder).close()
    path = folder / RECORDS_NAME
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    again = Database(folder, HERE)
    one = task()
    again.add(one.kernel, one.space, one.decisions[5], [1.0], MACHINE)
    assert len(again) == 5 and len(path.read_text().splitlines()) == 5


def test_records_of_another_fingerprint_are_refused(tmp_path):
    filled(tmp_path / HERE.folder).close()
    for other in (
        replace(HERE, device="Another CPU"),
        replace(HERE, target="x86-avx2"),
        replace(HERE, threads=2),
        replace(HERE, schedules=HERE.schedules + 1),
        replace(HERE, simulated=True),
    ):
        with pytest.raises(ConfigError, match=r"are of x86-generic@Some-CPU-R-t1.*tune for it"):
            open_records(tmp_path / HERE.folder, other)
        with pytest.raises(ConfigError, match=r"nothing for .*but x86-generic@Some-CPU-R-t1"):
            open_records(tmp_path, other)
    assert len(open_records(tmp_path, HERE)) == len(open_records(tmp_path / HERE.folder, HERE)) == 4


def test_bad_folders(tmp_path):
    with pytest.raises(ConfigError, match="none at all"):
        open_records(tmp_path / "nowhere", HERE)
    folder = tmp_path / "r"
    filled(folder).close()
    (folder / FINGERPRINT_NAME).write_text(json.dumps({"target": 3}))
    with pytest.raises(ConfigError, match="cannot be read"):
        open_records(folder, HERE)
    HERE.write(folder)
    (folder / RECORDS_NAME).write_text("[broken]\n" * 2)
    with pytest.raises(ConfigError, match="delete the folder"):
        open_records(folder, HERE)


def test_one_writer(tmp_path):
    first = filled(tmp_path / "r")
    with pytest.raises(ConfigError, match="another program"):
        Database(tmp_path / "r", HERE)
    first.close()
    Database(tmp_path / "r", HERE).close()


def entry(n: int, *medians: float) -> Measured:
    return Measured(task().decisions[n], {i: [m] * 3 for i, m in enumerate(medians)})


def test_what_wins():
    heuristic = entry(0, 1.0)
    assert winner([heuristic, entry(1, 0.98)]) is heuristic  # at another moment: within the noise
    better = entry(1, 0.9)
    assert winner([heuristic, better]) is better
    proven = entry(0, 1.0, 1.1)
    lucky, true = entry(1, 0.5), entry(2, 0.8, 1.0)
    assert winner([proven, lucky, true]) is true  # held against each other: these count
    assert winner([proven, lucky, entry(2, 0.8, 1.095)]) is proven
    assert winner([proven, lucky]) is proven
    again = entry(0, 1.0, 1.1, 0.9)
    assert winner([again, entry(1, 0.8, 0.5), entry(2, 0.8, 1.0, 0.8)]).decision == true.decision


def test_equal_times_have_one_winner():
    rivals = [entry(1, 0.5), entry(2, 0.5), entry(3, 0.5)]
    found = {winner([entry(0, 1.0), *order]).decision for order in permutations(rivals)}
    assert len(found) == 1


def test_pruning_keeps_the_choice(tmp_path):
    made = filled(tmp_path / "r", 6)
    one = task()
    for n in (0, 2, 3):
        seconds = [2e-3 - n * 1e-4] * 4
        made.add(one.kernel, one.space, one.decisions[n], seconds, MACHINE, contest=1)
    assert made.prune(tmp_path / "p", get_target("auto")) == 1
    small = Database(tmp_path / "p", HERE, read_only=True)
    assert len(small) == 2 < len(made)
    old, new = (d.best(one.kernel, one.heuristic) for d in (made, small))
    assert old is not None and new is not None and old.decision == new.decision
    pack(tmp_path / "p")
    assert sorted(p.suffix for p in (tmp_path / "p").iterdir()) == [".gz", ".gz", ".json"]
    packed = Database(tmp_path / "p", HERE, read_only=True)
    again = packed.best(one.kernel, one.heuristic)
    assert again is not None and again.decision == old.decision

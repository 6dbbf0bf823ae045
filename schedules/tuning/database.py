"""What was measured, in MetaSchedule's own JSON files, one folder per fingerprint.

MetaSchedule's queries ignore the target; ours never look beyond one fingerprint's folder. Records
are only ever appended. A program that is killed while it appends leaves a torn last line, which is
cut off when the folder is opened the next time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tvm
from tvm.s_tir import meta_schedule as ms

from resq_tvm.errors import ConfigError
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.signature import digest, signature
from resq_tvm.schedules.space import TUNED, Knobs, as_sample, replay, stand_in, trace_of
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.schedules.tuning.fingerprint import FINGERPRINT_NAME, Fingerprint

WORKLOADS_NAME = "database_workload.json"
RECORDS_NAME = "database_tuning_record.json"
_LOCK_NAME = ".lock"

# By how much a candidate must beat the heuristic: in the search, where each was measured at another
# moment, and in a contest, where they took turns.
UNPROVEN_MARGIN = 0.03
PROVEN_MARGIN = 0.01


@dataclass
class Measured:
    """All measurements of one decision.

    Attributes
    ----------
    decision : Decision
    runs : dict of int to list of float
        Seconds per run: 0 is the search; 1, 2, … are contests, in which the best candidates and
        the heuristic's decision took turns.
    code : str
        Digest of the program, where it is known.
    """

    decision: Decision
    runs: dict[int, list[float]] = field(default_factory=dict)
    code: str = ""

    @property
    def latest(self) -> int:
        """The latest contest that it took part in; 0: none."""
        return max(self.runs)

    def seconds(self, contest: int | None = None) -> float:
        """Return the median of a contest (0: of the search); of the latest by default."""
        return statistics.median(self.runs[self.latest if contest is None else contest])


def winner(measured: Sequence[Measured]) -> Measured:
    """Return the best decision of a task; the heuristic's comes first in ``measured``.

    After a contest, those count that took part in the latest one.
    """
    heuristic = measured[0]
    contest = heuristic.latest
    rivals = [m for m in measured if contest in m.runs]
    best = min(rivals, key=lambda m: m.seconds(contest))
    gain = 1 - best.seconds(contest) / heuristic.seconds(contest)
    return best if gain > (PROVEN_MARGIN if contest else UNPROVEN_MARGIN) else heuristic


class Database:
    """The records of one fingerprint.

    Parameters
    ----------
    folder : Path
        Its folder; made where it is missing, unless ``read_only``.
    fingerprint : Fingerprint
        Which it must be of.
    read_only : bool
        Whether nothing will be added.

    Raises
    ------
    ConfigError
        If the folder is of another fingerprint, broken, or another program adds to it.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint, *, read_only: bool = False) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._lock: Any = None
        self._failed: dict[str, list[Decision]] = {}
        if (folder / FINGERPRINT_NAME).exists():
            found = Fingerprint.read(folder)
            if found != fingerprint:
                raise ConfigError(
                    f"records {str(folder)!r} are of {found}, asked for {fingerprint}; tune for "
                    "it, or name the device that they are for"
                )
        elif read_only:
            raise ConfigError(f"records {str(folder)!r} do not exist; make them with resq-tvm tune")
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            _mend(folder, folder)
            fingerprint.write(folder)
        try:
            if read_only:  # a tuner may be adding records
                with tempfile.TemporaryDirectory(prefix="resq-") as copy:
                    _mend(folder, Path(copy))
                    self._database = _open(Path(copy))
            else:
                self._database = _open(folder)
            self._measured = self._read()
        except ConfigError:
            raise
        except Exception as error:  # TVM raises several types for broken JSON
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"records {str(folder)!r} cannot be read ({reason}); delete the folder and tune"
            ) from None

    def _take_lock(self) -> None:
        self._lock = (self.folder / _LOCK_NAME).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"records {str(self.folder)!r} are being written by another program; wait for it "
                "or use another --work-dir"
            ) from None

    def close(self) -> None:
        """Let other programs add records."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __len__(self) -> int:
        return sum(len(m.runs) for task in self._measured.values() for m in task.values())

    def _read(self) -> dict[str, dict[tuple[int, ...], Measured]]:
        tasks: dict[str, dict[tuple[int, ...], Measured]] = {}
        for record in self._database.get_all_tuning_records():
            module = record.workload.mod
            key = digest(str(module["main"].attrs["resq.kernel"]))
            decision, notes = replay(record.trace, module, _BASE)
            runs = [float(s) for s in record.run_secs or ()]
            if runs:
                contest, code = int(notes.get("contest", 0)), str(notes.get("code", ""))
                _note(tasks.setdefault(key, {}), decision, runs, contest, code)
            else:
                self._failed.setdefault(key, []).append(decision)
        return tasks

    def failed(self, kernel: FusedKernel) -> list[Decision]:
        """Return the decisions that are on record as failures of a kernel's task."""
        return self._failed.get(digest(signature(kernel)), [])

    def measured(self, kernel: FusedKernel, heuristic: Decision) -> list[Measured]:
        """Return what was measured of a kernel's task, the heuristic's decision first.

        Empty if the heuristic was never measured: there is nothing to hold the others against.
        """
        task = self._measured.get(digest(signature(kernel)), {})
        first = task.get(as_sample(heuristic))
        if first is None:
            return []
        rest = [
            replace(m, decision=replace(m.decision, method=heuristic.method))
            for m in task.values()
            if m is not first
        ]
        return [replace(first, decision=heuristic), *rest]

    def best(self, kernel: FusedKernel, heuristic: Decision) -> Measured | None:
        """Return the best decision for a kernel; None if its task was not measured."""
        found = self.measured(kernel, heuristic)
        return winner(found) if found else None

    def add(
        self,
        kernel: FusedKernel,
        space: Knobs,
        decision: Decision,
        seconds: Sequence[float],
        target: Any,
        *,
        contest: int = 0,
        code: str = "",
    ) -> None:
        """Append one measurement.

        Parameters
        ----------
        kernel : FusedKernel
        space : dict
            Of `resq_tvm.schedules.space.knobs`.
        decision : Decision
        seconds : sequence of float
            One per run; empty for a candidate that failed.
        target : tvm.target.Target
        contest : int
            Which contest it took part in; 0: the search.
        code : str
            Digest of the program.
        """
        module = stand_in(kernel)
        workload = self._database.commit_workload(module)
        arguments = ms.arg_info.ArgInfo.from_prim_func(module["main"])
        trace = trace_of(kernel, space, decision, contest=contest, code=code)
        record = ms.database.TuningRecord(trace, workload, list(seconds), target, arguments)
        self._database.commit_tuning_record(record)
        if seconds:
            task = self._measured.setdefault(digest(signature(kernel)), {})
            sampled, _ = replay(trace, module, _BASE)
            _note(task, sampled, list(seconds), contest, code)

    def prune(self, folder: Path, tasks: Sequence[tuple[FusedKernel, Knobs, Decision]]) -> int:
        """Write the heuristic's and the best decision's records of tasks to a new folder.

        Parameters
        ----------
        folder : Path
        tasks : sequence
            Kernel, space and the heuristic's decision of each.

        Returns
        -------
        int
            How many of the tasks had been measured.
        """
        made = Database(folder, self.fingerprint)
        count = 0
        for kernel, space, heuristic in tasks:
            found = self.measured(kernel, heuristic)
            count += bool(found)
            kept = {id(m): m for m in (found[0], winner(found))} if found else {}
            for entry in kept.values():
                for contest in {0, found[0].latest} & set(entry.runs):
                    made.add(
                        kernel,
                        space,
                        entry.decision,
                        entry.runs[contest],
                        tvm.target.Target("llvm"),
                        contest=contest,
                        code=entry.code,
                    )
        made.close()
        return count


# What a trace does not say is the rule's: the method comes from the rule of the kernel at hand.
_BASE = Decision(TUNED, "")


def _note(
    task: dict[tuple[int, ...], Measured],
    decision: Decision,
    runs: list[float],
    contest: int,
    code: str,
) -> None:
    entry = task.setdefault(as_sample(decision), Measured(decision))
    entry.runs[contest] = runs
    entry.code = code or entry.code


def _open(folder: Path) -> Any:
    return ms.database.JSONDatabase(str(folder / WORKLOADS_NAME), str(folder / RECORDS_NAME))


def _mend(source: Path, destination: Path) -> None:
    """Write both files without a torn last line."""
    for name in (WORKLOADS_NAME, RECORDS_NAME):
        path = source / name
        if not path.exists():
            continue
        contents = path.read_bytes()
        end = contents.rfind(b"\n") + 1
        whole, rest = contents[:end], contents[end:]
        with contextlib.suppress(ValueError):
            if rest:
                json.loads(rest)
                whole = contents + b"\n"
        if whole != contents or source != destination:
            (destination / name).write_bytes(whole)


def open_records(path: Path, fingerprint: Fingerprint) -> Database:
    """Open the records of a work directory, or of one fingerprint's folder, for reading.

    Parameters
    ----------
    path : Path
        What was given to ``tune --work-dir``, or one of the folders in it.
    fingerprint : Fingerprint
        What to compile for.

    Raises
    ------
    ConfigError
        If there are no records of that fingerprint.
    """
    if (path / FINGERPRINT_NAME).exists():
        return Database(path, fingerprint, read_only=True)
    if (path / fingerprint.folder).exists():
        return Database(path / fingerprint.folder, fingerprint, read_only=True)
    present = ", ".join(str(f) for f in fingerprints_in(path)) or "none at all"
    raise ConfigError(
        f"records {str(path)!r} hold nothing for {fingerprint}, but {present}; tune for it, or "
        "name the device that they are for"
    )


def fingerprints_in(path: Path) -> Iterator[Fingerprint]:
    """Yield the fingerprints that a work directory has records of."""
    if path.is_dir():
        for folder in sorted(path.iterdir()):
            if (folder / FINGERPRINT_NAME).exists():
                yield Fingerprint.read(folder)

"""What was measured, in MetaSchedule's own JSON files, one folder per fingerprint.

MetaSchedule's queries ignore the target; ours never look beyond one fingerprint's folder. Records
are only ever appended. A program that is killed while it appends leaves a torn last line, which is
cut off when the folder is opened the next time.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
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
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.signature import digest, kernel_of, signature
from resq_tvm.schedules.space import TUNED, Knobs, as_sample, knobs, replay, stand_in, trace_of
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.schedules.tuning.fingerprint import FINGERPRINT_NAME, Fingerprint
from resq_tvm.schedules.tuning.measured import Measured, winner
from resq_tvm.targets.preset import Target

WORKLOADS_NAME = "database_workload.json"
RECORDS_NAME = "database_tuning_record.json"
_LOCK_NAME = ".lock"


@dataclass
class _Task:
    measured: dict[tuple[int, ...], Measured] = field(default_factory=dict)
    failed: list[Decision] = field(default_factory=list)

    def note(self, decision: Decision, runs: list[float], contest: int, code: str) -> None:
        entry = self.measured.setdefault(as_sample(decision), Measured(decision))
        entry.runs[contest] = runs
        entry.code = code or entry.code


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
        self._signatures: dict[str, str] = {}
        self._records: dict[str, list[Any]] = {}  # that were not replayed yet
        self._tasks: dict[str, _Task] = {}
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
            self._read()
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
        return len(self._database)

    def _read(self) -> None:
        """Sort the records by task; they are replayed when they are asked for."""
        keys: dict[Any, str] = {}
        for record in self._database.get_all_tuning_records():
            workload = record.workload  # one object for all records of a task
            if workload not in keys:
                text = str(workload.mod["main"].attrs["resq.kernel"])
                keys[workload] = digest(text)
                self._signatures[keys[workload]] = text
            self._records.setdefault(keys[workload], []).append(record)

    def _task(self, key: str) -> _Task:
        """Return all that is known of a task."""
        task = self._tasks.setdefault(key, _Task())
        for record in self._records.pop(key, ()):
            decision, notes = replay(record.trace, record.workload.mod, _BASE)
            runs = [float(s) for s in record.run_secs or ()]
            if runs:
                task.note(decision, runs, int(notes.get("contest", 0)), str(notes.get("code", "")))
            else:
                task.failed.append(decision)
        return task

    def failed(self, kernel: FusedKernel) -> list[Decision]:
        """Return the decisions that are on record as failures of a kernel's task."""
        return self._task(digest(signature(kernel))).failed

    def tried(self, kernel: FusedKernel) -> list[Decision]:
        """Return all decisions that are on record for a kernel's task, failures too."""
        task = self._task(digest(signature(kernel)))
        return [*(m.decision for m in task.measured.values()), *task.failed]

    def measured(self, kernel: FusedKernel, heuristic: Decision) -> list[Measured]:
        """Return what was measured of a kernel's task, the heuristic's decision first.

        Empty if the heuristic was never measured: there is nothing to hold the others against.
        """
        task = self._task(digest(signature(kernel))).measured
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
        workload = self._database.commit_workload(stand_in(kernel))
        trace = trace_of(kernel, space, decision, contest=contest, code=code)
        record = ms.database.TuningRecord(trace, workload, list(seconds), target, [])
        self._database.commit_tuning_record(record)
        text = signature(kernel)
        self._signatures[digest(text)] = text
        task = self._task(digest(text))
        sampled = replace(decision, rule=TUNED)
        if seconds:
            task.note(sampled, list(seconds), contest, code)
        else:
            task.failed.append(sampled)

    def prune(self, folder: Path, target: Target) -> int:
        """Write the heuristic's and the best decision's times of every task to a new folder.

        Of a record's runs the least, the median and the most are kept.

        Parameters
        ----------
        folder : Path
        target : Target
            The fingerprint's.

        Returns
        -------
        int
            How many tasks were written.
        """
        made = Database(folder, self.fingerprint)
        machine = tvm.target.Target(target.llvm)
        count = 0
        for text in self._signatures.values():
            kernel = kernel_of(text, target)
            heuristic = decide(kernel, target)
            space = knobs(kernel, target, self.fingerprint.threads)
            found = self.measured(kernel, heuristic)
            count += bool(found)
            kept = {id(m): m for m in (found[0], winner(found))} if found else {}
            for entry in kept.values():
                contest = found[0].latest
                runs = entry.runs[contest]
                seconds = [min(runs), statistics.median(runs), max(runs)]
                made.add(kernel, space, entry.decision, seconds, machine, contest=contest)
        made.close()
        return count


# What a trace does not say is the rule's: the method comes from the rule of the kernel at hand.
_BASE = Decision(TUNED, "")


def _open(folder: Path) -> Any:
    return ms.database.JSONDatabase(str(folder / WORKLOADS_NAME), str(folder / RECORDS_NAME))


def _mend(source: Path, destination: Path) -> None:
    """Write both files without a torn last line; packed ones (``.gz``) unpacked."""
    for name in (WORKLOADS_NAME, RECORDS_NAME):
        path, packed = source / name, source / f"{name}.gz"
        if packed.exists():
            (destination / name).write_bytes(gzip.decompress(packed.read_bytes()))
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


def pack(folder: Path) -> None:
    """Compress a folder of records that nothing will be added to."""
    for name in (WORKLOADS_NAME, RECORDS_NAME):
        contents = (folder / name).read_bytes()
        # Without the time: equal records are equal files.
        (folder / f"{name}.gz").write_bytes(gzip.compress(contents, mtime=0))
        (folder / name).unlink()
    (folder / _LOCK_NAME).unlink(missing_ok=True)


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
    return Database(records_folder(path, fingerprint), fingerprint, read_only=True)


def records_folder(path: Path, fingerprint: Fingerprint) -> Path:
    """Return the folder of a fingerprint's records; parameters and errors as of `open_records`."""
    if (path / FINGERPRINT_NAME).exists():
        return path
    if (path / fingerprint.folder).exists():
        return path / fingerprint.folder
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

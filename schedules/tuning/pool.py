"""Worker processes under supervision: a candidate that crashes or hangs costs its process only."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from resq_tvm.errors import TuningError
from resq_tvm.schedules.tuning.job import Job, Measurement, Subject
from resq_tvm.schedules.tuning.worker import MakeDevice

_START_S = 120.0  # until a worker has imported what it needs and has a device
_MOST_LOSSES = 3  # of a device, before a job is given up


@dataclass
class _Slot:
    process: subprocess.Popen[bytes]
    pipe: Connection
    task: str = ""
    job: Job | None = None
    since: float = 0.0
    ready: bool = False


class Pool:
    """Runs jobs in worker processes.

    Parameters
    ----------
    make_device : callable
        Opens a device in a worker; it is pickled, since workers are fresh processes.
    workers : int
        How many candidates are in work at once.
    timeout_s : float
        Seconds for building, checking and timing one candidate.
    pin : bool
        Keep each worker to a CPU of its own.
    remote : bool
        Whether devices may vanish: a job that is not done in time is then given to another one
        before it counts as failed, and workers may wait for a device while others work.
    """

    def __init__(
        self,
        make_device: MakeDevice,
        workers: int,
        timeout_s: float = 20.0,
        *,
        pin: bool = False,
        remote: bool = False,
    ) -> None:
        self._make, self._timeout, self._remote = make_device, timeout_s, remote
        self._heard = time.monotonic()  # of any worker
        cpus = sorted(os.sched_getaffinity(0))
        self._cpus = [(cpus[i % len(cpus)],) if pin else () for i in range(workers)]
        self._subjects: dict[str, Subject] = {}
        self._slots: list[_Slot | None] = [None] * workers

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def workers(self) -> int:
        """How many candidates are in work at once."""
        return len(self._slots)

    def register(self, subject: Subject) -> None:
        """Tell what the jobs of a task are about."""
        self._subjects[subject.key] = subject

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, list[Measurement]]]:
        """Yield jobs with what became of their candidates, as they are done."""
        pending = deque((job, 0) for job in jobs)
        self._heard = time.monotonic()
        losses: dict[int, int] = {}
        active = range(min(self.workers, len(jobs)))
        try:
            while pending or any(s is not None and s.job for s in self._slots):
                for i in active:
                    if pending:
                        self._give(i, pending, losses)
                yield from self._collect(pending, losses)
        finally:
            for i, slot in enumerate(self._slots):  # abandoned in the middle
                if slot is not None and slot.job is not None:
                    self._kill(i)

    def _give(self, i: int, pending: deque[tuple[Job, int]], losses: dict[int, int]) -> None:
        slot = self._slots[i]
        if slot is None:
            self._slots[i] = slot = self._start(i)
        if slot.job is not None or not slot.ready:
            return
        job, lost = pending.popleft()
        losses[id(job)] = lost
        try:
            if slot.task != job.task:
                slot.pipe.send(self._subjects[job.task])
                slot.task = job.task
            slot.pipe.send(job)
        except OSError:  # the process is gone: the next one gets the job
            self._kill(i)
            pending.appendleft((job, lost))
            return
        slot.job, slot.since = job, time.monotonic()

    def _collect(
        self, pending: deque[tuple[Job, int]], losses: dict[int, int]
    ) -> Iterator[tuple[Job, list[Measurement]]]:
        pipes = {s.pipe: i for i, s in enumerate(self._slots) if s is not None}
        for pipe in wait(list(pipes), timeout=0.2):
            assert isinstance(pipe, Connection)
            i = pipes[pipe]
            slot = self._slots[i]
            assert slot is not None
            try:
                results = pipe.recv()
            except (EOFError, OSError):
                job, code = slot.job, self._kill(i)
                if job is not None:
                    message = f"the process ended ({code})"
                    yield job, [Measurement(failure="crash", message=message)] * len(job.decisions)
                elif code:  # otherwise it had no device, or lost it
                    raise TuningError(
                        f"a tuning worker ended with exit code {code} before any work; see that "
                        "python -m resq_tvm.schedules.tuning.worker can be started"
                    ) from None
                continue
            self._heard = time.monotonic()
            if results is None:
                slot.ready = True
                continue
            job, slot.job = slot.job, None
            assert job is not None
            lost = any(r.failure == "device" for r in results)
            if lost:
                slot.ready = False  # it ends
            if not lost or not self._again(job, pending, losses):
                yield job, results
        now = time.monotonic()
        for i, late in enumerate(self._slots):
            if late is None or late.job is None:
                continue
            job = late.job
            if now - late.since > self._timeout * len(job.decisions):
                self._kill(i)
                if not self._remote or not self._again(job, pending, losses):
                    message = f"not done after {self._timeout:g} s"
                    failed = Measurement(failure="timeout", message=message)
                    yield job, [failed] * len(job.decisions)
        if now - self._heard > max(_START_S, self._timeout) and not self._working():
            raise TuningError(
                f"no device could be opened within {_START_S:g} s; see that it is there and free"
            )

    def _again(self, job: Job, pending: deque[tuple[Job, int]], losses: dict[int, int]) -> bool:
        """Put a job back whose device was lost; return whether that was done."""
        if losses[id(job)] + 1 >= _MOST_LOSSES:
            return False
        pending.append((job, losses[id(job)] + 1))
        return True

    def _working(self) -> bool:
        return any(s is not None and s.job is not None for s in self._slots)

    def _start(self, i: int) -> _Slot:
        # A fresh interpreter: forks of a process with TVM's threads may hang, and multiprocessing's
        # own fresh processes would run the user's script again.
        ours, theirs = socket.socketpair()
        environment = {"TVM_BIND_THREADS": "0", "OMP_NUM_THREADS": "1", **os.environ}
        process = subprocess.Popen(
            [sys.executable, "-m", "resq_tvm.schedules.tuning.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # ours carries a verb's result alone
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=environment,
        )
        theirs.close()
        pipe = Connection(ours.detach())
        pipe.send((self._make, self._cpus[i]))
        return _Slot(process, pipe, since=time.monotonic())

    def _kill(self, i: int) -> int | None:
        """End a worker; return the exit code that it had by itself, if any."""
        slot = self._slots[i]
        if slot is None:
            return None
        self._slots[i] = None
        with contextlib.suppress(OSError):
            slot.pipe.close()
        code = slot.process.poll()
        if code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = slot.process.wait(0.5)  # one that ends sees its pipe closed
        if code is None:
            slot.process.kill()
            slot.process.wait()
        return code

    def close(self) -> None:
        """End all workers."""
        for i in range(len(self._slots)):
            self._kill(i)

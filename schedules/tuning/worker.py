"""A worker process: builds, checks and times one candidate after another.

What a candidate does to its process (crash, endless loop, memory) ends with the process. Messages
are pickled: both ends of the pipe are ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

from resq_tvm.schedules.tuning.build import machine_code, program_of
from resq_tvm.schedules.tuning.devices import Built, Device, DeviceLostError
from resq_tvm.schedules.tuning.job import Job, Measurement, Subject
from resq_tvm.schedules.tuning.scenes import Scene

MakeDevice = Callable[[], Device]


class Worker:
    """What a worker process does; `serve` runs it behind a pipe.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._key = ""
        self._scene: Scene | None = None

    def measure(self, subject: Subject, job: Job) -> list[Measurement]:
        """Build, check and time the candidates of a job; return one measurement for each."""
        results: list[Measurement] = []
        built: list[tuple[int, Built]] = []
        for n, decision in enumerate(job.decisions):
            begun = time.perf_counter()
            code = ""
            try:
                program = program_of(subject.kernel, decision, subject.target)
                code = program.digest
                if code not in job.known:
                    module = machine_code(program, subject.target)
                    built.append((n, (module, program.constants)))
                failure = Measurement(code=code)
            except Exception as error:  # whatever a pass or LLVM raises
                failure = Measurement(failure="build", message=_line(error), code=code)
            results.append(replace(failure, build_ms=(time.perf_counter() - begun) * 1e3))
        if built:
            begun = time.perf_counter()
            ran = self._run(subject, job, [b for _, b in built])
            spent = (time.perf_counter() - begun) * 1e3 / len(built)
            for (n, _), result in zip(built, ran, strict=True):
                old = results[n]
                results[n] = replace(result, build_ms=old.build_ms, run_ms=spent, code=old.code)
        return results

    def _run(self, subject: Subject, job: Job, programs: list[Built]) -> list[Measurement]:
        try:
            if self._scene is None or self._key != subject.key:
                self._scene, self._key = Scene(subject.kernel), subject.key
                self._device.load(self._scene, subject.footprint)
            ran = self._device.run(programs, job.repeats, job.limit_s)
        except DeviceLostError as error:
            return [Measurement(failure="device", message=_line(error))] * len(programs)
        except Exception as error:
            return [Measurement(failure="run", message=_line(error))] * len(programs)
        results = []
        for outputs, seconds in ran:
            if complaint := self._scene.complaint(outputs):
                results.append(Measurement(failure="wrong", message=complaint))
            else:
                results.append(Measurement(tuple(seconds)))
        return results


def serve(pipe: Connection) -> None:
    """Answer jobs until the pipe closes or the device is lost.

    The pipe first gives how to open the device and the CPUs to stay on (none: any) and takes None
    when the device is there, which may be whenever a board is free; then it gives a `Subject` for
    each new task and `Job` objects, and takes a list of `Measurement` for each of these.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    make_device, cpus = pipe.recv()
    if cpus:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cpus)
    try:
        worker = Worker(make_device())
    except DeviceLostError:
        return
    subject: Subject | None = None
    pipe.send(None)
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if isinstance(message, Subject):
            subject = message
            continue
        assert subject is not None
        results = worker.measure(subject, message)
        pipe.send(results)
        if any(r.failure == "device" for r in results):
            return  # the next process asks for another one


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))

"""What goes to a runner and what comes back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.targets.preset import Target

Failure = Literal["build", "wrong", "crash", "timeout", "run", "device"]


@dataclass(frozen=True, eq=False)
class Job:
    """Candidates of one task that are built, checked and timed together.

    Attributes
    ----------
    task : str
        Key of the task.
    decisions : tuple of Decision
        One; or several, whose runs take turns, so that what disturbs one disturbs all.
    repeats : int
        Timed runs of each.
    limit_s : float or None
        A candidate that never runs in less is not repeated: it has lost.
    known : frozenset of str
        Programs that were measured before and need not be again.
    """

    task: str
    decisions: tuple[Decision, ...]
    repeats: int
    limit_s: float | None = None
    known: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Measurement:
    """What became of a job.

    Attributes
    ----------
    seconds : tuple of float
        One per timed run; empty if it failed.
    failure : str or None
        ``"build"`` (the compiler refused it), ``"wrong"`` (another result than the reference),
        ``"crash"``, ``"timeout"``, ``"run"`` (it raised), ``"device"`` (the device was lost).
    message : str
        One line on the failure.
    build_ms, run_ms : float
        What building and everything after it took.
    code : str
        Digest of the program. A known one was neither built nor run: ``seconds`` is empty then.
    """

    seconds: tuple[float, ...] = ()
    failure: Failure | None = None
    message: str = ""
    build_ms: float = 0.0
    run_ms: float = 0.0
    code: str = ""


@dataclass(frozen=True, eq=False)
class Subject:
    """What the jobs of one task have in common.

    Attributes
    ----------
    key : str
        The task's.
    kernel : FusedKernel
    target : Target
    footprint : int
        Bytes that the network touches between two runs of the kernel.
    """

    key: str
    kernel: FusedKernel
    target: Target
    footprint: int


def code_digest(text: str) -> str:
    """Return the name of a program."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]

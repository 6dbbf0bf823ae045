"""Compiling with what was measured: a work directory's records, or those that are shipped."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from resq_tvm.device import cpu_model
from resq_tvm.schedules.choice import HEURISTIC, Chosen, Decider, by_rules
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.signature import digest, signature
from resq_tvm.schedules.space import sensible, tunable
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.schedules.tuning.database import Database, open_records
from resq_tvm.schedules.tuning.emulated import emulated_fingerprint, is_emulated
from resq_tvm.schedules.tuning.fingerprint import Fingerprint
from resq_tvm.schedules.tuning.npu import npu_fingerprint
from resq_tvm.targets.preset import Target

SHIPPED = "shipped"
NONE = "none"
SHIPPED_FOLDER = Path(__file__).resolve().parent.parent / "records"

ONLY = "only"


def decider(
    target: Target,
    database: str | PathLike[str] = SHIPPED,
    *,
    device: str | None = None,
    threads: int = 1,
) -> Decider:
    """Return who decides about kernels.

    Parameters
    ----------
    target : Target
    database : str or path
        ``"shipped"``: the records of this package, where it has some of this very machine, else
        the rules; ``"none"``: the rules; or a folder that ``resq-tvm tune`` wrote.
    device : str, optional
        What the artifact will run on, as tuning named it; this machine's processor by default, or
        the emulated board for a core of another architecture.
    threads : int
        Threads per kernel of the measurements.

    Raises
    ------
    ConfigError
        If a folder is given and has no records of that target, device and threads.
    """
    if database == NONE:
        return by_rules(target)
    if target.npu is not None:
        fingerprint = npu_fingerprint(target)
    elif device is None and is_emulated(target):
        fingerprint = emulated_fingerprint(target)
    else:
        fingerprint = Fingerprint(target.name, device or cpu_model(), threads)
    if database == SHIPPED:
        folder = SHIPPED_FOLDER / fingerprint.folder
        if not folder.exists():
            return by_rules(target)
        return by_records(target, open_records(folder, fingerprint))
    return by_records(target, open_records(Path(database), fingerprint))


def by_records(target: Target, database: Database) -> Decider:
    """Return a decider that takes the best decision on record, the rules' where there is none."""

    def choose(kernel: FusedKernel) -> Chosen:
        heuristic = decide(kernel, target)
        if not tunable(kernel, target):
            return Chosen(heuristic, HEURISTIC if kernel.sparse is not None else ONLY)
        best = database.best(kernel, heuristic)
        if best is None:
            return Chosen(heuristic, HEURISTIC)
        # On ARM the weights decide about the method, so that it may be another than was measured.
        if target.arm and not sensible(kernel, best.decision, target):
            return Chosen(heuristic, HEURISTIC)
        return Chosen(best.decision, f"record {digest(signature(kernel))}")

    return choose

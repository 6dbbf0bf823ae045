"""Tune a network's kernels for a device: measure schedules and keep the records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from resq_tvm.artifact_files import read_kernels, target_of
from resq_tvm.compiler import lower_network, tunable_kernels
from resq_tvm.device import available_cpus, cpu_model, fingerprint, resolve_threads
from resq_tvm.errors import ConfigError, TargetError
from resq_tvm.npu.arranged import NetworkResult, tune_network
from resq_tvm.passes.npu.search import Step
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.schedules.signature import kernel_of
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.schedules.tuning.database import Database
from resq_tvm.schedules.tuning.devices import LocalDevice
from resq_tvm.schedules.tuning.emulated import EmulatedDevice, emulated_fingerprint, is_emulated
from resq_tvm.schedules.tuning.fingerprint import Fingerprint
from resq_tvm.schedules.tuning.npu import NpuDevice, npu_fingerprint, npu_roof
from resq_tvm.schedules.tuning.pool import Pool
from resq_tvm.schedules.tuning.roof import Roof, measure_roof
from resq_tvm.schedules.tuning.rpc import RpcAddress, RpcDevice
from resq_tvm.schedules.tuning.tasks import Task, extract
from resq_tvm.schedules.tuning.tuner import (
    TRIALS_PER_TASK,
    Observer,
    TaskResult,
    Tuner,
    describe,
    geometric_mean_gain,
)
from resq_tvm.targets.preset import Target, get_target, missing_features
from resq_tvm.targets.toolchain import export_options

TIMEOUT_S = 20.0
EMULATION_FACTOR = 15  # how much longer a candidate may take under emulation


@dataclass(frozen=True)
class TuneReport:
    """What `tune` found; `to_dict` is the JSON document of ``resq-tvm tune``.

    Attributes
    ----------
    results : list of TaskResult
    folder : Path
        Where the records are.
    fingerprint : Fingerprint
    measured : int
        Candidates measured in this run.
    seconds : float
        Of this run.
    failures : dict of str to int
        Of this run.
    roof : Roof or None
        This machine's, where candidates ran on it with one thread.
    device : dict
        The machine that drove the search. Times are of `fingerprint`'s device, and simulated where
        that says so.
    network : NetworkResult or None
        Of an NPU: what was found for the network as a whole.
    """

    results: list[TaskResult]
    folder: Path
    fingerprint: Fingerprint
    measured: int
    seconds: float
    failures: dict[str, int]
    roof: Roof | None
    device: dict[str, Any]
    network: NetworkResult | None = None

    @property
    def gain(self) -> float:
        """Geometric mean over tasks of the heuristic's time over the best one's."""
        return geometric_mean_gain(self.results)

    def period_ms(self) -> tuple[float, float]:
        """Return the kernels' time over a period of keyframes: heuristic's and best decisions."""
        done = [r for r in self.results if r.heuristic_s is not None and r.best_s is not None]
        before = sum((r.heuristic_s or 0.0) * r.task.weight for r in done)
        after = sum((r.best_s or 0.0) * r.task.weight for r in done)
        return before * 1e3, after * 1e3

    def share_of_roof(self, result: TaskResult) -> float | None:
        """Return the roofline's time over the best decision's."""
        if self.roof is None or not result.best_s:
            return None
        return self.roof.seconds(result.task) / result.best_s

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        before, after = self.period_ms()
        return {
            "database": str(self.folder),
            "fingerprint": str(self.fingerprint),
            "simulated": self.fingerprint.simulated,
            "measured": self.measured,
            "seconds": self.seconds,
            "per_second": self.measured / self.seconds if self.seconds else None,
            "failures": self.failures,
            "geometric_mean_gain": self.gain,
            "period_ms_heuristic": before,
            "period_ms_best": after,
            "roof": None if self.roof is None else vars(self.roof),
            "tasks": [
                {**describe(r), "share_of_roof": self.share_of_roof(r)} for r in self.results
            ],
            "network": None if self.network is None else self.network.to_dict(),
            "device": self.device,
        }


def tune(
    source: QuantizedNetwork | str | PathLike[str],
    target: str | Target = "auto",
    *,
    work_dir: str | PathLike[str],
    trials: int | None = None,
    threads: int = 1,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    rpc: RpcAddress | None = None,
    device: str | None = None,
    state_dtype: str = "float16",
    seed: int = 0,
    observe: Observer | None = None,
    begin: Callable[[list[Task], Roof | None], None] | None = None,
    network_trials: int | None = None,
    observe_network: Callable[[Step], None] | None = None,
) -> TuneReport:
    """Measure schedules for the kernels of a network.

    Every candidate is checked against the reference before its time counts. Records are kept as
    they come, so that an interrupted run loses nothing and the next one goes on.

    Parameters
    ----------
    source : QuantizedNetwork or path
        What `resq_tvm.calibrate` returned, or an artifact. An artifact's own library stays as it
        is: compile the network again with the records.
    target : str or Target
        A preset's name, or ``"auto"`` for this machine's best, or the artifact's own.
    work_dir : path
        Records go to ``<work_dir>/<fingerprint>/``.
    trials : int, optional
        Candidates that are on record in the end, earlier runs included; 40 per task by default.
    threads : int
        Threads per kernel.
    workers : int, optional
        Candidates in work at once: one per ``threads`` CPUs, per board, or per two CPUs under
        emulation, by default.
    timeout_s : float
        Seconds for building, checking and timing one candidate; `EMULATION_FACTOR` times as many
        under emulation.
    rpc : RpcAddress, optional
        Measure on boards behind a tracker instead of this machine. Without it, candidates for a
        core of another architecture run on the emulated board, and times are simulated.
    device : str, optional
        What to call the device in records; this machine's processor by default, required with
        ``rpc``.
    state_dtype : str
        ``"float16"`` or ``"float32"``.
    seed : int
        Of the search.
    observe : callable, optional
        Called with a `resq_tvm.schedules.tuning.tuner.Progress` after every measurement.
    begin : callable, optional
        Called with the tasks and the roofline before the search.
    network_trials : int, optional
        Of an NPU: programs that were simulated in the end to tune the network as a whole, earlier
        runs included; as many as ``trials`` by default.
    observe_network : callable, optional
        Of an NPU: called with a `resq_tvm.passes.npu.search.Step` after every program that was
        simulated.

    Returns
    -------
    TuneReport

    Raises
    ------
    ArtifactError
        If the artifact is missing or altered.
    ConfigError
        If an option is out of range, or the records are another device's.
    TargetError
        If the target is unknown, this machine cannot run it and no board is named, or the boards'
        cross compiler is absent.
    TuningError
        If the boards do not answer, or every candidate fails.
    """
    preset, listed, restore = _source(source, target, state_dtype)
    if (
        timeout_s <= 0
        or (workers is not None and workers < 1)
        or min(trials or 0, network_trials or 0) < 0
    ):
        raise ConfigError(
            f"timeout {timeout_s:g} s, workers {workers}, trials {trials}, network trials "
            f"{network_trials}: use more than 0, at least 1, and at least 0"
        )
    place = _place(preset, threads, rpc, device)
    database = Database(Path(work_dir) / place.folder, place)
    local = rpc is None and not place.simulated
    try:
        kernels = [(restore(entry), float(entry["runs"])) for entry in listed["kernels"]]
        tasks = extract(kernels, preset, threads)
        roof = measure_roof(preset) if local and threads == 1 else None
        if preset.npu is not None:
            roof = npu_roof(preset.npu)
        if begin is not None:
            begin(tasks, roof)
        if rpc is not None:
            make: Any = partial(RpcDevice, rpc, threads, preset)
            count = workers or rpc.boards()
        elif preset.npu is not None:
            make = partial(NpuDevice, preset)
            count = workers or available_cpus()
            timeout_s *= EMULATION_FACTOR
        elif place.simulated:
            make = partial(EmulatedDevice, preset)
            # The program and the model of its core run side by side.
            count = workers or max(1, available_cpus() // 2)
            timeout_s *= EMULATION_FACTOR
        else:
            make = partial(LocalDevice, threads)
            count = workers or max(1, available_cpus() // threads)
        pin = local and threads == 1
        with Pool(make, count, timeout_s, pin=pin, remote=rpc is not None) as pool:
            tuner = Tuner(
                tasks,
                preset,
                database,
                pool,
                footprint=listed["footprint"],
                observe=observe,
                seed=seed,
            )
            wanted = TRIALS_PER_TASK * len(tasks) if trials is None else trials
            results = tuner.run(wanted)
        network = None
        if preset.npu is not None and isinstance(source, QuantizedNetwork):
            network = tune_network(
                source,
                preset,
                database,
                tasks,
                state_dtype=state_dtype,
                trials=wanted if network_trials is None else network_trials,
                seed=seed,
                observe=observe_network,
            )
        return TuneReport(
            results,
            database.folder,
            place,
            tuner.measured,
            tuner.seconds,
            dict(tuner.failures),
            roof,
            fingerprint(threads),
            network,
        )
    finally:
        database.close()


def _place(preset: Target, threads: int, rpc: RpcAddress | None, device: str | None) -> Fingerprint:
    """Return where candidates are to run, and see that they can."""
    if rpc is not None and preset.npu is None:
        if device is None:
            raise ConfigError(
                "boards behind an RPC tracker need a name in records; add --device NAME"
            )
        export_options(preset)  # names a cross compiler that is absent before any work
        return Fingerprint(preset.name, device, threads)
    if preset.npu is not None:
        if threads != 1 or device is not None or rpc is not None:
            raise ConfigError(
                f"threads {threads}, device {device!r}: target {preset.name!r} is simulated here, "
                "under its own name; drop the options, and those of a tracker"
            )
        return npu_fingerprint(preset)
    if is_emulated(preset):
        if threads != 1 or device is not None:
            raise ConfigError(
                f"threads {threads}, device {device!r}: target {preset.name!r} runs on the "
                "emulated board here, with one thread and under its own name; drop the options, or "
                "name a tracker with --rpc-tracker"
            )
        EmulatedDevice(preset)  # names a tool that is absent before any work
        return emulated_fingerprint(preset)
    if missing := missing_features(preset):
        raise TargetError(
            f"target {preset.name!r} needs {', '.join(missing)}, which this CPU lacks; tune on "
            "a board with --rpc-tracker"
        )
    resolve_threads(threads)
    return Fingerprint(preset.name, device or cpu_model(), threads)


def _source(
    source: QuantizedNetwork | str | PathLike[str], target: str | Target, state_dtype: str
) -> tuple[Target, dict[str, Any], Callable[[dict[str, Any]], FusedKernel]]:
    """Return the target, the tunable kernels, and what makes one of these a kernel again."""
    if isinstance(source, QuantizedNetwork):
        preset = get_target(target) if isinstance(target, str) else target
        lowered, _ = lower_network(source, preset, state_dtype=state_dtype, cascades="off")
        known = {r.kernel.name: r.kernel for r in lowered.kernels.values()}
        kernels = tunable_kernels(lowered, preset, source.period)
        return preset, kernels, lambda entry: known[entry["name"]]
    manifest, kernels = read_kernels(source)
    preset = target_of(Path(source), manifest)
    wanted = target if isinstance(target, str) else target.name
    if wanted not in ("auto", preset.name):
        raise ConfigError(
            f"artifact {str(source)!r} is for target {preset.name}, not {wanted!r}; tune the model"
        )
    return preset, kernels, lambda entry: kernel_of(entry["signature"], preset)

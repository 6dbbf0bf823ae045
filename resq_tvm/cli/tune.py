"""``resq-tvm tune``: measure schedules for a network's kernels on a device."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resq_tvm.cli.calibrate import Calibration, CalibrationFrames, obtain_qnet
from resq_tvm.cli.console import Console, cell, table
from resq_tvm.cli.options import (
    Crop,
    DeviceName,
    FirstLast,
    InputShape,
    Json,
    Override,
    Period,
    Processing,
    RpcPriority,
    SchemeText,
    StateDtype,
    TargetName,
)

if TYPE_CHECKING:
    from resq_tvm.npu.arranged import NetworkResult
    from resq_tvm.passes.npu.search import Step
    from resq_tvm.quantize.qnet import QuantizedNetwork
    from resq_tvm.schedules.tuning.roof import Roof
    from resq_tvm.schedules.tuning.tasks import Task
    from resq_tvm.schedules.tuning.tuner import Progress, TaskResult

_SECONDS_BETWEEN_TABLES = 0.5
_SECONDS_BETWEEN_LINES = 5.0
_ROWS = 20
_COLUMNS = (
    "kernel",
    "runs",
    "heuristic ms",
    "best ms",
    "gain",
    "GMAC/s",
    "roof",
    "tried",
    "failed",
    "decision",
)
_TIMES = ("heuristic ms", "best ms", "GMAC/s")


def tune(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model, a .qnet folder, or an artifact OUT.resq."),
    ],
    work_dir: Annotated[
        Path, typer.Option("--work-dir", help="Folder of the records, one folder per device.")
    ],
    target: TargetName = "auto",
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", min=0, help="Candidates on record in the end; 40 per task by default."
        ),
    ] = None,
    network_trials: Annotated[
        int | None,
        typer.Option(
            "--network-trials",
            min=0,
            help="Of an NPU: programs simulated in the end to tune the network as a whole; as "
            "many as --trials by default.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads per kernel.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Candidates in work at once; one per CPU, or per board, by default.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds for building and running one candidate.")
    ] = 20.0,
    rpc_tracker: Annotated[
        str | None, typer.Option("--rpc-tracker", help="HOST:PORT: measure on boards there.")
    ] = None,
    rpc_key: Annotated[
        str | None, typer.Option("--rpc-key", help="The boards' key at the tracker.")
    ] = None,
    rpc_priority: RpcPriority = 1,
    device: DeviceName = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the search.")] = 0,
    calibration: Calibration = None,
    calibration_frames: CalibrationFrames = None,
    crop: Crop = None,
    scheme: SchemeText = "W8A8->W8A4",
    period: Period = 4,
    processing: Processing = None,
    input_shape: InputShape = None,
    state_dtype: StateDtype = "float16",
    override: Override = None,
    first_last: FirstLast = None,
    json: Json = False,
) -> None:
    """Measure schedules for MODEL's kernels and keep them for 'compile --database'.

    Candidates run on this machine, on boards behind --rpc-tracker, or, for an ARM core from
    another machine, on the emulated board; its times are simulated, as are an NPU's.

    Ctrl-C, or worse, loses no finished measurement: the same command goes on. MODEL may be a .qnet
    folder or an artifact OUT.resq; otherwise it is calibrated, on generated frames by default:
    times do not depend on scales. For an NPU the network is then tuned as a whole, too: tiles,
    cascades, and what stays on the chip.
    """
    from resq_tvm.files import check_writable
    from resq_tvm.processing.config import load_processing
    from resq_tvm.schedules.tuning.rpc import RpcAddress
    from resq_tvm.targets.preset import get_target

    console = Console(
        json,
        "tune",
        model=model,
        work_dir=work_dir,
        target=target,
        trials=trials,
        network_trials=network_trials,
        threads=threads,
        workers=workers,
        timeout=timeout,
        rpc_tracker=rpc_tracker,
        rpc_key=rpc_key,
        rpc_priority=rpc_priority,
        device=device,
        seed=seed,
        calibration=calibration,
        calibration_frames=calibration_frames,
        crop=crop,
        scheme=scheme,
        period=period,
        processing=processing,
        input_shape=input_shape,
        state_dtype=state_dtype,
        override=override,
        first_last=first_last,
    )
    check_writable(work_dir)
    address = None if rpc_tracker is None else RpcAddress.parse(rpc_tracker, rpc_key, rpc_priority)
    if address is not None:
        address.boards()
    source: QuantizedNetwork | str = model
    if Path(model).suffix != ".resq":
        console.resolve(target=get_target(target).name)
        source, _ = obtain_qnet(
            console,
            model,
            calibration=calibration or "random",
            calibration_frames=calibration_frames or (None if calibration else "4"),
            crop=crop,
            scheme=scheme,
            period=period,
            processing=load_processing(processing) if processing is not None else None,
            input_shape=input_shape,
            override=override,
            first_last=first_last,
            granularity="channel",
            residual="pairwise",
            samples=16,
            candidates=4,
            rounding="nearest",
            precise=0.0,
            tau=None,
            budget=None,
            labels=None,
            dump=None,
        )
    from resq_tvm.tuning import tune as tune_network

    with _live(console) as (begin, observe, show_step):
        try:
            report = tune_network(
                source,
                target,
                work_dir=work_dir,
                trials=trials,
                threads=threads,
                workers=workers,
                timeout_s=timeout,
                rpc=address,
                device=device,
                state_dtype=state_dtype,
                seed=seed,
                observe=observe,
                begin=begin,
                network_trials=network_trials,
                observe_network=show_step,
            )
        except KeyboardInterrupt:
            console.say(f"stopped: what was measured is in {work_dir}; the same command goes on")
            raise
    before, after = report.period_ms()
    unit = "simulated ms" if report.fingerprint.simulated else "ms"
    failures = ", ".join(f"{n} {kind}" for kind, n in report.failures.items()) or "none"

    def render(out: Any) -> None:
        shares = {r.task.key: report.share_of_roof(r) for r in report.results}
        done = [r for r in report.results if r.best_s is not None]
        out.print(_table(done, shares, len(done), report.fingerprint.simulated))
        rows = [
            ("tasks", f"{len(done)} of {len(report.results)} measured"),
            ("records", report.folder),
            ("measured", f"{report.measured} in {report.seconds:.0f} s"),
            ("failed", failures),
        ]
        if done:
            rows += [
                ("geometric mean gain", report.gain),
                (f"kernels over a period, heuristic {unit}", before),
                (f"kernels over a period, best {unit}", after),
            ]
        rows += _network_rows(report.network)
        out.print(table(("", ""), rows))

    console.finish(report.to_dict(), render)


def _table(
    results: list[TaskResult], shares: Mapping[str, float | None], rows: int, simulated: bool
) -> Any:
    """Return the tasks that take the most of a period, those first."""
    ordered = sorted(results, key=lambda r: -(r.best_s or 0.0) * r.task.weight)[:rows]
    cells = [
        (
            r.task.describe(),
            r.task.weight,
            None if r.heuristic_s is None else r.heuristic_s * 1e3,
            None if r.best_s is None else r.best_s * 1e3,
            None if r.best_s is None else r.gain,
            r.gmacs,
            _percent(shares.get(r.task.key)),
            r.trials,
            sum(r.failures.values()),
            str(r.best),
        )
        for r in ordered
    ]
    names = (f"simulated {name}" if name in _TIMES and simulated else name for name in _COLUMNS)
    return table(tuple(names), cells)


def _network_rows(network: NetworkResult | None) -> list[tuple[str, str]]:
    """Return what tuning the network as a whole found."""
    if network is None:
        return []
    rows = [
        (
            f"{name}, simulated cycles",
            f"{network.best[name]} (untuned {network.untuned[name]}, without cascades "
            f"{network.default[name]})",
        )
        for name in network.best
    ]
    return [("network trials", f"{network.trials}, {network.on_record} on record"), *rows]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


@contextmanager
def _live(
    console: Console,
) -> Iterator[tuple[Callable[..., None], Callable[[Progress], None], Callable[[Step], None]]]:
    """Yield what shows the search: a table on a terminal, a line now and then otherwise.

    That is what begins it, what shows its kernels, and what shows the whole network.
    """
    roof: Roof | None = None
    shown = 0.0

    def begin(tasks: list[Task], measured: Roof | None) -> None:
        nonlocal roof
        roof = measured
        size = sum(len(t.decisions) for t in tasks)
        peak = "" if roof is None else f"; roofline {roof.gmacs:.0f} GMAC/s, {roof.gbytes:.0f} GB/s"
        console.say(f"{len(tasks)} tasks with {size} candidates{peak}")

    def due(pause: float) -> bool:
        nonlocal shown
        now = time.monotonic()
        if now - shown < pause:
            return False
        shown = now
        return True

    def line(progress: Progress) -> None:
        if due(_SECONDS_BETWEEN_LINES):
            console.say(_headline(progress))

    def step_line(step: Step) -> None:
        if due(_SECONDS_BETWEEN_LINES):
            console.say(_step_text(step))

    if console.as_json or not sys.stderr.isatty():
        yield begin, line, step_line
        return
    from rich.console import Console as RichConsole
    from rich.console import Group
    from rich.live import Live

    with Live(console=RichConsole(stderr=True), auto_refresh=False, transient=True) as live:

        def redraw(progress: Progress) -> None:
            if due(_SECONDS_BETWEEN_TABLES):
                results = progress.results()
                known = {
                    r.task.key: roof.seconds(r.task) / r.best_s
                    for r in results
                    if roof is not None and r.best_s
                }
                shown_table = _table(results, known, _ROWS, progress.simulated)
                live.update(Group(_headline(progress), shown_table), refresh=True)

        def redraw_step(step: Step) -> None:
            if due(_SECONDS_BETWEEN_TABLES):
                live.update(_step_text(step), refresh=True)

        yield begin, redraw, redraw_step


def _step_text(step: Step) -> str:
    pace = step.trials / max(step.seconds, 1e-9)
    best = ", ".join(
        f"{n} {c} of {step.first.get(n, c)} simulated cycles" for n, c in step.cycles.items()
    )
    left = cell((step.most - step.trials) / max(pace, 1e-9))
    return f"network: {step.trials}/{step.most} ({pace:.1f}/s, ETA {left} s)  {best}"


def _headline(progress: Progress) -> str:
    from resq_tvm.schedules.tuning.tuner import geometric_mean_gain

    results = progress.results()
    best = max((r.gmacs or 0.0 for r in results), default=0.0)
    gain = geometric_mean_gain(results)
    eta = progress.eta_s
    failed = sum(progress.failures.values())
    unit = "simulated GMAC/s" if progress.simulated else "GMAC/s"
    return (
        f"{progress.stage}: {progress.done}/{progress.total} "
        f"({progress.done / max(progress.seconds, 1e-9):.1f}/s, ETA {cell(eta)} s)  "
        f"best {best:.0f} {unit}  gain {gain:.3f}  failed {failed}  at {progress.task.describe()}"
    )

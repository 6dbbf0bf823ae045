"""The options of thresholds and budgets, and the fit that they ask for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resq_tvm.cli.console import Console
from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.clips import PreparedClip
    from resq_tvm.processing.config import ProcessingConfig
    from resq_tvm.quantize.activity import Cost
    from resq_tvm.quantize.qnet import QuantizedNetwork
    from resq_tvm.quantize.thresholds import FitReport

    Timed = Callable[[QuantizedNetwork], Cost]

Tau = Annotated[
    float | None,
    typer.Option("--tau", min=0.0, help="Threshold of the policy of a pool; 3e-4 by default."),
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Fit a pool's thresholds: the error may rise by '0.5 mIoU', '0.2 px' or '1 %', or as "
        "far as leaves '90 % recovery' of what residuals win over holding; or residual frames may "
        "execute '40 % work', or take '3 ms' (compile).",
    ),
]
Guarded = Annotated[
    bool,
    typer.Option(
        "--guarded",
        help="Fit a budget of error for sessions with their guard ('run'), which compute frames on "
        "their own where residuals cost more; without one the error is larger.",
    ),
]
TileBudget = Annotated[
    float | None,
    typer.Option(
        "--tile-budget",
        metavar="SHARE",
        help="Keep at most this share of the 8x8 blocks of any value's residual, the strongest.",
    ),
]
Hold = Annotated[
    list[str] | None,
    typer.Option(
        "--hold",
        metavar="OUTPUT",
        help="Compute this output on keyframes alone; residual frames repeat it. May be repeated.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="Folder of label images of the calibration frames."),
]


def check_fit(
    schemes: Sequence[str],
    *,
    tau: float | None,
    budget: str | None,
    labels: Path | None,
    tile_budget: float | None,
    guarded: bool,
    timed: Timed | None,
) -> None:
    """Refuse what cannot be fitted, before any work.

    Parameters
    ----------
    schemes : sequence of str
        The scheme and those of overrides.
    tau, budget, labels, tile_budget, guarded
        As given on the command line.
    timed : callable, optional
        Calibrated network → a cost in milliseconds, where the verb can measure one.

    Raises
    ------
    ConfigError
        If the options do not go with each other or with the scheme.
    SchemeError
        If a scheme is malformed.
    """
    from resq_tvm.quantize.budget import Budget
    from resq_tvm.quantize.qnet import check_tile_budget
    from resq_tvm.scheme import Scheme

    dynamic = any(Scheme.parse(text).dynamic for text in schemes if text != "float")
    for name, value in (("tau", tau), ("budget", budget)):
        if value is not None and not dynamic:
            raise ConfigError(
                f"--{name} {value} has no threshold to set in scheme {schemes[0]!r}; "
                "use a pool of bits such as W8A8->W8A{0,8}"
            )
    if tile_budget is not None:
        check_tile_budget(tile_budget, schemes[0], dynamic)
    if tau is not None and budget is not None:
        raise ConfigError(f"--tau {tau:g} and --budget {budget!r} exclude each other; give one")
    if labels is not None and budget is None:
        raise ConfigError(f"--labels {str(labels)!r} serve to fit thresholds; give --budget, too")
    if guarded and (budget is None or Budget.parse(budget).limits_cost):
        raise ConfigError(
            "--guarded is about a budget of error; give one, such as --budget '5 %', "
            f"in place of {budget or 'none'}"
        )
    if budget is not None and in_ms(budget) and timed is None:
        raise ConfigError(
            f"budget {budget!r} is a time, which is measured on compiled kernels: give it to "
            "'compile', or use '40 % work'"
        )


def fit(
    console: Console,
    qnet: QuantizedNetwork,
    clips: Sequence[PreparedClip],
    processing: ProcessingConfig | None,
    *,
    budget: str,
    labels: Path | None,
    guarded: bool = False,
    timed: Timed | None = None,
    state_dtype: str = "float16",
) -> tuple[QuantizedNetwork, FitReport]:
    """Fit thresholds on the calibration clips; the error is that of the processing's task.

    The network is compiled for this machine to run the trials: integers decide, so that thresholds
    are the same for every target. ``timed`` is asked only if the budget is in milliseconds.

    Raises
    ------
    ConfigError
        If the budget does not go with the task, or labels with the processing.
    ClipError
        If the label images cannot be read.
    """
    from resq_tvm.compiler import compile as compile_network
    from resq_tvm.evaluate import measures
    from resq_tvm.processing.config import RawTask, SegmentationTask
    from resq_tvm.quantize.thresholds import fit_thresholds

    task = RawTask() if processing is None else processing.task
    with (
        console.progress("fit") as progress,
        tempfile.TemporaryDirectory(prefix="resq-") as folder,
    ):
        if labels is not None:
            from resq_tvm.accuracy import read_labels

            if not isinstance(task, SegmentationTask):
                raise ConfigError(
                    f"--labels {str(labels)!r} need --processing of a segmentation task"
                )
            layouts = [output.layout for output in qnet.network.outputs]
            error = measures.label_error(task, read_labels(labels), layouts)
        else:
            progress("float network")
            frames = (frame for clip in clips for frame in clip)
            exact = measures.float_outputs(qnet.network, frames)
            error = measures.error_against_float(qnet.network, task, exact)
        cost = None
        if timed is not None and in_ms(budget):
            progress("compile and time kernels")
            cost = timed(qnet)
        progress("compile for trials")
        artifact = compile_network(
            qnet,
            output=Path(folder) / "trials.resq",
            state_dtype=state_dtype,
            frame_program=False,
            progress=progress,
        )
        fitted, report = fit_thresholds(
            qnet,
            clips,
            error=error,
            budget=budget,
            cost=cost,
            state_dtype=state_dtype,
            artifact=artifact,
            guard=guarded,
            progress=progress,
        )
    if report.interrupted:
        console.say("interrupted: going on with the best thresholds so far")
    return fitted, report


def summary(report: FitReport | None) -> dict[str, Any]:
    """Return what a verb's JSON document says about a fit; nothing where there was none."""
    if report is None:
        return {}
    found: Mapping[str, Any] = report.to_dict()
    kept = {name: value for name, value in found.items() if name != "shares"}
    return {"fit": {**kept, "predicted_ms": report.cost if in_ms(report.budget) else None}}


def outcome(report: FitReport | None) -> list[tuple[str, object]]:
    """Return what a table says about a fit, name and value; nothing where there was none."""
    if report is None:
        return []
    unit = f", {report.unit}" if report.unit else ""
    rows: list[tuple[str, object]] = [
        ("budget", report.budget),
        (f"error{unit}", report.error),
        (f"error with thresholds of 0{unit}", report.static_error),
        ("share of work", report.work),
    ]
    if report.alone:
        rows.append(("frames that the guard computes", f"{report.alone} of {report.frames}"))
    if in_ms(report.budget):
        rows.append(("predicted ms of a residual frame", report.cost))
        rows.append(("predicted ms with thresholds of 0", report.static_cost))
    return rows


def in_ms(budget: str) -> bool:
    """Return whether a budget is a time per residual frame."""
    from resq_tvm.quantize.budget import Budget

    return Budget.parse(budget).unit == "ms"

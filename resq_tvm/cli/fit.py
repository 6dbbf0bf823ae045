"""The options ``--tau``, ``--budget`` and ``--labels`` of the verbs that calibrate."""

from __future__ import annotations

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
        help="Fit a pool's thresholds: the error may rise by '0.5 mIoU', '0.2 px' or '1 %', or "
        "residual frames may execute '40 % work'.",
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
    timed: Timed | None,
) -> None:
    """Refuse what cannot be fitted, before any work.

    Parameters
    ----------
    schemes : sequence of str
        The scheme and those of overrides.
    tau, budget, labels
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
    from resq_tvm.scheme import Scheme

    for name, value in (("tau", tau), ("budget", budget)):
        if value is None:
            continue
        if not any(Scheme.parse(text).dynamic for text in schemes if text != "float"):
            raise ConfigError(
                f"--{name} {value} has no threshold to set in scheme {schemes[0]!r}; "
                "use a pool of bits such as W8A8->W8A{0,8}"
            )
    if tau is not None and budget is not None:
        raise ConfigError(f"--tau {tau:g} and --budget {budget!r} exclude each other; give one")
    if labels is not None and budget is None:
        raise ConfigError(f"--labels {str(labels)!r} serve to fit thresholds; give --budget, too")
    if budget is not None and Budget.parse(budget).unit == "ms" and timed is None:
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
    timed: Timed | None = None,
    state_dtype: str = "float16",
) -> tuple[QuantizedNetwork, FitReport]:
    """Fit thresholds on the calibration clips; the error is that of the processing's task.

    Raises
    ------
    ConfigError
        If the budget does not go with the task, or labels with the processing.
    ClipError
        If the label images cannot be read.
    """
    from resq_tvm.evaluate import measures
    from resq_tvm.processing.config import RawTask, SegmentationTask
    from resq_tvm.quantize.thresholds import fit_thresholds

    task = RawTask() if processing is None else processing.task
    with console.progress("fit") as progress:
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
        fitted, report = fit_thresholds(
            qnet,
            clips,
            error=error,
            budget=budget,
            cost=None if timed is None else timed(qnet),
            state_dtype=state_dtype,
            progress=progress,
        )
    if report.interrupted:
        console.say("interrupted: going on with the best thresholds so far")
    return fitted, report


def summary(report: FitReport | None) -> dict[str, Any]:
    """Return what a verb's result says about a fit; nothing where there was none."""
    if report is None:
        return {}
    found: Mapping[str, Any] = report.to_dict()
    return {"fit": {name: value for name, value in found.items() if name != "shares"}}

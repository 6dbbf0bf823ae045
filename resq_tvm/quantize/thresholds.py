"""Fit the thresholds of a Dynamic-ResQ network to a budget of error or of work.

A residual is motion and noise. What a threshold drops of noise costs no accuracy, and how much
noise a value has differs from value to value: so a choice's threshold is a multiple of the root
mean square of its own residuals on the clips. The multiple is one for all at first, as large as
the budget allows; then sweeps move the multiples apart: a threshold rises where work is cheap to
save, by the change of outputs that a trial rise causes, and falls where it is dear.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import tvm

from resq_tvm.artifact import Artifact
from resq_tvm.errors import CalibrationError, ConfigError
from resq_tvm.evaluate.judge import recovery
from resq_tvm.evaluate.measures import Outputs
from resq_tvm.passes.graph import shape_of
from resq_tvm.passes.partition.program import Settings
from resq_tvm.quantize.activity import ActivityMeter, Cost, mac_share
from resq_tvm.quantize.budget import Budget
from resq_tvm.quantize.compiled_trials import CompiledTrials
from resq_tvm.quantize.groups import choice_groups
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.quantize.samples import Clip, read_clip
from resq_tvm.quantize.search import Search
from resq_tvm.quantize.trials import Thresholds, Trials

FEW = 20  # residual frames: with fewer, clips are run at a second phase of the period, too

Error = Callable[[Sequence[Outputs], Sequence[int]], float]
"""(outputs per frame of the clips, the frames that count) → their error."""


@dataclass(frozen=True)
class FitReport:
    """What a fit found, on the residual frames of the clips it was fitted on.

    Attributes
    ----------
    budget, unit : str
        The budget; the error's unit (empty where the error does not say).
    frames : int
        Residual frames that were judged; a frame counts at each phase of the period.
    static_error, error : float
        Of the residual that keeps everything, and with the thresholds found.
    frame_error, hold_error : float
        Of frame quantization at the keyframe's precision, and of holding the keyframe's output.
    static_work, work : float
        Share of a keyframe's multiply-accumulates in active tiles.
    static_cost, cost : float
        By the cost given (the share of work by default).
    shares : dict of str to float
        Layer → share of its output tiles that are active.
    gate : float
        Thresholds of the gates, in multiples of a block's expected noise energy; 0 is open.
    alone : int
        Frames of ``frames`` that the guard computes on their own: everything is active in them.
    trials : int
        Runs of the residual program over some of the frames.
    interrupted : bool
        Whether the fit was stopped before its end; the thresholds are the best until then.
    """

    budget: str
    unit: str
    frames: int
    static_error: float
    error: float
    frame_error: float
    hold_error: float
    static_work: float
    work: float
    static_cost: float
    cost: float
    shares: dict[str, float]
    gate: float
    alone: int
    trials: int
    interrupted: bool

    @property
    def recovery(self) -> float | None:
        """``(hold - error) / (hold - frame)``, None where nothing moves that matters."""
        return recovery(self.frame_error, self.hold_error, self.error)

    def to_dict(self) -> dict[str, Any]:
        """Return everything and the recovery, ready for JSON."""
        return {**asdict(self), "recovery": self.recovery}


def fit_thresholds(
    qnet: QuantizedNetwork,
    clips: Iterable[Clip],
    *,
    error: Error,
    budget: str | Budget,
    cost: Cost | None = None,
    period: int | None = None,
    state_dtype: str = "float16",
    artifact: Artifact | None = None,
    guard: bool = False,
    progress: Callable[[str], None] | None = None,
) -> tuple[QuantizedNetwork, FitReport]:
    """Fit the policy's thresholds and the gates' to a budget.

    Parameters
    ----------
    qnet : QuantizedNetwork
        Calibrated with a pool of residual bits; its scales stay as they are.
    clips : iterable of clips
        As for `resq_tvm.calibrate`. All frames are used and held in memory, with one state per
        keyframe: some tens are enough.
    error : callable
        (outputs per frame, the frames that count) → error. Frames are counted over all clips, one
        after another; outputs are tuples in the source layout. `resq_tvm.evaluate.measures` makes
        errors.
    budget : str or Budget
        ``"0.5 mIoU"``, ``"0.2 px"``, ``"1 %"``: how much the error may rise above that of the
        residual that keeps everything. ``"90 % recovery"``: as far as that share of the latter's
        advantage over holding the keyframe's output is left. ``"40 % work"``: a ceiling on the
        cost, in percent of the cost of a frame in which everything is active; ``"5 ms"`` likewise,
        of a cost in milliseconds (`resq_tvm.latency.layer_cost`).
    cost : callable, optional
        Layer → share of its output tiles that are active, to a number: the share of the
        multiply-accumulates in active tiles by default.
    period : int, optional
        A keyframe every ``period`` frames; the network's own by default.
    state_dtype : str
        ``"float16"`` or ``"float32"``.
    artifact : Artifact, optional
        Compiled from the network (with any thresholds), for this machine: runs the trials in place
        of PyTorch, with the same results and many times faster.
    guard : bool
        Fit for sessions with their guard (the default of `resq_tvm.Session`): frames on which the
        residual costs more than about three quarters of one with everything active count with that
        cost and with a plain frame's error. Whoever runs without a guard (`evaluate`, an edge
        runtime) then sees more error than the budget. A ceiling on the cost is kept without.
    progress : callable, optional
        Called with a line at every step.

    Returns
    -------
    QuantizedNetwork
        With new thresholds. An interrupt (Ctrl-C) ends the search with the best ones so far.
    FitReport

    Raises
    ------
    ConfigError
        If the network has no pools, the budget cannot be read or not be kept, or the error is in
        another unit.
    CalibrationError
        If the frames do not fit the network or are too few.
    """
    if qnet.dynamic is None:
        raise ConfigError(
            f"scheme {qnet.scheme!r} has no thresholds to fit; use a pool of bits such as "
            "W8A8->W8A{0,8}"
        )
    wanted = Budget.parse(budget) if isinstance(budget, str) else budget
    wanted.check_unit(getattr(error, "unit", ""))
    if wanted.kind == "cost" and cost is None:
        raise ConfigError(
            f"budget {_text(budget)!r} needs a cost in {wanted.unit or 'its unit'}; give cost, or "
            "a budget such as '40 % work'"
        )
    period = qnet.period if period is None else period
    if period < 2:
        raise ConfigError(f"period {period} has no residual frames to fit; use at least 2")
    say = progress or (lambda _line: None)
    main = qnet.module["main"]
    work = mac_share(main)
    layers = ActivityMeter(main).layers
    whole = dict.fromkeys(layers, 1.0)
    least = {layer: 0.0 if pieces else 1.0 for layer, (_, pieces) in layers.items()}
    wanted.check_floor(*((cost or work)(shares) for shares in (least, whole)))
    frames = [read_clip(qnet.network, clip, n) for n, clip in enumerate(clips)]
    count = sum(len(clip) for clip in frames)
    if not any(len(clip) > 1 for clip in frames):
        raise CalibrationError(
            f"the clips hold {count} frame(s), none next to another; "
            "thresholds need clips of at least two consecutive frames"
        )
    if getattr(error, "frames", count) < count:
        raise CalibrationError(
            f"the error has a reference for {getattr(error, 'frames', 0)} of {count} frames; "
            "use the same frames for both"
        )
    say("keyframes")
    parts = qnet, frames, period, _phases(frames, period), state_dtype
    trials = Trials(*parts) if artifact is None else CompiledTrials(*parts, artifact)
    groups = choice_groups(main, getattr(error, "outputs", None))
    noise = _noise_energies(qnet)
    search = Search(trials, error, wanted, cost or work, groups, noise, guard, say)
    interrupted = search.run()
    best = search.best
    report = FitReport(
        budget=_text(budget),
        unit=str(getattr(error, "unit", "")),
        frames=sum(len(phase) for phase in trials.phases),
        static_error=search.static.error,
        error=best.error,
        frame_error=search.frame_error,
        hold_error=search.hold_error,
        static_work=work(search.static.shares),
        work=work(best.shares),
        static_cost=search.static.cost,
        cost=best.cost,
        shares=best.shares,
        gate=best.gate,
        alone=best.alone,
        trials=search.count,
        interrupted=interrupted,
    )
    return _with_thresholds(qnet, search.thresholds(best)), report


def _text(budget: str | Budget) -> str:
    return budget if isinstance(budget, str) else f"{budget.amount:g} {budget.unit}".strip()


def _phases(clips: Sequence[Sequence[Any]], period: int) -> list[int]:
    """Return where first keyframes lie: 0, and halfway where that gives residuals too few."""
    residuals = sum(len(clip) - -(-len(clip) // period) for clip in clips)
    longest = max(len(clip) for clip in clips)
    half = period // 2
    return [0, half] if residuals < FEW and 0 < half < longest - 1 else [0]


def _noise_energies(qnet: QuantizedNetwork) -> dict[str, float]:
    """Return input → a block's expected noise energy, in the unit of its gate's threshold."""
    assert qnet.dynamic is not None
    channels = {p.name: shape_of(p)[-1] for p in qnet.module["main"].params}
    return {
        name: g["block"] ** 2 * channels[name] * (g["noise"] / g["scale"]) ** 2
        for name, g in qnet.dynamic["gates"].items()
    }


def _with_thresholds(qnet: QuantizedNetwork, found: Thresholds) -> QuantizedNetwork:
    """Return the network with other thresholds, those of choices in units of their codes."""
    main = qnet.module["main"]
    assert qnet.dynamic is not None
    one = {name: {**c, "tau": 1.0} for name, c in qnet.dynamic["choices"].items()}
    unit = main.with_attr("resq.dynamic", json.dumps({**qnet.dynamic, "choices": one}))
    settings = Settings(unit, "float32", False)
    choices = {
        name: {**c, "tau": float(found.choices.get(name, 0.0) / settings.choices[name].threshold)}
        for name, c in one.items()
    }
    gates = {
        name: {**g, "threshold": float(np.float32(found.gates.get(name, 0.0)))}
        for name, g in qnet.dynamic["gates"].items()
    }
    dynamic = {**qnet.dynamic, "choices": choices, "gates": gates}
    changed = main.with_attr("resq.dynamic", json.dumps(dynamic))
    module = tvm.IRModule(dict(qnet.module.functions_items()))
    module["main"] = changed
    return replace(qnet, network=replace(qnet.network, module=module))

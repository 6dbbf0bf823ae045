"""What a setting of thresholds gives on the clips: its error, its drift and its cost.

The *error* is what a budget is about; on the frames of a short clip it also falls and rises by
chance. The *drift*, how far outputs are from those of the residual that keeps everything, only
grows as more is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from resq_tvm.evaluate.measures import output_error
from resq_tvm.quantize.activity import Cost
from resq_tvm.quantize.trials import Outputs, Thresholds, Trial, Trials

# Of the cost of a residual frame in which everything is active: what a frame on its own takes
# (networks of docs/figures.md: 0.68 to 0.75).
FRAME = 0.75

Multiples = dict[str, float]  # group → threshold in root mean squares of a choice's residuals
ErrorOf = Callable[[Sequence[Outputs], Sequence[int]], float]


@dataclass(frozen=True)
class Candidate:
    """Multiples and what they give.

    Attributes
    ----------
    multiples : dict of str to float
    gate : float
        In multiples of the expected noise energy.
    error, drift, cost : float
    shares : dict of str to float
        Layer → share of active tiles; of a frame that the guard computes on its own, all.
    alone : int
        Frames that the guard computes on their own.
    """

    multiples: Multiples
    gate: float
    error: float
    drift: float
    cost: float
    shares: dict[str, float]
    alone: int


class Judge:
    """Judges trials, beside that which keeps everything.

    Parameters
    ----------
    trials : Trials
    error : callable
        See `resq_tvm.fit_thresholds`.
    cost : callable

    Attributes
    ----------
    whole : float
        Cost of a residual frame in which everything is active.
    guarded : bool
        Whether frames on which the residual costs more than a frame on its own are judged as
        frames on their own, which a session's guard makes of them. False at first.
    """

    def __init__(self, trials: Trials, error: ErrorOf, cost: Cost) -> None:
        self.trials = trials
        self.whole = cost(dict.fromkeys(trials.meter.layers, 1.0))
        self.guarded = False
        self._error_of, self._cost = error, cost
        self._kept = trials.run(Thresholds())
        against = getattr(error, "against", output_error)
        self._drifts = [against(outputs) for outputs in self._kept.outputs]

    def static(self, groups: Sequence[str]) -> Candidate:
        """Return that which keeps everything."""
        return self.judged(dict.fromkeys(groups, 0.0), 0.0, self._kept)

    def judged(self, multiples: Multiples, gate: float, trial: Trial) -> Candidate:
        """Return what a trial with these multiples has shown."""
        outputs, close = list(trial.outputs), list(trial.outputs)
        costs: list[float] = []
        shares: list[dict[str, float]] = []
        alone = 0
        for n, phase in enumerate(self.trials.phases):
            spent = dict(zip(phase, map(self._cost, trial.shares[n]), strict=True))
            active = dict(zip(phase, trial.shares[n], strict=True))
            if self.guarded:
                limit = FRAME * self.whole
                dear = [frame for frame, cost in spent.items() if cost > limit]
                outputs[n] = _replaced(outputs[n], self.trials.key_outputs, dear)
                close[n] = _replaced(close[n], self._kept.outputs[n], dear)
                spent |= dict.fromkeys(dear, limit)
                active |= {frame: dict.fromkeys(active[frame], 1.0) for frame in dear}
                alone += len(dear)
            costs += spent.values()
            shares += active.values()
        mean = {layer: float(np.mean([s[layer] for s in shares])) for layer in shares[0]}
        drift = self._mean(self._drifts, close)
        cost = float(np.mean(costs))
        return Candidate(multiples, gate, self.error(outputs), drift, cost, mean, alone)

    def error(self, outputs: Sequence[Sequence[Outputs]]) -> float:
        """Return the error of outputs per phase and frame: the mean over residual frames."""
        return self._mean([self._error_of] * len(outputs), outputs)

    def _mean(self, errors: Sequence[ErrorOf], outputs: Sequence[Sequence[Outputs]]) -> float:
        phases = [list(phase) for phase in self.trials.phases]
        found = [
            error(values, frames)
            for error, values, frames in zip(errors, outputs, phases, strict=True)
        ]
        return float(np.average(found, weights=[len(frames) for frames in phases]))


def _replaced(
    outputs: list[Outputs], others: list[Outputs], frames: Sequence[int]
) -> list[Outputs]:
    """Return the outputs of all frames, those of some frames from elsewhere."""
    found = list(outputs)
    for frame in frames:
        found[frame] = others[frame]
    return found

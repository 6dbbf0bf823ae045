"""The search behind `resq_tvm.fit_thresholds`: one multiple for all, per group, per choice.

Two quantities steer it, error and drift (`resq_tvm.quantize.candidates`). The *loss*, both
together, compares settings. At last choices move one by one: each where cost and loss, at the price
that moving all of them together has, become less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from resq_tvm.errors import ConfigError
from resq_tvm.quantize.activity import Cost
from resq_tvm.quantize.budget import Budget
from resq_tvm.quantize.candidates import Candidate, ErrorOf, Judge, Multiples
from resq_tvm.quantize.groups import UNREAD
from resq_tvm.quantize.trials import Thresholds, Trials

LARGEST = 4.0  # times its root mean square: beyond that a residual is motion whatever it costs
# Times a block's expected noise energy. The largest let only strong changes of whole blocks pass.
GATES = (0.0, *(2.0**n for n in range(1, 10)))
SWEEPS = 3

_PROBE = 0.7  # octaves that a probe moves a group, up and down
_GATE_SHARE = 0.05  # of the budget (or of the error, where cost is bounded) that gates may use
_BISECTIONS = 7
_LINE = (-0.4, 0.0, 0.4)  # octaves at which the common factor is tried
_SPEND = (0.3, 0.07)  # octaves of the last steps towards the budget, first and smallest
_STEPS = (1.0, 0.5)  # octaves that single choices move, sweep by sweep


class Search:
    """Looks for the cheapest thresholds within a budget, or the best ones within a cost.

    Parameters
    ----------
    trials : Trials
    error : callable
        See `resq_tvm.fit_thresholds`.
    budget : Budget
    cost : callable
    groups : mapping of str to sequence of str
        Group → choices (`resq_tvm.quantize.groups`).
    noise : mapping of str to float
        Input → expected noise energy of a block.
    guard : bool
        Whether frames on which the residual would cost more than a frame on its own are computed
        as such, as a session with its guard does. A ceiling on the cost is kept without.
    say : callable
        Progress.

    Attributes
    ----------
    static, best : Candidate
        That which keeps everything, and the best so far.
    frame_error, hold_error : float
        Of frame quantization and of holding the keyframe's output.
    count : int
        Runs over all residual frames.
    """

    def __init__(
        self,
        trials: Trials,
        error: ErrorOf,
        budget: Budget,
        cost: Cost,
        groups: Mapping[str, Sequence[str]],
        noise: Mapping[str, float],
        guard: bool,
        say: Callable[[str], None],
    ) -> None:
        self.trials = trials
        self.budget = budget
        self.groups = groups
        self.count = 0
        self._noise = noise
        self._say = say
        say("residuals that keep everything")
        self._unit = trials.residual_norms()
        self._judge = Judge(trials, error, cost)
        self.static = self.best = self._judge.static(list(groups))
        self.frame_error = self._judge.error([trials.key_outputs] * len(trials.phases))
        self.hold_error = self._judge.error(trials.held())
        self._error_limit = budget.error_limit(self.static.error, self.frame_error, self.hold_error)
        self._cost_limit = budget.cost_limit(self._judge.whole)
        self._guard = guard and not budget.limits_cost

    def run(self) -> bool:
        """Search; return whether an interrupt ended it early. `best` holds what was found.

        Raises
        ------
        ConfigError
            If no thresholds keep a ceiling on the cost.
        """
        try:
            self._close_gates()
            # What keeps everything is judged without the guard, and so is what gates let through.
            self._judge.guarded = self._guard
            if self._guard:
                self.best = self._try(self.best.multiples, self.best.gate)
            self._uniform()
            if self._guard:
                self._widen_gates()
            self._sweep()
            self._spend()
            self._refine()
        except KeyboardInterrupt:
            return True
        return False

    def thresholds(self, candidate: Candidate) -> Thresholds:
        """Return a candidate's multiples as thresholds of the programs."""
        return self._thresholds(candidate.multiples, candidate.gate)

    def _thresholds(self, multiples: Multiples, gate: float) -> Thresholds:
        return Thresholds(
            {
                name: min(multiples[group], LARGEST) * self._unit[name]
                for group, names in self.groups.items()
                for name in names
            },
            {name: gate * energy for name, energy in self._noise.items()},
        )

    def _close_gates(self) -> None:
        """Take the largest gate thresholds that cost next to nothing of the budget."""
        start = self.static
        room = start.error if self.budget.limits_cost else self._error_limit - start.error
        for gate in sorted(GATES, reverse=True):
            if not self._noise or gate == 0:
                return
            found = self._try(start.multiples, gate)
            if found.error <= start.error + _GATE_SHARE * room:
                self.best = found
                return

    def _uniform(self) -> None:
        """Find the largest multiple for all that keeps the budget."""
        same = dict.fromkeys(self.groups, 1.0)
        gate = self.best.gate
        low, high = -4.0, float(np.log2(LARGEST))
        if self.static.cost > self._cost_limit and self.budget.limits_cost:
            self.best = self._try(_scaled(same, high), gate)
            if self.best.cost > self._cost_limit:
                raise ConfigError(
                    f"a cost of {self._cost_limit:.3g} cannot be kept: with thresholds at "
                    f"{LARGEST:g} times the residuals it is {self.best.cost:.3g}; "
                    "raise the budget"
                )
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            found = self._try(_scaled(same, middle), gate)
            kept = self._keeps(found)
            if kept:
                self.best = found
            # Dropping more lowers the cost and (but for chance) raises the error.
            more = kept != self.budget.limits_cost
            low, high = (middle, high) if more else (low, middle)

    def _widen_gates(self) -> None:
        """Double the gates' thresholds as long as that pays within the budget.

        They were closed on all frames; those with much motion are the guard's now.
        """
        while self._noise:
            found = self._try(self.best.multiples, 2 * self.best.gate or GATES[1])
            if not self._improves(found, self.best):
                return
            self.best = found

    def _sweep(self) -> None:
        """Move groups apart, towards an equal price of the work that each of them saves."""
        reach = 1.0
        for sweep in range(SWEEPS):
            start = self.best
            scores = self._scores(start, f"sweep {sweep + 1} of {SWEEPS}")
            while self.best is start:
                moved = {
                    group: m * 2 ** float(np.clip(scores.get(group, 0.0) / 2, -1, 1) * reach)
                    for group, m in start.multiples.items()
                }
                found = self._try(_scaled(moved, self._octaves(moved, start)), start.gate)
                if self._improves(found, start):
                    self.best = found
                elif reach < 0.3:
                    return
                else:
                    reach /= 2

    def _scores(self, start: Candidate, title: str) -> dict[str, float]:
        """Return group → how cheap a higher threshold is, in octaves above the average price."""
        saved, spent = {}, {}
        groups = [g for g, m in start.multiples.items() if g != UNREAD and m > 0]
        for number, group in enumerate(groups):
            self._say(
                f"{title}, group {number + 1} of {len(groups)} ({group}): "
                f"cost {start.cost:.3g}, error {start.error:.4g}"
            )
            low, high = (
                self._run(
                    {**start.multiples, group: start.multiples[group] * 2**octave}, start.gate
                )
                for octave in (-_PROBE, _PROBE)
            )
            saved[group] = max(low.cost - high.cost, 0.0)
            spent[group] = max(self._loss(high, start) - self._loss(low, start), 0.0)
        # What cannot be told from chance counts as an average part of it.
        floor_c = 0.1 * float(np.mean([*saved.values()] or [0])) + 1e-12
        floor_l = 0.1 * float(np.mean([*spent.values()] or [0])) + 1e-12
        price = floor_l / floor_c
        return {
            group: float(np.log2((saved[group] + floor_c) * price / (spent[group] + floor_l)))
            for group in saved
        }

    def _octaves(self, multiples: Multiples, start: Candidate) -> float:
        """Return the common factor, in octaves, that brings multiples back to the start's loss.

        Or to the ceiling on the cost. A line through some points: no single one is trusted.
        """
        found = [self._run(_scaled(multiples, octave), start.gate) for octave in _LINE]
        if self.budget.limits_cost:
            values, goal = [c.cost for c in found], 0.99 * self._cost_limit
        else:
            values, goal = [self._loss(c, start) for c in found], self._loss(start, start)
        slope, offset = np.polyfit(_LINE, np.log2(np.maximum(values, 1e-30)), 1)
        if abs(slope) < 1e-3:
            return 0.0
        return float(np.clip((np.log2(max(goal, 1e-30)) - offset) / slope, -0.8, 0.8))

    def _refine(self) -> None:
        """Move choices and gates one by one within the budget, then all together towards it."""
        alone = {
            name: [name]
            for group, names in self.groups.items()
            if group != UNREAD
            for name in names
        }
        multiples = {
            name: self.best.multiples[group] for group, names in self.groups.items()
            for name in names if group != UNREAD
        }  # fmt: skip
        if UNREAD in self.groups:
            alone[UNREAD] = list(self.groups[UNREAD])
            multiples[UNREAD] = self.best.multiples[UNREAD]
        self.groups = alone
        start = found = self.best = replace(self.best, multiples=multiples)
        price = self._price(start)
        for number, step in enumerate(_STEPS):
            for name in ("gate", *alone):
                self._say(
                    f"choices, sweep {number + 1} of {len(_STEPS)} ({name}): "
                    f"cost {found.cost:.3g}, error {found.error:.4g}"
                )
                found = self._moved(found, name, step, start, price)
        self.best = found
        self._spend()
        if not self._improves(self.best, start):
            self.best = start

    def _price(self, start: Candidate) -> float:
        """Return the cost that a unit of loss buys where all choices move together."""
        low, high = (
            self._run(_scaled(start.multiples, octave), start.gate) for octave in (-_PROBE, _PROBE)
        )
        bought = self._loss(high, start) - self._loss(low, start)
        return max(low.cost - high.cost, 0.0) / max(bought, 1e-12)

    def _moved(
        self, found: Candidate, name: str, step: float, start: Candidate, price: float
    ) -> Candidate:
        """Return the better of a candidate and one in which one choice, or the gate, has moved."""

        def value(candidate: Candidate) -> float:
            return candidate.cost + price * self._loss(candidate, start)

        multiple = found.gate if name == "gate" else found.multiples[name]
        if name == UNREAD or multiple == 0:
            return found
        for octaves in (step, -step):
            moved = multiple * 2**octaves
            if name == "gate":
                tried = self._run(found.multiples, moved)
            elif moved <= LARGEST:
                tried = self._run({**found.multiples, name: moved}, found.gate)
            else:
                continue
            if self._keeps(tried) and value(tried) < value(found):
                return tried
        return found

    def _spend(self) -> None:
        """Go on towards the budget, in steps that are halved where they go too far."""
        octaves = _SPEND[0]
        while octaves >= _SPEND[1] and not self.budget.limits_cost:
            found = self._try(_scaled(self.best.multiples, octaves), self.best.gate)
            if self._keeps(found) and found.cost < 0.999 * self.best.cost:
                self.best = found
            else:
                octaves /= 2

    def _keeps(self, found: Candidate) -> bool:
        if self.budget.limits_cost:
            return found.cost <= self._cost_limit
        return found.error <= self._error_limit

    def _improves(self, found: Candidate, start: Candidate) -> bool:
        if not self._keeps(found):
            return False
        if self.budget.limits_cost:
            return self._loss(found, start) < self._loss(start, start)
        return found.cost < 0.995 * start.cost

    def _loss(self, found: Candidate, start: Candidate) -> float:
        parts = ((found.error, self.static.error), (found.drift, start.drift))
        return sum(value / base for value, base in parts if base > 0)

    def _try(self, multiples: Multiples, gate: float) -> Candidate:
        found = self._run(multiples, gate)
        self._say(
            f"cost {found.cost:.3g}, error {found.error:.4g}, drift {found.drift:.3g}, "
            f"gate {gate:g}"
        )
        return found

    def _run(self, multiples: Multiples, gate: float) -> Candidate:
        capped = {
            group: LARGEST if group == UNREAD else min(m, LARGEST) for group, m in multiples.items()
        }
        self.count += 1
        return self._judge.judged(capped, gate, self.trials.run(self._thresholds(capped, gate)))


def _scaled(multiples: Multiples, octaves: float) -> Multiples:
    return {group: multiple * 2**octaves for group, multiple in multiples.items()}

"""What the next frame will cost, learned from the frames before, or fixed.

Nothing here reads a clock: times come in as milliseconds, predictions go out.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Protocol

from resq_tvm.errors import ConfigError

SHARES = (0.0, 0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Shares of changed input between which the time of a residual frame is interpolated."""

PRIOR = (0.1, 0.2, 0.3, 0.37, 0.43, 0.5, 0.65, 0.85)
"""What is assumed of a residual frame at these shares until it is measured, in keyframes.

Rather too little: what is thought too slow is never tried.
"""

FRAME_PRIOR = 0.8  # what is assumed of a frame without state, in keyframes
PROBE_PRIOR = 0.03
_OWN = 0.25  # weight of a new measurement of a keyframe, a frame, a probe
_RESIDUAL = 0.4  # weight of a new measurement of a residual frame
_FORGET = 0.005  # share of its distance to the prior that a prediction loses with every frame
_OUTLIER = 2.0  # a measurement counts as at most so many times (or one such part of) the prediction


class Costs(Protocol):
    """What the rules for keyframes ask; all times are milliseconds."""

    @property
    def keyframe(self) -> float:
        """A keyframe."""

    @property
    def frame(self) -> float:
        """A frame without state."""

    @property
    def probe(self) -> float:
        """Finding out what changed."""

    @property
    def knows_frame(self) -> bool:
        """Whether frames without state have been measured."""

    def residual(self, share: float) -> float:
        """Return the cost of a residual frame after its probe, at a share of change."""

    def saw_keyframe(self, ms: float) -> None:
        """Learn from a keyframe."""

    def saw_frame(self, ms: float) -> None:
        """Learn from a frame without state."""

    def saw_probe(self, ms: float) -> None:
        """Learn from a probe."""

    def saw_residual(self, share: float, ms: float) -> None:
        """Learn from a residual frame, its probe not included."""


@dataclass(frozen=True)
class FixedCosts:
    """Costs that nothing changes: what a session does then depends on its frames alone.

    Attributes
    ----------
    keyframe, frame, probe : float
        Milliseconds.
    points : tuple of (float, float)
        Of residual frames: shares of changed input, which rise, and milliseconds. Between them
        lines are drawn, beyond them nothing changes.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    keyframe: float
    frame: float
    probe: float
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Raise `ConfigError` if a value is out of range."""
        times = [self.keyframe, self.frame, self.probe, *(ms for _, ms in self.points)]
        if not all(isfinite(ms) and ms >= 0 for ms in times):
            raise ConfigError("fixed costs: a time is no number of milliseconds; use at least 0")
        if not self.points:
            raise ConfigError("fixed costs: residual frames have none; give a share and a time")
        shares = [share for share, _ in self.points]
        rising = all(low < high for low, high in pairwise(shares))
        if not (rising and 0 <= shares[0] and shares[-1] <= 1):
            raise ConfigError("fixed costs: shares of residual frames must rise from 0 to 1")

    @property
    def knows_frame(self) -> bool:
        """Always: nothing has to be measured."""
        return True

    def residual(self, share: float) -> float:
        """Return the cost of a residual frame after its probe, at a share of change."""
        right = bisect_left(self.points, share, key=lambda point: point[0])
        if right == 0:
            return self.points[0][1]
        if right == len(self.points):
            return self.points[-1][1]
        (low, before), (high, after) = self.points[right - 1 : right + 1]
        return before + (share - low) / (high - low) * (after - before)

    def saw_keyframe(self, ms: float) -> None:
        """Learn nothing."""

    def saw_frame(self, ms: float) -> None:
        """Learn nothing."""

    def saw_probe(self, ms: float) -> None:
        """Learn nothing."""

    def saw_residual(self, share: float, ms: float) -> None:
        """Learn nothing."""


class CostModel:
    """Moving averages, and for residual frames a monotone curve over the share that changed.

    Keyframes and frames without state differ by a ratio that is learned where one follows the
    other; so each also tells what the other costs now, and a machine that gets faster or slower
    does not spoil the comparison. The curve goes back to its prior slowly: what was slow once is
    tried again.
    """

    def __init__(self) -> None:
        self._unit = 1.0  # a keyframe
        self._runs = 0
        self._ratio = FRAME_PRIOR
        self._ratio_runs = 0
        self._frames = 0
        self._latest: tuple[str, float] | None = None  # program and time of the latest own frame
        self._probe: float | None = None
        self._points: list[float | None] = [None] * len(SHARES)  # None: not measured
        self._curve = list(PRIOR)

    @property
    def keyframe(self) -> float:
        """A keyframe; 1 before anything was measured."""
        return self._unit

    @property
    def frame(self) -> float:
        """A frame without state."""
        return self._unit * self._ratio

    @property
    def probe(self) -> float:
        """Finding out what changed."""
        return self._unit * PROBE_PRIOR if self._probe is None else self._probe

    @property
    def knows_frame(self) -> bool:
        """Whether two frames without state were measured; the first one warms caches."""
        return self._frames > 1

    def residual(self, share: float) -> float:
        """Return the cost of a residual frame after its probe, at a share of change."""
        right, part = _place(share)
        low, high = self._curve[right - 1 : right + 1]
        return low + part * (high - low)

    def saw_keyframe(self, ms: float) -> None:
        """Learn from a keyframe."""
        self._compare("keyframe", ms)
        self._saw_unit(ms)

    def saw_frame(self, ms: float) -> None:
        """Learn from a frame without state."""
        self._compare("frame", ms)
        self._frames += 1
        self._saw_unit(ms / self._ratio)

    def saw_probe(self, ms: float) -> None:
        """Learn from a probe."""
        self._probe = ms if self._probe is None else _blend(self._probe, ms)

    def saw_residual(self, share: float, ms: float) -> None:
        """Learn from a residual frame, its probe not included.

        The two points of the curve around the share move by their weight; others only as far as
        the curve must rise.
        """
        right, part = _place(share)
        weights = (1 - part, part)
        expected = self.residual(share)
        step = _RESIDUAL * (_within(ms, expected) - expected) / (weights[0] ** 2 + weights[1] ** 2)
        low = self._curve[right - 1] + step * weights[0]
        high = self._curve[right] + step * weights[1]
        if low > high:
            low = high = (low + high) / 2
        for i, point in enumerate(self._points):
            if point is not None:
                self._points[i] = min(point, low) if i < right else max(point, high)
        for i, value, weight in ((right - 1, low, weights[0]), (right, high, weights[1])):
            if weight > 0:
                self._points[i] = value
        self._redraw()

    def _compare(self, program: str, ms: float) -> None:
        """Learn the ratio, where a keyframe and a frame without state follow each other."""
        if self._latest is not None and self._latest[0] != program:
            other = self._latest[1]
            ratio = min(max(ms / other if program == "frame" else other / ms, 0.4), 1.0)
            self._ratio = ratio if self._ratio_runs == 0 else _blend(self._ratio, ratio)
            self._ratio_runs += 1
        self._latest = (program, ms)

    def _saw_unit(self, ms: float) -> None:
        # The first run of all warms caches: the second replaces it.
        self._unit = ms if self._runs < 2 else _blend(self._unit, ms)
        self._runs += 1
        self._redraw()

    def _redraw(self) -> None:
        """Draw the curve through what was measured, and near the prior elsewhere."""
        prior = [part * self._unit for part in PRIOR]
        least = 0.0
        for i, point in enumerate(self._points):
            if point is not None:
                least = self._points[i] = point + _FORGET * (prior[i] - point)
            self._curve[i] = max(prior[i], least) if point is None else least
        most = float("inf")
        for i in reversed(range(len(SHARES))):
            point = self._points[i]
            most = min(most, self._curve[i]) if point is None else point
            self._curve[i] = most


def _place(share: float) -> tuple[int, float]:
    """Return the point to the right of a share, and how far it is on the way there."""
    right = min(max(bisect_left(SHARES, share), 1), len(SHARES) - 1)
    return right, (share - SHARES[right - 1]) / (SHARES[right] - SHARES[right - 1])


def _blend(old: float, new: float) -> float:
    return old + _OWN * (_within(new, old) - old)


def _within(value: float, expected: float) -> float:
    return min(max(value, expected / _OUTLIER), expected * _OUTLIER)

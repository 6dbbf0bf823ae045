"""Which frame is a keyframe: the rules (docs/streams.md), without clock, frames or programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resq_tvm.costs import Costs
from resq_tvm.errors import ConfigError

Mode = Literal["period", "adaptive"]
Program = Literal["keyframe", "residual", "frame"]
Kind = Literal["keyframe", "residual", "frame", "repeat"]
"""What gives a frame its output: a program, or the output of the frame computed before it."""

Reason = Literal[
    "first",
    "forced",
    "lost",
    "period",
    "max_distance",
    "scene",
    "cost",
    "resume",
    "measure",
    "stateless",
    "repeat",
]
Look = Literal["probe", "peek", "latest"]
"""What is compared with: the keyframe, the frame before, the frame that was computed last."""

MAX_PERIODS = 4  # the default max_distance, in periods
LONGEST_REST = 16  # frames without state before residuals are considered again
_SHORTEST_GROUP = 4  # that is expected: a few bad groups must not hide that the scene calmed down
_USUAL = 8  # residual groups are taken to last so many frames until some have been seen
_REPEATING = 2  # so many times shorter are both where frames that repeat an output do not count
_WEIGHT = 0.25  # of the latest group in what is expected of groups


@dataclass(frozen=True)
class KeyframePolicy:
    """How a session chooses keyframes.

    Attributes
    ----------
    mode : str
        ``"period"``: every so many frames. ``"adaptive"``: when too much has changed, by what
        frames cost; needs an artifact that chooses bits.
    min_distance : int
        Frames from one keyframe to the next at least, as far as the session chooses.
    max_distance : int, optional
        Frames from one keyframe to the next at most, in the mode ``"adaptive"``; four periods by
        default.
    guard : bool
        Whether frames whose residual would not pay are computed on their own. It has an effect
        only on artifacts that choose bits. Without it the mode ``"period"`` does not depend on
        time that was measured.
    repeat : float, optional
        Share of the input, 0 to 1, up to which a frame may differ from the one that was computed
        last to get its output once more; None computes every frame. Needs an artifact that
        chooses bits.
    """

    mode: Mode = "period"
    min_distance: int = 1
    max_distance: int | None = None
    guard: bool = True
    repeat: float | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` if a value is out of range."""
        if self.mode not in ("period", "adaptive"):
            raise ConfigError(f"keyframes {self.mode!r} are unknown; use period or adaptive")
        if self.min_distance < 1:
            raise ConfigError(f"min distance {self.min_distance} is out of range; use 1 or more")
        if self.repeat is not None and not 0 <= self.repeat <= 1:
            raise ConfigError(f"repeat {self.repeat} is out of range; give a share, 0 to 1")
        if self.max_distance is None:
            return
        if self.mode == "period":
            raise ConfigError("a max distance needs keyframes 'adaptive'; use period instead")
        if self.max_distance < self.min_distance:
            raise ConfigError(
                f"max distance {self.max_distance} is below min distance {self.min_distance}"
            )

    def limit(self, period: int) -> int:
        """Return the frames from one keyframe to the next at most."""
        if self.mode == "period":
            return period
        return self.max_distance or max(MAX_PERIODS * period, self.min_distance)


@dataclass(frozen=True)
class Decision:
    """What gives a frame its output, and why; a residual frame needs no reason."""

    kind: Kind
    reason: Reason | None = None


RESIDUAL = Decision("residual")
REPEAT = Decision("repeat", "repeat")


class KeyframeSchedule:
    """The rules at work on one stream.

    A *group* is a keyframe and its residual frames. The schedule keeps account of what a group
    saved, beside frames without state: a group that did not pay is followed by a *rest*, frames
    without state, twice as many each time. Frames that repeat an output cost the same either way
    and count neither for a group nor against it.

    Parameters
    ----------
    policy : KeyframePolicy
    limit : int
        Frames from one keyframe to the next at most.
    costs : Costs
    has_residual, can_probe, can_rest, can_peek : bool
        What the artifact has: residuals, a probe of what changed, frames without state, a
        comparison of two such frames.
    """

    def __init__(
        self,
        policy: KeyframePolicy,
        limit: int,
        costs: Costs,
        *,
        has_residual: bool = True,
        can_probe: bool = False,
        can_rest: bool = False,
        can_peek: bool = False,
    ) -> None:
        self.policy, self.limit, self.costs = policy, limit, costs
        self.has_residual, self.can_rest, self.can_peek = has_residual, can_rest, can_peek
        self.looks = can_probe and (policy.guard or policy.mode == "adaptive")
        self.guards = can_probe and policy.guard
        self._pending: Reason | None = "first"
        self._distance = 0  # frames since and including the keyframe
        self._computed = 0  # of them, those that did not repeat an output
        self._age = 0  # frames since and including the one computed last
        self._spent = 0.0  # by the group so far, in milliseconds
        self._rested = 0  # length of the latest rest, 0 after a group that paid
        self._rest = 0  # frames without state still to come
        self._resting = False  # the state is of another time
        shorter = 1 if policy.repeat is None else _REPEATING
        self._shortest = min(limit, _SHORTEST_GROUP // shorter)
        self._usual = float(min(limit, _USUAL // shorter))  # frames of a group that are computed
        self._before: float | None = None  # what the frame before was expected to cost

    def force(self, reason: Reason) -> None:
        """Make the next frame a keyframe."""
        if self._pending != "first":
            self._pending = reason

    @property
    def ends_rest(self) -> bool:
        """Whether this is the last frame of a rest: the next one may be compared with it."""
        return self._resting and self._rest == 1 and self.can_peek

    def keeps(self, kind: Kind) -> bool:
        """Whether a frame that was decided upon will be compared with later ones."""
        if self.policy.repeat is not None:
            return kind != "repeat"
        return self.ends_rest and kind == "frame"

    def start(self) -> Decision | Look:
        """Return the decision, or what has to be looked at first."""
        if not self.has_residual:
            return Decision("keyframe", "stateless")
        if self._pending is not None:
            return Decision("keyframe", self._pending)
        if self.policy.repeat is not None and self._age < self.limit:
            return "latest"
        return self._choose()

    def after_latest(self, share: float) -> Decision | Look:
        """Decide on a frame of which that share changed since the one computed last."""
        assert self.policy.repeat is not None
        if share <= self.policy.repeat:
            return REPEAT
        step = self._choose()
        return self.after_peek(share) if step == "peek" else step

    def _choose(self) -> Decision | Look:
        """Return what computes a frame, or what has to be looked at first."""
        if self._rest > 0:
            return Decision("frame", "cost")
        if self.guards and self.can_rest and not self.costs.knows_frame:
            return Decision("frame", "measure")
        if self._resting:
            return "peek" if self.can_peek else Decision("keyframe", "resume")
        if self._distance >= self.limit:
            return self._renew("period" if self.policy.mode == "period" else "max_distance")
        return "probe" if self.looks else RESIDUAL

    def after_probe(self, share: float) -> Decision:
        """Decide on a frame of which that share changed since the keyframe."""
        far_enough = self._distance >= self.policy.min_distance
        adaptive = self.policy.mode == "adaptive"
        if adaptive and self._has_changed(share) and far_enough:
            return self._renew("scene")
        if not self.guards or self.costs.residual(share) <= self._own:
            return RESIDUAL
        if self.can_rest and not far_enough:
            return self._start_rest()
        return self._renew("cost") if far_enough else RESIDUAL

    def after_peek(self, share: float) -> Decision:
        """Decide on a frame of which that share changed since the frame before."""
        residuals = (self._usual - 1) * (self.costs.residual(share) + self.costs.probe)
        pays = self.costs.keyframe + residuals < self._usual * self.costs.frame
        if pays and self._distance >= self.policy.min_distance:
            return Decision("keyframe", "resume")
        return self._start_rest()

    def expected(self, share: float) -> float:
        """Return the milliseconds that a residual frame would take, its probe included."""
        return self.costs.probe + self.costs.residual(share)

    def note(self, kind: Kind, ms: float, share: float | None, looked_ms: float) -> None:
        """Take note of a frame.

        Parameters
        ----------
        kind : str
            What gave it its output.
        ms : float
            How long that took.
        share : float or None
            What share of it had changed, None if nobody looked.
        looked_ms : float
            How long looking took.
        """
        if share is not None:
            self.costs.saw_probe(looked_ms)
        if kind == "repeat":
            self._distance += 1
            self._age += 1
            return
        self._age = 1
        if kind == "keyframe":
            self._pending = None
            self.costs.saw_keyframe(ms)
            self._spent, self._before = self.costs.keyframe, None
            self._distance, self._computed, self._rest, self._resting = 1, 1, 0, False
            return
        if share is not None:
            self._spent += self.costs.probe
        if kind == "frame":
            self.costs.saw_frame(ms)
            self._spent += self.costs.frame
            self._rest = max(self._rest - 1, 0)
        elif share is not None:
            self.costs.saw_residual(share, ms)
            self._spent += self.costs.residual(share)
        self._distance += 1
        self._computed += 1

    @property
    def _own(self) -> float:
        """What the frame costs on its own."""
        return self.costs.frame if self.can_rest else self.costs.keyframe

    @property
    def _paid(self) -> bool:
        """Whether the group took less time than as many frames on their own."""
        return self._spent <= self._computed * self.costs.frame

    def _renew(self, reason: Reason) -> Decision:
        """End a group: a keyframe, or a rest if the group did not pay."""
        seen = max(min(self._computed, self.limit), self._shortest)
        self._usual += _WEIGHT * (seen - self._usual)
        if self.guards and self.can_rest and not self._paid:
            return self._start_rest()
        self._rested = 0
        return Decision("keyframe", reason)

    def _start_rest(self) -> Decision:
        self._rest = min(2 * max(self._rested, 1), LONGEST_REST)
        self._rested = self._rest
        self._resting = True
        return Decision("frame", "cost")

    def _has_changed(self, share: float) -> bool:
        """Return whether a residual frame costs more than the group's frames did on average.

        The keyframe counts as one of them. Where frames get dearer with their distance, to renew
        at that point gives the lowest average; where they do not, it never comes.
        """
        now = min(self._own, self.costs.residual(share)) + self.costs.probe
        before, self._before = self._before, now
        mean = now if before is None else (now + before) / 2
        return mean > self._spent / self._computed

"""Is a residual scheme worth its cost? F, H, e and the recovery, on the same frames.

* F: error of quantizing every frame on its own (usually W8A8);
* H: error of holding the keyframe's output until the next keyframe;
* e: error of the scheme;
* recovery ``(H - e) / (H - F)``: 1 is as good as computing every frame anew, 0 as good as
  holding. Where ``H < 1.25 F`` nothing moves that matters, and the recovery does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from resq_tvm.errors import ConfigError

MOTION_THRESHOLD = 1.25

P = TypeVar("P")
ErrorOf = Callable[[Sequence[P], Sequence[int]], float]
"""(a prediction per frame of the clip, the frames that count) → their error."""


class Runner(Protocol):
    """What runs a stream frame by frame: a `Session` or a `ReferenceSession`."""

    def reset(self) -> None:
        """Forget the stream."""

    def __call__(self, frame: Any) -> Any:
        """Run one frame."""


@dataclass(frozen=True)
class Errors:
    """F, H and e over one choice of frames."""

    frames: int
    frame: float
    hold: float
    scheme: float

    @property
    def counts(self) -> bool:
        """Whether enough moves for the recovery to mean something."""
        return self.hold >= MOTION_THRESHOLD * self.frame and self.hold > self.frame

    @property
    def recovery(self) -> float | None:
        """The recovery, None where it does not count."""
        return recovery(self.frame, self.hold, self.scheme)


@dataclass(frozen=True)
class Judgement:
    """Errors on residual frames (the verdict) and on all frames (beside it).

    ``period`` is None where keyframes were not taken every so many frames; ``keyframes`` is how
    many there were.
    """

    period: int | None
    residual: Errors
    all: Errors
    keyframes: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        data: dict[str, Any] = {"period": self.period, "keyframes": self.keyframes}
        for name, errors in (("residual", self.residual), ("all", self.all)):
            data[name] = {
                **asdict(errors),
                "counts": errors.counts,
                "recovery": errors.recovery,
            }
        return data


def recovery(frame: float, hold: float, scheme: float) -> float | None:
    """Return ``(H - e) / (H - F)``, or None where ``H < 1.25 F``."""
    if hold < MOTION_THRESHOLD * frame or hold <= frame:
        return None
    return (hold - scheme) / (hold - frame)


def hold(frame: Sequence[P], keyframes: int | Iterable[int]) -> list[P]:
    """Return the predictions of repeating each keyframe's until the next one.

    Parameters
    ----------
    frame : sequence
        A prediction per frame.
    keyframes : int or iterable of int
        A keyframe every so many frames, or the keyframes' positions, 0 among them.
    """
    taken = _positions(keyframes, len(frame))
    held: list[P] = []
    for n, prediction in enumerate(frame):
        held.append(prediction if n in taken else held[-1])
    return held


def _positions(keyframes: int | Iterable[int], count: int) -> set[int]:
    return set(range(0, count, keyframes) if isinstance(keyframes, int) else keyframes)


def judge(
    frame: Sequence[P],
    scheme: Sequence[P],
    keyframes: int | Iterable[int],
    error: ErrorOf[P],
    counted: Iterable[int] | None = None,
) -> Judgement:
    """Compare a scheme with frame quantization and with holding, on the same frames.

    Parameters
    ----------
    frame : sequence
        Predictions of frame quantization, one per frame of the clip; keyframes are held from it.
    scheme : sequence
        Predictions of the scheme.
    keyframes : int or iterable of int
        A keyframe every so many frames from frame 0 on, or the positions of the frames that the
        scheme computed on their own.
    error : callable
        For example `SegmentationError` or `LandmarkError`.
    counted : iterable of int, optional
        The frames that count; all by default.

    Raises
    ------
    ConfigError
        If the sequences differ in length, the period is below 2, frame 0 is not a keyframe, or no
        residual frame counts.
    """
    if len(frame) != len(scheme):
        raise ConfigError(
            f"{len(frame)} frame predictions beside {len(scheme)} of the scheme; "
            "run both on the same clip"
        )
    period = keyframes if isinstance(keyframes, int) else None
    if period is not None and period < 2:
        raise ConfigError(f"period {period} has no residual frames to judge; use at least 2")
    taken = _positions(keyframes, len(frame))
    if frame and 0 not in taken:
        raise ConfigError("frame 0 is not among the keyframes; judge a stream from its beginning")
    every = sorted(set(range(len(frame)) if counted is None else counted))
    if every and not 0 <= every[0] <= every[-1] < len(frame):
        raise ConfigError(f"frame {every[-1]} counts but the clip has {len(frame)} frames")
    residual = [n for n in every if n not in taken]
    if not residual:
        raise ConfigError(f"none of the {len(every)} counted frames is a residual frame")
    held = hold(frame, taken)

    def errors(frames: list[int]) -> Errors:
        return Errors(len(frames), error(frame, frames), error(held, frames), error(scheme, frames))

    return Judgement(period, errors(residual), errors(every), len(taken))


def predict(runner: Runner, frames: Iterable[Any], decode: Callable[[Any], P]) -> list[P]:
    """Run a clip from its first frame and keep what ``decode`` makes of each frame's outputs."""
    runner.reset()
    return [decode(runner(frame)) for frame in frames]

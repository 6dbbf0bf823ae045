"""Errors of a scheme's predictions against the float network, and the verdict over schemes.

What recovery means, and when it means nothing, is in `resq_tvm.evaluate.judge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resq_tvm.processing.postprocess import ClassMap, Landmarks, Prediction

ACCEPTED_RECOVERY = 0.8
_SAME_TIME = 1.03  # times within 3 % are one time: that is the noise of a shared machine


def frame_error(found: Prediction, wanted: Prediction) -> float:
    """Return the error of one prediction against the float network's.

    Landmarks: mean distance in network-input pixels over the points that the float network sees.
    Class maps: share of pixels of another class, in percent.
    """
    if isinstance(found, Landmarks) and isinstance(wanted, Landmarks):
        distance = np.linalg.norm(found.points - wanted.points, axis=1)
        return float(distance[wanted.visible].mean()) if wanted.visible.any() else float("nan")
    if isinstance(found, ClassMap) and isinstance(wanted, ClassMap):
        return float((found.labels != wanted.labels).mean() * 100)
    raise TypeError(f"cannot compare {type(found).__name__} with {type(wanted).__name__}")


def error_unit(prediction: Prediction) -> str:
    """Return the unit of `frame_error` for such predictions."""
    return "px" if isinstance(prediction, Landmarks) else "% pixels"


@dataclass(frozen=True)
class Entry:
    """One row of the demo's table. ``ms`` is per frame, amortised over the period."""

    name: str
    kind: str  # "float", "frame", "resq" or "hold"
    error: float
    recovery: float | None
    bops: float
    ms: float
    errors: NDArray[np.float64]  # per frame of the clip


def verdict(entries: Sequence[Entry]) -> tuple[Entry, str]:
    """Choose the scheme that works best on this clip and say why, in one sentence.

    The fastest compiled scheme that recovers at least `ACCEPTED_RECOVERY`; among equally fast
    ones the most accurate. Where nothing moves, holding is as good as computing, and the
    sentence says so.
    """
    compiled = [entry for entry in entries if entry.kind in ("frame", "resq")]
    framed = next(entry for entry in entries if entry.kind == "frame")
    held = next(entry for entry in entries if entry.kind == "hold")
    if framed.recovery is None:
        best = min(compiled, key=lambda entry: entry.error)
        return best, (
            f"{best.name} has the lowest error, but this clip moves too little to tell schemes "
            f"apart (holding {held.error:.3g}, frame W8A8 {framed.error:.3g})"
        )
    good = [e for e in compiled if e.recovery is not None and e.recovery >= ACCEPTED_RECOVERY]
    fastest = min(entry.ms for entry in good)
    best = min((entry for entry in good if entry.ms <= fastest * _SAME_TIME), key=lambda e: e.error)
    worse = [e.name for e in compiled if e.kind == "resq" and e.error >= held.error]
    note = f"; {', '.join(worse)}: no better than holding the keyframe's output" if worse else ""
    return best, (
        f"{best.name}: {best.ms:.2f} ms per frame, recovery {best.recovery:.2f}, "
        f"{best.bops / 1e9:.2f} GBOPs per frame{note}"
    )

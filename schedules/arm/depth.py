"""How many products fit a narrow accumulator, proven from the real weights.

A lane that sums ``w_i · a_i`` with ``|a_i| <= limit`` never exceeds ``limit · Σ|w_i|`` in
magnitude, whatever the frame and in whatever order: the bound holds for every partial sum, too. The
sums are taken per output channel and per lane over the *window* of chunks between two flushes into
wider accumulators. The longest window that holds is used; where none does, the scheme does not
apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.arm.runs import CHUNK, Reduction
from resq_tvm.schedules.spec import Conv

INT8, INT16 = 127, 32767
_LARGEST_CODE = 127

Level = Literal["all", "row", "run", "chunks"]


@dataclass(frozen=True)
class Window:
    """When a narrow accumulator is flushed.

    ``"all"``: once, at the end; ``"row"``: after each row of runs; ``"run"``: after each run;
    ``"chunks"``: after every ``chunks`` chunks of a run. ``largest`` is the bound that was proven.
    """

    level: Level
    chunks: int
    largest: int


def limits_of(anchor: Conv) -> tuple[int, int]:
    """Return the largest magnitudes of a convolution's codes and weights."""
    activation = anchor.limits[0] if anchor.limits is not None else _LARGEST_CODE
    return activation, int(np.abs(anchor.weight.astype(np.int32)).max(initial=0))


def longest_window(
    reduction: Reduction, limit: int, capacity: int, lanes: int, least: int = 1
) -> Window | None:
    """Return the longest window whose sums stay within a capacity; None if there is none.

    Parameters
    ----------
    reduction : Reduction
    limit : int
        Largest magnitude of an activation's code.
    capacity : int
        Largest magnitude of the accumulator.
    lanes : int
        Lanes of the accumulator: bytes ``i`` and ``i + lanes`` of a chunk share one.
    least : int
        Shorter windows than so many chunks do not count, unless one holds everything.
    """
    sums = [_lane_sums(w, lanes) for w in reduction.weights]

    def bound(values: list[NDArray[np.int64]]) -> int:
        return limit * max((int(v.max()) for v in values if v.size), default=0)

    whole = [sum((s.sum(axis=(1, 2, 3)) for s in sums), np.zeros(1, np.int64))]
    if (largest := bound(whole)) <= capacity:
        return Window("all", reduction.chunks, largest)
    window = None
    if (largest := bound([s.sum(axis=(2, 3)) for s in sums])) <= capacity:
        window = Window("row", max(r.columns * r.units for r in reduction.runs), largest)
    elif (largest := bound([s.sum(axis=3) for s in sums])) <= capacity:
        window = Window("run", max(r.units for r in reduction.runs), largest)
    else:
        for chunks in range(max(r.units for r in reduction.runs), 0, -1):
            if (largest := bound([_windows(s, chunks) for s in sums])) <= capacity:
                window = Window("chunks", chunks, largest)
                break
    return window if window is not None and window.chunks >= least else None


def total_bound(reduction: Reduction, limit: int, lanes: int) -> int:
    """Return the bound of a lane over the whole reduction; parameters as of `longest_window`."""
    sums = [_lane_sums(w, lanes).sum(axis=(1, 2, 3)) for w in reduction.weights]
    return limit * int(np.max(sum(sums, np.zeros(1, np.int64)), initial=0))


def _lane_sums(weights: NDArray[np.int8], lanes: int) -> NDArray[np.int64]:
    """Return Σ|w| per (output, row, column, chunk, lane)."""
    magnitude = np.abs(weights.astype(np.int64))
    return magnitude.reshape(*weights.shape[:-1], CHUNK // lanes, lanes).sum(axis=-2)


def _windows(sums: NDArray[np.int64], chunks: int) -> NDArray[np.int64]:
    """Sum windows of ``chunks`` chunks; the last one of a run is shorter."""
    short = -sums.shape[3] % chunks
    padded = np.pad(sums, ((0, 0), (0, 0), (0, 0), (0, short), (0, 0)))
    shape = (*sums.shape[:3], -1, chunks, sums.shape[4])
    return np.asarray(padded.reshape(shape).sum(axis=4))

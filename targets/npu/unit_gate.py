"""What the vector unit finds out about changes: the gate of a frame, and which windows have any.

The gate (block energies, changed blocks, blocks spread to pixels) decides on integers: see
`resq_tvm.reference.ops_policy.changed_pixels`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.npu.commands import Vector

_CLAMP: Final = np.float32(127)


def block_energies(
    values: NDArray[np.float32], reciprocal: float, block: int
) -> NDArray[np.float32]:
    """Return the sums of squares of blocks of whole numbers.

    Parameters
    ----------
    values : ndarray of float32 (h, w, c)
        Differences; times ``reciprocal``, rounded and clamped to ±127, they are whole numbers.
    reciprocal : float
        In float32.
    block : int
        Pixels along a side; blocks at the ends may have fewer.

    Returns
    -------
    ndarray of float32 (ceil(h / block), ceil(w / block), 1)
    """
    codes = np.clip(np.rint(values * np.float32(reciprocal)), -_CLAMP, _CLAMP)
    energy = np.einsum("hwc,hwc->hw", codes.astype(np.float64), codes)
    height, width = energy.shape
    padded = np.pad(energy, ((0, -height % block), (0, -width % block)))
    rows, columns = padded.shape[0] // block, padded.shape[1] // block
    sums = padded.reshape(rows, block, columns, block).sum(axis=(1, 3))
    return sums.astype(np.float32)[..., None]


def changed_blocks(
    energies: NDArray[np.float32], table: dict[str, Any], threshold_scale: float
) -> NDArray[np.float32]:
    """Return 1 for blocks above the threshold and those up to ``reach`` blocks away, else 0."""
    threshold = np.float32(table["threshold"]) * np.float32(threshold_scale)
    reach = int(table["reach"])
    above = np.pad(energies[..., 0] > threshold, reach)
    windows = np.lib.stride_tricks.sliding_window_view(above, (2 * reach + 1, 2 * reach + 1))
    return np.asarray(windows.any(axis=(2, 3)), np.float32)[..., None]


def spread(plane: NDArray[Any], command: Vector, block: int) -> NDArray[np.float32]:
    """Return every pixel's block: (blocks down, blocks across, 1) → (h, w, 1) of the tile."""
    rows = (command.place[0] + np.arange(command.h)) // block
    columns = (command.place[1] + np.arange(command.w)) // block
    return plane[rows[:, None], columns[None]].astype(np.float32)


def active_windows(plane: NDArray[Any], table: dict[str, Any]) -> NDArray[np.float32]:
    """Return 1 for windows of a map in which something is not 0, else 0.

    Parameters
    ----------
    plane : ndarray (h, w, 1)
    table : dict
        ``rows``, ``columns``: pairs of first and past.

    Returns
    -------
    ndarray of float32 (windows down, windows across, 1)
    """
    there = plane[..., 0] != 0
    bands = np.stack([there[first:past].any(axis=0) for first, past in table["rows"]])
    found = np.stack([bands[:, first:past].any(axis=1) for first, past in table["columns"]], axis=1)
    return found.astype(np.float32)[..., None]

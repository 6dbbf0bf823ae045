"""The vector unit's choice of bits: codes get the fewest that do, pixel by pixel."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_EXACT_FLOAT32: Final = 1040  # channels whose squared codes sum up to less than 2^24


def choose_bits(
    codes: NDArray[Any], table: dict[str, Any], threshold_scale: float = 1.0
) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Apply the policy of arXiv 2308.09511 (eq. 9 to 11) to the codes of the finest quantizer.

    With ``e_i`` the root, in float32, of the summed squares of what i's bits leave out of a
    pixel's codes (an exact integer), a pixel gets the first i with ``e_i − e_(i+1) < threshold``
    (float32), else the most bits of the pool.

    Parameters
    ----------
    codes : ndarray (h, w, c)
        Whole numbers of −127 to 127; all channels of a pixel.
    table : dict
        ``pool``: bits in ascending order; ``shifts``: the step ``2**shift`` of each, the last one
        0; ``threshold``.
    threshold_scale : float
        The threshold is multiplied by it, in float32.

    Returns
    -------
    codes : ndarray of int8 (h, w, c)
    bits : ndarray of uint8 (h, w, 1)
        0 where every code is zero.
    """
    fine = np.asarray(codes, np.float32)
    pool, shifts = table["pool"], table["shifts"]
    threshold = np.float32(table["threshold"]) * np.float32(threshold_scale)
    candidates = [
        _narrowed(fine, bits, shift) for bits, shift in zip(pool[:-1], shifts[:-1], strict=True)
    ]
    roots = [_root(fine - candidate) for candidate in candidates]
    roots.append(np.zeros(fine.shape[:2], np.float32))
    result = fine
    chosen = np.full(fine.shape[:2], pool[-1], np.uint8)
    for i in range(len(candidates) - 1, -1, -1):
        enough = roots[i] - roots[i + 1] < threshold
        result = np.where(enough[..., None], candidates[i], result)
        chosen[enough] = pool[i]
    chosen[~result.any(axis=-1)] = 0
    return result.astype(np.int8), chosen[..., None]


def _narrowed(codes: NDArray[np.float32], bits: int, shift: int) -> NDArray[np.float32]:
    """Return codes rounded to ``bits`` bits of step ``2**shift``; 0 bits give zero."""
    if bits == 0:
        return np.zeros_like(codes)
    limit = np.float32((1 << (bits - 1)) - 1)
    step = np.float32(1 << shift)
    rounded = np.rint(codes * (np.float32(1) / step))
    return np.clip(rounded, -limit, limit) * step


def _root(difference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the length of every pixel's vector: the root of an exact integer."""
    wide = difference if difference.shape[-1] <= _EXACT_FLOAT32 else difference.astype(np.float64)
    squares = np.einsum("hwc,hwc->hw", wide, wide)
    return np.sqrt(squares.astype(np.float32))

"""Where a resize reads: source positions and interpolation weights of one axis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import CompileError

_EPSILON = np.float32(1e-5)  # what topi's floor and ceil add


@dataclass(frozen=True)
class AxisTable:
    """For every output index: two source indices and the weight of the second (float32)."""

    low: NDArray[np.int32]
    high: NDArray[np.int32]
    weight: NDArray[np.float32]


@lru_cache(maxsize=256)
def resize_axis(method: str, coordinate: str, rounding: str, source: int, output: int) -> AxisTable:
    """Compute the table of an axis that goes from ``source`` to ``output`` elements.

    Coordinates, in float32, and roundings are those of ``relax.image.resize2d``. Nearest reads
    only ``low``. The arrays are shared: do not write to them.

    Parameters
    ----------
    method : str
        ``"linear"`` or ``"nearest_neighbor"``.
    coordinate, rounding : str
        As of ``relax.image.resize2d``.

    Raises
    ------
    CompileError
        If the coordinate transformation or the rounding is unknown.
    """
    if method == "nearest_neighbor":
        nearest = _nearest(coordinate, rounding, source, output)
        return AxisTable(nearest, nearest, np.zeros(output, np.float32))
    position = _coordinates(coordinate, source, output)
    floor = np.floor(position)
    low = np.clip(floor, 0, source - 1).astype(np.int32)
    high = np.clip(floor + 1, 0, source - 1).astype(np.int32)
    return AxisTable(low, high, (position - floor).astype(np.float32))


def _coordinates(mode: str, source: int, output: int) -> NDArray[np.float32]:
    index = np.arange(output, dtype=np.float32)
    scale = np.float32(source) / np.float32(output)
    half = np.float32(0.5)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and output > 1):
        return (index + half) * scale - half
    if mode == "pytorch_half_pixel" or (mode == "align_corners" and output == 1):
        return np.zeros(output, np.float32)
    if mode == "align_corners":
        return np.float32(source - 1) / np.float32(output - 1) * index
    if mode == "asymmetric":
        return scale * index
    if mode == "tf_half_pixel_for_nn":
        return (index + half) * scale
    raise CompileError(
        f"resize: coordinate transformation {mode!r} is unknown; use half_pixel, "
        "pytorch_half_pixel, align_corners, asymmetric or tf_half_pixel_for_nn"
    )


def _nearest(coordinate: str, rounding: str, source: int, output: int) -> NDArray[np.int32]:
    rounding = rounding or ("round" if coordinate == "align_corners" else "floor")
    if coordinate == "asymmetric" and rounding == "floor" and output % source == 0:
        return (np.arange(output) // (output // source)).astype(np.int32)
    position = _coordinates(coordinate, source, output)
    half = np.float32(0.5)
    match rounding:
        case "round":
            rounded = np.rint(position)
        case "round_prefer_floor":
            rounded = np.ceil(position - half)
        case "round_prefer_ceil":
            rounded = np.floor(position + half)
        case "floor":
            rounded = np.floor(position + _EPSILON)
        case "ceil":
            rounded = np.ceil(position - _EPSILON)
        case _:
            raise CompileError(
                f"resize: rounding {rounding!r} is unknown; use round, round_prefer_floor, "
                "round_prefer_ceil, floor or ceil"
            )
    return np.clip(rounded, 0, source - 1).astype(np.int32)

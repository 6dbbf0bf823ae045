"""Vector programs that begin with more than one input pixel: pooling, mean, resize, window.

All of them read operand 0: a tile of the input whose first pixel lies at ``window`` in the whole
input. The output tile lies at ``place`` in the whole output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.npu.axes import resize_axis
from resq_tvm.targets.npu.commands import Vector
from resq_tvm.targets.npu.memory import Fault

Floats = NDArray[np.float32]


def pool(tile: Floats, command: Vector, table: dict[str, Any]) -> Floats:
    """Return maxima or averages of windows; averages are summed in float64, tap by tap.

    Parameters
    ----------
    tile : ndarray of float32
        Channels are those of the output tile.
    table : dict
        ``kind`` ("max" or "avg"), ``window`` [h, w], ``stride`` [y, x], ``padding``
        [top, left, bottom, right], ``dilation`` [y, x], ``count_include_pad`` (bool), ``size``
        [h, w] of the whole input.

    Raises
    ------
    Fault
        If a window reads pixels of the input that the tile lacks.
    """
    highest = table["kind"] == "max"
    wide = np.float32 if highest else np.float64
    result = np.full((command.h, command.w, tile.shape[2]), -np.inf if highest else 0.0, wide)
    combine = np.maximum if highest else np.add
    columns = _taps(table, 1, command, tile.shape[1])
    for to_rows, from_rows in _taps(table, 0, command, tile.shape[0]):
        for to_columns, from_columns in columns:
            part = result[to_rows, to_columns]
            combine(part, tile[from_rows, from_columns], out=part)
    if not highest:
        result /= _counts(table, 0, command)[:, None, None] * _counts(table, 1, command)[:, None]
    return result.astype(np.float32, copy=False)


def _taps(
    table: dict[str, Any], axis: int, command: Vector, present: int
) -> list[tuple[slice, slice]]:
    """For every tap of an axis: which outputs have it inside the input, and what they read."""
    stride, dilation = table["stride"][axis], table["dilation"][axis]
    count = (command.h, command.w)[axis]
    taps = []
    for k in range(table["window"][axis]):
        start = command.place[axis] * stride - table["padding"][axis] + k * dilation
        taps.append(_along(start, stride, count, table["size"][axis], command.window[axis]))
        _check_present(axis, taps[-1][1], present)
    return taps


def _along(start: int, stride: int, count: int, size: int, first: int) -> tuple[slice, slice]:
    """Split an axis: outputs i with ``start + i·stride`` in [0, size), and that minus ``first``."""
    low = min(max(0, -(start // stride)), count)
    high = max(low, min(count, -(-(size - start) // stride)))
    if low == high:
        return slice(0, 0), slice(0, 0)
    begin = start + low * stride - first
    return slice(low, high), slice(begin, begin + (high - low - 1) * stride + 1, stride)


def _check_present(axis: int, read: slice, present: int) -> None:
    if read.stop > read.start and not (read.start >= 0 and read.stop <= present):
        raise Fault(
            f"{('rows', 'columns')[axis]} {read.start} to {read.stop} of operand 0 are needed, "
            f"which has {present}"
        )


def _counts(table: dict[str, Any], axis: int, command: Vector) -> NDArray[np.int64]:
    """How many taps of an axis count for every output's average."""
    outputs = command.place[axis] + np.arange((command.h, command.w)[axis])
    taps = np.arange(table["window"][axis]) * table["dilation"][axis]
    at = outputs[:, None] * table["stride"][axis] - table["padding"][axis] + taps
    size = table["size"][axis]
    if table["count_include_pad"]:
        return (at < size + table["padding"][axis + 2]).sum(axis=1)
    return ((at >= 0) & (at < size)).sum(axis=1)


def mean(tile: Floats) -> Floats:
    """Return the mean over height and width, summed in float64: (1, 1, c)."""
    wide = np.ascontiguousarray(tile, np.float64)
    return wide.mean(axis=(0, 1), keepdims=True).astype(np.float32)


def resize(tile: Floats, command: Vector, table: dict[str, Any]) -> Floats:
    """Return a resized tile, in float32: first along the rows, then along the columns.

    Parameters
    ----------
    tile : ndarray of float32
        Channels are those of the output tile.
    table : dict
        ``method`` ("linear" or "nearest_neighbor"), ``coordinate``, ``rounding``, ``size`` [h, w]
        of the whole input, ``out`` [h, w] of the whole output.

    Raises
    ------
    Fault
        If it reads pixels of the input that the tile lacks.
    """
    low_y, high_y, weight_y = _source(table, 0, command, tile.shape[0])
    low_x, high_x, weight_x = _source(table, 1, command, tile.shape[1])
    if table["method"] == "nearest_neighbor":
        return tile[low_y][:, low_x]
    wx, wy = weight_x[None, :, None], weight_y[:, None, None]
    one = np.float32(1)
    across = tile[:, low_x]
    across *= one - wx
    across += tile[:, high_x] * wx
    down = across[low_y]
    down *= one - wy
    down += across[high_y] * wy
    return down


def _source(
    table: dict[str, Any], axis: int, command: Vector, present: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
    """Return the axis table of the output tile, with positions in the input tile."""
    whole = resize_axis(
        table["method"],
        table["coordinate"],
        table["rounding"],
        table["size"][axis],
        table["out"][axis],
    )
    part = slice(command.place[axis], command.place[axis] + (command.h, command.w)[axis])
    if part.stop > table["out"][axis]:
        raise Fault(f"the tile ends at {part.stop} of an output of {table['out'][axis]}")
    low, high = whole.low[part] - command.window[axis], whole.high[part] - command.window[axis]
    least, most = int(min(low.min(), high.min())), int(max(low.max(), high.max()))
    _check_present(axis, slice(least, most + 1), present)
    return low, high, whole.weight[part]


def window(tile: Floats, command: Vector, table: dict[str, Any]) -> Floats:
    """Return an affine copy: ``in[y·stride + offset, …, c + offset]``, ``fill`` outside the input.

    Parameters
    ----------
    tile : ndarray of float32
        Its first channel is channel 0 of the input.
    table : dict
        ``offset`` [y, x, c], ``stride`` [y, x], ``fill``, ``size`` [h, w, c] of the whole input.

    Raises
    ------
    Fault
        If it reads pixels or channels of the input that the tile lacks.
    """
    shape = (command.h, command.w, command.c)
    strides, firsts = (*table["stride"], 1), (*command.window, 0)
    inside, source = [], []
    for axis in range(3):
        start = command.place[axis] * strides[axis] + table["offset"][axis]
        out, read = _along(start, strides[axis], shape[axis], table["size"][axis], firsts[axis])
        inside.append(out)
        source.append(read)
    if all(out.stop > out.start for out in inside):
        for axis in range(2):
            _check_present(axis, source[axis], tile.shape[axis])
        if source[2].stop > tile.shape[2]:
            raise Fault(f"operand 0 has {tile.shape[2]} channels of {source[2].stop} that it needs")
    result = np.full(shape, table["fill"], np.float32)
    result[tuple(inside)] = tile[tuple(source)]
    return result

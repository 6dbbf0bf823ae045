"""Pooling, global mean and resize.

Resize is spelled out (index and weight tables, interpolation along x before y) instead of calling
torch's, because torch knows neither all coordinate modes nor all roundings, and so that the order
of the float32 operations is the compiled program's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from resq_tvm.passes.graph import shape_of
from resq_tvm.reference.operands import Builder, Kernel, channels_first, ints, nhwc

_EPSILON = np.float32(1e-5)  # of TVM's floor and ceil roundings


def max_pool2d(call: Any, differentiable: bool) -> Kernel:
    """``relax.nn.max_pool2d``: padding counts as minus infinity."""
    last = nhwc(str(call.attrs.layout), call)
    window, stride, dilation = _window(call)
    top, left, bottom, right = _padding(call, last)

    def run(x: torch.Tensor) -> torch.Tensor:
        if (top, left, bottom, right) != (0, 0, 0, 0):
            x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(x, window, stride, 0, dilation)

    return channels_first(run, last)


def avg_pool2d(call: Any, differentiable: bool) -> Kernel:
    """``relax.nn.avg_pool2d``: divided by the window, or by the part of it inside the image."""
    last = nhwc(str(call.attrs.layout), call)
    window, stride, dilation = _window(call)
    if dilation != [1, 1]:
        raise ValueError(f"average pooling with dilation {dilation} is not known; use dilation 1")
    top, left, bottom, right = _padding(call, last)
    shape = shape_of(call.args[0])
    height, width = shape[1:3] if last else shape[2:4]
    if bool(call.attrs.count_include_pad):
        divisor = torch.tensor(float(window[0] * window[1]))
    else:
        ones = F.pad(torch.ones(1, 1, height, width), (left, right, top, bottom))
        divisor = F.avg_pool2d(ones, window, stride, divisor_override=1)

    def run(x: torch.Tensor) -> torch.Tensor:
        if (top, left, bottom, right) != (0, 0, 0, 0):
            x = F.pad(x, (left, right, top, bottom))
        return F.avg_pool2d(x, window, stride, divisor_override=1) / divisor

    return channels_first(run, last)


def mean(call: Any, differentiable: bool) -> Kernel:
    """``relax.mean`` over given axes."""
    axes, keep = ints(call.attrs.axis), bool(call.attrs.keepdims)
    return lambda x: x.mean(dim=axes, keepdim=keep)


def resize2d(call: Any, differentiable: bool) -> Kernel:
    """``relax.image.resize2d``, linear or nearest, with TVM's coordinates and roundings."""
    at = call.attrs
    last = nhwc(str(at.layout), call)
    axis_y, axis_x = (1, 2) if last else (2, 3)
    source, target = shape_of(call.args[0]), shape_of(call)
    method, mode = str(at.method), str(at.coordinate_transformation_mode)
    sizes = [(source[axis], target[axis]) for axis in (axis_y, axis_x)]
    if method == "linear":
        y, x = (_linear_table(n, m, mode) for n, m in sizes)
        return lambda v: _lerp(_lerp(v, axis_x, *x), axis_y, *y)
    if method == "nearest_neighbor":
        rounding = str(at.rounding_method)
        iy, ix = (torch.from_numpy(nearest_index(n, m, mode, rounding)) for n, m in sizes)
        return lambda v: v.index_select(axis_x, ix).index_select(axis_y, iy)
    raise ValueError(f"resize method {method!r} is not known; use linear or nearest_neighbor")


def source_coordinate(size: int, target: int, mode: str) -> NDArray[np.float32]:
    """Return, per output position of one axis, the input coordinate, float32 ``(target,)``."""
    out = np.arange(target, dtype=np.float32)
    scale = np.float32(size) / np.float32(target)
    half = np.float32(0.5)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and target > 1):
        return (out + half) * scale - half
    if mode == "pytorch_half_pixel" or (mode == "align_corners" and target == 1):
        return np.zeros(target, np.float32)
    if mode == "align_corners":
        return np.float32(size - 1) / np.float32(target - 1) * out
    if mode == "asymmetric":
        return scale * out
    if mode == "tf_half_pixel_for_nn":
        return (out + half) * scale
    raise ValueError(f"coordinate transformation {mode!r} of resize2d is not known")


def nearest_index(size: int, target: int, mode: str, rounding: str) -> NDArray[np.int64]:
    """Return, per output position of one axis, the input index, int64 ``(target,)``."""
    rounding = rounding or ("round" if mode == "align_corners" else "floor")
    if mode == "asymmetric" and rounding == "floor" and target % size == 0:
        return np.arange(target, dtype=np.int64) // (target // size)
    at = source_coordinate(size, target, mode)
    half = np.float32(0.5)
    rounded = {
        "round": lambda: np.rint(at),
        "round_prefer_floor": lambda: np.ceil(at - half),
        "round_prefer_ceil": lambda: np.floor(at + half),
        "floor": lambda: np.floor(at + _EPSILON),
        "ceil": lambda: np.ceil(at - _EPSILON),
    }
    if rounding not in rounded:
        raise ValueError(f"rounding {rounding!r} of resize2d is not known")
    return np.clip(rounded[rounding]().astype(np.int64), 0, size - 1)


def _linear_table(
    size: int, target: int, mode: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the two input indices and the weight of the second, per output position."""
    at = source_coordinate(size, target, mode)
    floor = np.floor(at)
    first = np.clip(floor.astype(np.int64), 0, size - 1)
    second = np.clip(floor.astype(np.int64) + 1, 0, size - 1)
    return (
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy((at - floor).astype(np.float32)),
    )


def _lerp(
    x: torch.Tensor, axis: int, first: torch.Tensor, second: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    w = weight.reshape([-1 if d == axis else 1 for d in range(4)])
    return x.index_select(axis, first) * (1.0 - w) + x.index_select(axis, second) * w


def _window(call: Any) -> tuple[list[int], list[int], list[int]]:
    at = call.attrs
    return ints(at.pool_size), ints(at.strides), ints(at.dilation)


def _padding(call: Any, last: bool) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right, with what ``ceil_mode`` adds at the far borders."""
    window, stride, dilation = _window(call)
    top, left, bottom, right = ints(call.attrs.padding)
    source, target = shape_of(call.args[0]), shape_of(call)
    axes = (1, 2) if last else (2, 3)
    need = [
        (target[axis] - 1) * s + d * (k - 1) + 1 - source[axis] - near
        for axis, s, d, k, near in zip(axes, stride, dilation, window, (top, left), strict=True)
    ]
    return top, left, max(bottom, need[0]), max(right, need[1])


TABLE: dict[str, Builder] = {
    "relax.nn.max_pool2d": max_pool2d,
    "relax.nn.avg_pool2d": avg_pool2d,
    "relax.mean": mean,
    "relax.image.resize2d": resize2d,
}

"""Between which bounds the values of an epilogue lie, whatever the frame: other clamps are dropped.

An accumulator cannot exceed 127 times the sum of its weights' magnitudes, so most outputs of a
layer never come near the limits of float16, and what a ReLU has passed needs no lower limit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.spec import Conv, FusedKernel, Node

Bound = NDArray[np.float64]
Range = tuple[Bound, Bound]  # least and most, of every channel or of all

_LARGEST_CODE = 127
_LARGEST_HALF = 65504.0
_ERROR = 1e-4  # of a step: what float32 adds to a rounding error, with codes up to 127
_SLACK = 1e-6  # relative: float32 rounds to 6e-8, and sums of a few operations are covered


def node_ranges(kernel: FusedKernel) -> list[Range]:
    """Return the range of every node of a kernel.

    Parameters
    ----------
    kernel : FusedKernel

    Returns
    -------
    list of (ndarray, ndarray)
        Per node, least and most: shape ``(c,)`` or ``()``; infinite where nothing is known.
    """
    ranges: list[Range] = []
    with np.errstate(all="ignore"):
        for node in kernel.nodes:
            least, most = _range(kernel, node, [ranges[a] for a in node.args])
            unknown = np.isnan(least) | np.isnan(most)
            ranges.append((np.where(unknown, -np.inf, least), np.where(unknown, np.inf, most)))
    return ranges


def _range(kernel: FusedKernel, node: Node, args: list[Range]) -> Range:
    match node.op:
        case "anchor" | "rest" if isinstance(kernel.anchor, Conv):
            magnitude = np.abs(kernel.anchor.weight.astype(np.float64)).sum(axis=(1, 2, 3))
            return _symmetric(_LARGEST_CODE * magnitude)
        case "load":
            dtype = kernel.tensor(node.name).dtype
            if dtype == "float16":
                return _symmetric(_LARGEST_HALF)
            return _symmetric(np.inf if dtype == "float32" else _LARGEST_CODE)
        case "vector":
            vector = kernel.vectors[node.name].astype(np.float64)
            return vector, vector
        case "scalar":
            scalar = np.asarray(node.value, np.float64)
            return scalar, scalar
        case "quantize":
            return _symmetric(node.limit)
        case "max":
            (a, b), (c, d) = args
            return np.maximum(a, c), np.maximum(b, d)
        case "min":
            (a, b), (c, d) = args
            return np.minimum(a, c), np.minimum(b, d)
        case "neg":
            ((a, b),) = args
            return -b, -a
        case "add":
            (a, b), (c, d) = args
            return _wider(a + c, b + d)
        case "sub" if (step := _rounding(kernel, node, args[0])) is not None:
            return _symmetric((0.5 + _ERROR) * step)
        case "sub":
            (a, b), (c, d) = args
            return _wider(a - d, b - c)
        case "mul" | "dequantize":
            return _wider(*_product(*args))
        case "prelu":
            a, b = args[0]
            c, d = _product(*args)
            return _wider(np.minimum(a, c), np.maximum(b, d))
        case "round16":
            a, b = args[0]
            # To nearest: a value within the limits stays within, half an ulp farther out.
            least, most = a - np.abs(a) * 2.0**-10, b + np.abs(b) * 2.0**-10
            return (
                np.where(a < -_LARGEST_HALF, -np.inf, least),
                np.where(b > _LARGEST_HALF, np.inf, most),
            )
    return _symmetric(np.inf)


def _rounding(kernel: FusedKernel, node: Node, value: Range) -> float | None:
    """Return the step if ``node`` is what rounding a value to codes in its range leaves."""
    coarse = kernel.nodes[node.args[1]]
    if coarse.op != "dequantize":
        return None
    codes, step = (kernel.nodes[i] for i in coarse.args)
    if codes.op != "quantize" or codes.args[0] != node.args[0] or step.op != "scalar":
        return None
    inside = bool(np.all(np.maximum(-value[0], value[1]) * codes.value <= codes.limit))
    return step.value if inside and codes.limit <= _LARGEST_CODE else None


def _symmetric(most: float | Bound) -> Range:
    bound = np.asarray(most, np.float64)
    return -bound, bound


def _product(x: Range, y: Range) -> Range:
    products = np.broadcast_arrays(*(a * b for a in x for b in y))
    return np.minimum.reduce(products), np.maximum.reduce(products)


def _wider(least: Bound, most: Bound) -> Range:
    return least - np.abs(least) * _SLACK, most + np.abs(most) * _SLACK

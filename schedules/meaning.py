"""What a `FusedKernel` means, in NumPy: tests and the tuner hold emitted code against it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from resq_tvm.schedules.resample import axis_table
from resq_tvm.schedules.spec import (
    Conv,
    FloatConv,
    FusedKernel,
    GlobalMean,
    Pool,
    Resize,
    TensorSpec,
    Window,
)

Array = NDArray[Any]

_IEEE_NODES = frozenset(
    {"anchor", "rest", "load", "vector", "scalar", "dequantize", "add", "sub", "mul", "max", "min"}
    | {"neg", "abs", "prelu", "round16", "quantize", "gate"}
)


def is_exact(kernel: FusedKernel) -> bool:
    """Return whether nothing may differ: an integer anchor and IEEE operations alone."""
    anchor = isinstance(kernel.anchor, Conv) or not any(n.op == "anchor" for n in kernel.nodes)
    return anchor and all(n.op in _IEEE_NODES for n in kernel.nodes)


def to_physical(spec: TensorSpec, value: Array, code_zero: int, junk: int = 77) -> Array:
    """Lay a logical (h, w, c) tensor out: halo of zero codes, arbitrary padding channels."""
    top, left, bottom, right = spec.halo
    fill = code_zero if spec.dtype in ("uint8", "int8") else 0
    out = np.full(spec.shape, fill, spec.dtype)
    inner = out[0, top : top + spec.h, left : left + spec.w]
    inner[..., spec.c :] = junk
    inner[..., : spec.c] = value + fill if fill else value
    assert bottom >= 0 and right >= 0
    return out


def to_logical(spec: TensorSpec, array: Array, code_zero: int) -> Array:
    """Return the (h, w, c) inside of a physical tensor, codes as signed int32."""
    top, left, _, _ = spec.halo
    inner = array[0, top : top + spec.h, left : left + spec.w, : spec.c]
    if spec.dtype in ("uint8", "int8"):
        return inner.astype(np.int32) - code_zero
    return inner


def halo_is_zero(spec: TensorSpec, array: Array, code_zero: int) -> bool:
    """Return whether the halo of a physical tensor holds the code of zero."""
    top, left, _, _ = spec.halo
    outside = np.ones(spec.shape, bool)
    outside[:, top : top + spec.h, left : left + spec.w] = False
    return bool((array[outside] == code_zero).all())


def random_inputs(kernel: FusedKernel, rng: np.random.Generator) -> dict[str, Array]:
    """Draw logical inputs: codes over their whole range, floats of several magnitudes."""
    anchor = kernel.anchor
    most = anchor.limits[0] if isinstance(anchor, Conv) and anchor.limits is not None else 127
    out: dict[str, Array] = {}
    for spec in kernel.inputs:
        shape = (spec.h, spec.w, spec.c)
        if "int" in spec.dtype:
            out[spec.name] = rng.integers(-most, most + 1, shape).astype(np.int32)
        else:
            out[spec.name] = (rng.standard_normal(shape) * 4).astype(spec.dtype)
    return out


def run(
    kernel: FusedKernel, inputs: dict[str, Array], changed: Array | None = None
) -> dict[str, Array]:
    """Evaluate a kernel on logical inputs (codes signed); returns logical outputs.

    ``changed`` (h, w, 1) says where a gate lets its first argument pass. Choices of bits are not
    evaluated: codes are the finest.
    """
    anchor = _anchor(kernel, inputs)
    values: list[Array] = []
    with np.errstate(all="ignore"):
        for node in kernel.nodes:
            args = [values[a] for a in node.args]
            if node.op == "gate":
                assert changed is not None
                values.append(np.where(changed, *args))
            else:
                values.append(_node(kernel, node, args, anchor, inputs))
    out = {}
    for store in kernel.stores:
        spec = kernel.tensor(store.name)
        value = np.broadcast_to(values[store.node], (spec.h, spec.w, spec.c))
        out[store.name] = value.astype("int32" if "int" in spec.dtype else spec.dtype)
    return out


def _node(
    kernel: FusedKernel,
    node: Any,
    args: list[Array],
    anchor: Array | None,
    inputs: dict[str, Array],
) -> Array:
    f = np.float32
    simple = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
        "max": np.maximum, "min": np.minimum, "neg": np.negative, "abs": np.abs,
        "exp": np.exp, "tanh": np.tanh, "sqrt": np.sqrt,
    }  # fmt: skip
    if node.op in simple:
        return simple[node.op](*args)
    match node.op:
        case "anchor":
            assert anchor is not None
            return anchor
        case "rest":
            assert isinstance(kernel.anchor, Conv)
            over = replace(kernel.anchor, inputs=kernel.anchor.rest, rest=())
            return _conv(replace(kernel, anchor=over), inputs)
        case "load":
            return inputs[node.name].astype(f)
        case "vector":
            return kernel.vectors[node.name].astype(f)
        case "scalar":
            return np.asarray(node.value, f)
        case "dequantize":
            return args[0].astype(f) * args[1]
        case "sigmoid":
            return (1 / (1 + np.exp(-args[0].astype(np.float64)))).astype(f)
        case "erf":
            return special.erf(args[0].astype(np.float64)).astype(f)
        case "prelu":
            return np.where(args[0] > 0, args[0], args[0] * args[1])
        case "round16":
            return args[0].astype(np.float16).astype(f)
        case "quantize":
            return np.clip(np.rint(args[0] * f(node.value)), -node.limit, node.limit).astype(
                np.int32
            )
    raise ValueError(node.op)


def _anchor(kernel: FusedKernel, inputs: dict[str, Array]) -> Array | None:
    match kernel.anchor:
        case Conv() | FloatConv():
            return _conv(kernel, inputs)
        case Pool() as pool:
            return _pool(kernel, pool, inputs[pool.input])
        case GlobalMean(name):
            x = inputs[name].astype(np.float64)
            return x.mean(axis=(0, 1), keepdims=True).astype(np.float32)
        case Resize() as resize:
            return _resize(kernel, resize, inputs[resize.input])
        case Window() as window:
            return _window(kernel, window, inputs[window.input])
    return None


def _at(x: Array, y: Array, column: Array) -> Array:
    """x[y, column] with zero outside."""
    h, w, _ = x.shape
    inside = ((y >= 0) & (y < h))[:, None] & ((column >= 0) & (column < w))[None]
    picked = x[np.clip(y, 0, h - 1)[:, None], np.clip(column, 0, w - 1)[None]]
    return np.where(inside[..., None], picked, 0)


def _conv(kernel: FusedKernel, inputs: dict[str, Array]) -> Array:
    anchor = kernel.anchor
    assert isinstance(anchor, Conv | FloatConv)
    # Sums of int8 products are exact in float64, whose matrix product is the fast one.
    x = np.concatenate([inputs[n] for n in anchor.inputs], axis=2).astype(np.float64)
    weight = anchor.weight.astype(np.float64)
    o = weight.shape[0]
    out = np.zeros((kernel.h, kernel.w, o))
    (isy, isx), (osy, osx) = anchor.in_stride, anchor.out_stride
    per = x.shape[2] // anchor.groups
    outputs = o // anchor.groups
    for phase in anchor.phases:
        rows = np.arange(-(-(kernel.h - phase.oy) // osy))
        columns = np.arange(-(-(kernel.w - phase.ox) // osx))
        part = np.zeros((len(rows), len(columns), o))
        for ky, kx, dy, dx in phase.taps:
            pixels = _at(x, rows * isy + dy, columns * isx + dx)
            if per == outputs == 1:
                part += pixels * weight[:, ky, kx, 0]
                continue
            for g in range(anchor.groups):
                s = slice(g * outputs, (g + 1) * outputs)
                part[..., s] += pixels[..., g * per : (g + 1) * per] @ weight[s, ky, kx].T
        out[phase.oy :: osy, phase.ox :: osx] = part
    return out.astype(np.int32 if isinstance(anchor, Conv) else np.float32)


def _pool(kernel: FusedKernel, pool: Pool, x: Array) -> Array:
    top, left, bottom, right = pool.padding
    h, w, _ = x.shape
    out = np.zeros((kernel.h, kernel.w, kernel.c), np.float32)
    for y in range(kernel.h):
        for c in range(kernel.w):
            ys = y * pool.stride[0] - top + np.arange(pool.window[0]) * pool.dilation[0]
            xs = c * pool.stride[1] - left + np.arange(pool.window[1]) * pool.dilation[1]
            inside = x[np.ix_(ys[(ys >= 0) & (ys < h)], xs[(xs >= 0) & (xs < w)])]
            if pool.kind == "max":
                out[y, c] = inside.max(axis=(0, 1))
            elif pool.count_include_pad:
                count = ((ys < h + bottom).sum()) * ((xs < w + right).sum())
                out[y, c] = inside.astype(np.float64).sum(axis=(0, 1)) / count
            else:
                out[y, c] = inside.astype(np.float64).mean(axis=(0, 1))
    return out


def _resize(kernel: FusedKernel, resize: Resize, x: Array) -> Array:
    rows = axis_table(resize, x.shape[0], kernel.h)
    columns = axis_table(resize, x.shape[1], kernel.w)
    if resize.method == "nearest_neighbor":
        return x[rows.low][:, columns.low]
    one = np.float32(1)
    wx, wy = columns.weight[None, :, None], rows.weight[:, None, None]
    across = x[:, columns.low] * (one - wx) + x[:, columns.high] * wx
    return across[rows.low] * (one - wy) + across[rows.high] * wy


def _window(kernel: FusedKernel, window: Window, x: Array) -> Array:
    out = np.full((kernel.h, kernel.w, kernel.c), window.fill, np.float32)
    for y in range(kernel.h):
        for c in range(kernel.w):
            iy = y * window.stride[0] + window.offset[0]
            ix = c * window.stride[1] + window.offset[1]
            if 0 <= iy < x.shape[0] and 0 <= ix < x.shape[1]:
                for k in range(kernel.c):
                    if 0 <= k + window.offset[2] < x.shape[2]:
                        out[y, c, k] = x[iy, ix, k + window.offset[2]]
    return out

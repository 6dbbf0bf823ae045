"""Operators that move elements: concat, slice, reshape, permute, pad."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tvm import relax

from resq_tvm.passes.graph import imm_value, is_const, shape_of
from resq_tvm.reference.operands import Builder, Kernel, ints, tensor


def concat(call: Any, differentiable: bool) -> Kernel:
    """``relax.concat`` of a tuple."""
    axis = int(call.attrs.axis)
    fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else []
    constants = {i: tensor(f) for i, f in enumerate(fields) if is_const(f)}
    if not fields:
        return lambda pieces: torch.cat(pieces, axis)

    def run(*pieces: torch.Tensor) -> torch.Tensor:
        rest = iter(pieces)
        full = [constants[i] if i in constants else next(rest) for i in range(len(fields))]
        return torch.cat(full, axis)

    return run


def strided_slice(call: Any, differentiable: bool) -> Kernel:
    """``relax.strided_slice`` with constant bounds and positive strides."""
    axes, begin, end, *rest = (_integers(a) for a in call.args[1:])
    strides = rest[0] if rest else [1] * len(axes)
    if any(s <= 0 for s in strides):
        raise ValueError(f"strided_slice with strides {strides}: only positive ones are known")
    index = [slice(None)] * len(shape_of(call.args[0]))
    for axis, b, e, s in zip(axes, begin, end, strides, strict=True):
        index[axis] = slice(b, e, s)
    where = tuple(index)
    return lambda x: x[where]


def reshape(call: Any, differentiable: bool) -> Kernel:
    """``relax.reshape`` and its like: the result's shape is static."""
    shape = shape_of(call)
    return lambda x: x.reshape(shape)


def permute_dims(call: Any, differentiable: bool) -> Kernel:
    """``relax.permute_dims``; no axes means reversed."""
    axes = call.attrs.axes
    order = ints(axes) if axes is not None else list(reversed(range(len(call.ty.shape))))
    return lambda x: x.permute(order).contiguous()


def pad(call: Any, differentiable: bool) -> Kernel:
    """``relax.nn.pad`` with a constant."""
    if str(call.attrs.pad_mode) != "constant":
        raise ValueError(f"pad mode {call.attrs.pad_mode!s} is not known; use constant")
    width = ints(call.attrs.pad_width)
    pairs = [(width[i], width[i + 1]) for i in range(0, len(width), 2)]
    flat = [side for pair in reversed(pairs) for side in pair]
    value = imm_value(call.attrs.pad_value)
    return lambda x: F.pad(x, flat, value=value)


def broadcast_to(call: Any, differentiable: bool) -> Kernel:
    """``relax.broadcast_to`` a static shape."""
    shape = shape_of(call)
    return lambda x: x.expand(shape)


def _integers(expr: Any) -> list[int]:
    fields = expr.fields if isinstance(expr, relax.Tuple) else expr
    return [int(imm_value(f)) for f in fields]


TABLE: dict[str, Builder] = {
    "relax.concat": concat,
    "relax.strided_slice": strided_slice,
    "relax.reshape": reshape,
    "relax.squeeze": reshape,
    "relax.expand_dims": reshape,
    "relax.flatten": reshape,
    "relax.permute_dims": permute_dims,
    "relax.nn.pad": pad,
    "relax.broadcast_to": broadcast_to,
}

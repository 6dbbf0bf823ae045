"""What each operator does when 4-D values turn to NHWC: one rule per operator.

A rule ``(rewriter, var, old) -> expression`` builds the new call from the old one, records the
result's order in ``rewriter.order[var]``, and returns None to have its operands in source order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from resq_tvm.passes.canonicalize.order import AS_IS, CHANNELS_FIRST, Flat, Order
from resq_tvm.passes.canonicalize.rewrite import BINARY, UNARY, constant, integers, with_args
from resq_tvm.passes.graph import const_value, imm_value, is_const, shape_of

if TYPE_CHECKING:
    from resq_tvm.passes.canonicalize.layout import LayoutRewriter

op = relax.op


def _spatial(rewriter: LayoutRewriter, var: Any, old: Any, layout: str) -> Any:
    """Return the first operand as NHWC and record the result's order; None for other layouts."""
    if layout == "NCHW":
        rewriter.order[var] = CHANNELS_FIRST
        return rewriter.channels_last(old.args[0])
    return rewriter.in_source_order(old.args[0]) if layout == "NHWC" else None


def _weight(weight: Any, layout: str) -> Any:
    """Return a constant weight as OHWI."""
    return constant(const_value(weight).transpose([layout.index(a) for a in "OHWI"]))


def four_sides(padding: Any) -> list[int]:
    """Return padding as top, left, bottom, right."""
    given = integers(padding)
    if len(given) == 1:
        return given * 4
    return given * 2 if len(given) == 2 else given


def _conv2d(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    at = old.attrs
    x = _spatial(rewriter, var, old, str(at.data_layout)) if is_const(old.args[1]) else None
    if x is None:
        return None
    weight = _weight(old.args[1], str(at.kernel_layout))
    return op.nn.conv2d(
        x,
        weight,
        integers(at.strides),
        four_sides(at.padding),
        integers(at.dilation),
        int(at.groups),
        "NHWC",
        "OHWI",
    )


def _conv2d_transpose(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    at = old.attrs
    x = _spatial(rewriter, var, old, str(at.data_layout)) if is_const(old.args[1]) else None
    if x is None:
        return None
    weight = _weight(old.args[1], str(at.kernel_layout))
    return op.nn.conv2d_transpose(
        x,
        weight,
        integers(at.strides),
        four_sides(at.padding),
        integers(at.output_padding),
        integers(at.dilation),
        int(at.groups),
        "NHWC",
        "OHWI",
    )


def _pool(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    at = old.attrs
    layout = str(at.layout)
    x = _spatial(rewriter, var, old, layout)
    if x is None:
        return None
    maximum = old.op.name == "relax.nn.max_pool2d"
    window, strides, dilation = (integers(v) for v in (at.pool_size, at.strides, at.dilation))
    padding, ceil = four_sides(at.padding), bool(at.ceil_mode)
    # Where the rounded-up windows reach over the border, padding says the same; only an average
    # that counts its padding divides by something else there.
    if ceil and (maximum or not bool(at.count_include_pad)):
        for near, far, axis, i in ((0, 2, "H", 0), (1, 3, "W", 1)):
            size, out = (shape_of(v)[layout.index(axis)] for v in (old.args[0], var))
            reach = (out - 1) * strides[i] + dilation[i] * (window[i] - 1) + 1
            padding[far] = max(padding[far], reach - size - padding[near])
        ceil = False
    make = op.nn.max_pool2d if maximum else op.nn.avg_pool2d
    return make(
        x,
        window,
        strides,
        padding,
        dilation,
        ceil,
        bool(at.count_include_pad),
        "NHWC",
    )


def _resize2d(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    at = old.attrs
    x = _spatial(rewriter, var, old, str(at.layout))
    if x is None:
        return None
    return op.image.resize2d(
        x,
        tuple(integers(old.args[1])),
        layout="NHWC",
        method=str(at.method),
        coordinate_transformation_mode=str(at.coordinate_transformation_mode),
        rounding_method=str(at.rounding_method),
        cubic_alpha=float(at.cubic_alpha),
        cubic_exclude=int(at.cubic_exclude),
        extrapolation_value=float(at.extrapolation_value),
    )


def _unary(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    rewriter.order[var] = rewriter.order_of(old.args[0])
    return with_args(old, *[rewriter.mapped(a) for a in old.args])


def _binary(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    tensors = [a for a in old.args if not is_const(a)]
    orders = [rewriter.order_of(a) for a in tensors]
    flat = orders[0]
    if isinstance(flat, Flat):
        return _binary_flat(rewriter, var, old, flat) if set(orders) == {flat} else None
    if len(shape_of(var)) != 4 or any(len(shape_of(a)) != 4 for a in tensors):
        return None
    order: Order = CHANNELS_FIRST if CHANNELS_FIRST in orders else AS_IS
    rewriter.order[var] = order
    return with_args(
        old,
        *[_constant4(a, order) if is_const(a) else rewriter.as_order(a, order) for a in old.args],
    )


def _binary_flat(rewriter: LayoutRewriter, var: Any, old: Any, flat: Flat) -> Any:
    rewriter.order[var] = flat
    operands = []
    for arg in old.args:
        if is_const(arg) and const_value(arg).size > 1:
            values = const_value(arg).reshape(flat.c, flat.h, flat.w)
            operands.append(constant(values.transpose(1, 2, 0).reshape(1, -1)))
        else:
            operands.append(rewriter.mapped(arg))
    return with_args(old, *operands)


def _constant4(expr: Any, order: Order) -> Any:
    """Return a constant that broadcasts to a 4-D value, in the value's order."""
    value = const_value(expr)
    value = value.reshape((1,) * (4 - value.ndim) + value.shape)
    return constant(value.transpose(0, 2, 3, 1) if order is CHANNELS_FIRST else value)


def _prelu(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    x, slope = old.args
    order, rank = rewriter.order_of(x), len(shape_of(var))
    if isinstance(order, Flat) or not is_const(slope):
        return None
    rewriter.order[var] = order
    source_axis = int(old.attrs.axis) % rank
    # One slope for all channels is spelled out per channel.
    values = np.broadcast_to(const_value(slope).reshape(-1), (shape_of(x)[source_axis],))
    axis = order.where(source_axis, rank)
    return op.nn.prelu(rewriter.mapped(x), constant(values), axis=axis)


def _softmax(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    order = rewriter.order_of(old.args[0])
    if isinstance(order, Flat):
        return None
    rewriter.order[var] = order
    axis = order.where(int(old.attrs.axis), len(shape_of(var)))
    return op.nn.softmax(rewriter.mapped(old.args[0]), axis=axis)


def _concat(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    pieces = old.args[0].fields
    if len(shape_of(var)) != 4:
        return None
    channels_first = any(rewriter.order_of(p) is CHANNELS_FIRST for p in pieces)
    order = CHANNELS_FIRST if channels_first else AS_IS
    rewriter.order[var] = order
    values = [_constant4(p, order) if is_const(p) else rewriter.as_order(p, order) for p in pieces]
    return op.concat(values, axis=order.where(int(old.attrs.axis), 4))


def _slice(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    x, order, rank = old.args[0], rewriter.order_of(old.args[0]), len(shape_of(var))
    if isinstance(order, Flat):
        return None
    rewriter.order[var] = order
    axes, begin, end, *strides = (integers(a) for a in old.args[1:])
    sizes = [shape_of(x)[a] for a in axes]
    # Negative and open ends are written out.
    begin = [min(max(b + n if b < 0 else b, 0), n) for b, n in zip(begin, sizes, strict=True)]
    end = [min(max(e + n if e < 0 else e, 0), n) for e, n in zip(end, sizes, strict=True)]
    steps = strides[0] if strides else [1] * len(axes)
    placed = sorted(
        (order.where(a, rank), b, e, s) for a, b, e, s in zip(axes, begin, end, steps, strict=True)
    )
    where, begin, end, steps = (list(v) for v in zip(*placed, strict=True))
    if all(s == 1 for s in steps):
        return op.strided_slice(rewriter.mapped(x), where, begin, end)
    return op.strided_slice(rewriter.mapped(x), where, begin, end, steps)


def _pad(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    order = rewriter.order_of(old.args[0])
    if order is not CHANNELS_FIRST:
        return None
    rewriter.order[var] = order
    width = integers(old.attrs.pad_width)
    placed = [width[2 * a + side] for a in CHANNELS_FIRST.axes for side in (0, 1)]
    value = imm_value(old.attrs.pad_value)
    return op.nn.pad(rewriter.mapped(old.args[0]), placed, str(old.attrs.pad_mode), value)


def _mean(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    x, order = old.args[0], rewriter.order_of(old.args[0])
    shape = shape_of(x)
    if len(shape) != 4 or isinstance(order, Flat) or old.attrs.axis is None:
        return None
    axes = sorted(order.where(a, 4) for a in integers(old.attrs.axis))
    made = op.mean(rewriter.mapped(x), axes, keepdims=True)
    if bool(old.attrs.keepdims):
        rewriter.order[var] = order
        return made
    if axes != [1, 2]:
        return None
    # Batch and channels are all that is left, in this order in both layouts.
    return op.reshape(rewriter.emit(made, "value"), shape_of(var))


def _permute(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    x, order = old.args[0], rewriter.order_of(old.args[0])
    if len(shape_of(var)) != 4 or isinstance(order, Flat):
        return None
    axes = integers(old.attrs.axes) if old.attrs.axes is not None else [3, 2, 1, 0]
    stored = order.axes or (0, 1, 2, 3)
    after = tuple(axes.index(a) for a in stored)
    for known in (AS_IS, CHANNELS_FIRST):
        if after == (known.axes or (0, 1, 2, 3)):
            rewriter.order[var] = known
            return rewriter.mapped(x)
    return rewriter.moved(rewriter.mapped(x), tuple(stored.index(a) for a in axes))


def _reshape(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    x, target = old.args[0], shape_of(var)
    order, shape = rewriter.order_of(x), shape_of(old.args[0])
    value = rewriter.mapped(x)
    if isinstance(order, Flat):
        if target == (1, order.c, order.h, order.w):
            rewriter.order[var] = CHANNELS_FIRST
            return op.reshape(value, order.channel_last)
        if target == shape:
            rewriter.order[var] = order
            return value
        return None
    if order is not CHANNELS_FIRST:
        return None
    _, c, h, w = shape
    if c == 1 or h * w == 1:
        return op.reshape(value, target)
    if target == (1, math.prod(shape)):
        rewriter.order[var] = Flat(c, h, w)
        return op.reshape(value, target)
    return None


def _matmul(rewriter: LayoutRewriter, var: Any, old: Any) -> Any:
    x, weight = old.args
    order = rewriter.order_of(x)
    if not isinstance(order, Flat) or not is_const(weight):
        return None
    rows = const_value(weight).reshape(order.c, order.h, order.w, -1)
    permuted = rows.transpose(1, 2, 0, 3).reshape(order.c * order.h * order.w, -1)
    return op.matmul(rewriter.mapped(x), constant(permuted))


Rule = Callable[["LayoutRewriter", Any, Any], Any]

RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    "relax.nn.conv2d": _conv2d,
    "relax.nn.conv2d_transpose": _conv2d_transpose,
    "relax.nn.max_pool2d": _pool,
    "relax.nn.avg_pool2d": _pool,
    "relax.image.resize2d": _resize2d,
    "relax.nn.prelu": _prelu,
    "relax.nn.softmax": _softmax,
    "relax.concat": _concat,
    "relax.strided_slice": _slice,
    "relax.nn.pad": _pad,
    "relax.mean": _mean,
    "relax.permute_dims": _permute,
    "relax.reshape": _reshape,
    "relax.matmul": _matmul,
}
"""Operator → its rule."""

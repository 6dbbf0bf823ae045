"""Elementwise operators, softmax, and the conversions between float values and codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from resq_tvm.passes.graph import const_value, imm_value
from resq_tvm.reference.operands import TORCH_DTYPES, Builder, Kernel, bound, dtype_of, tensor

_INTEGER_RANGE = {"int8": (-128, 127), "uint8": (0, 255)}


def _plain(function: Callable[..., torch.Tensor]) -> Builder:
    return lambda call, differentiable: bound(call, function)


def clip(call: Any, differentiable: bool) -> Kernel:
    """``relax.clip`` with immediate bounds, of floats or of codes."""
    low, high = imm_value(call.args[1]), imm_value(call.args[2])
    if dtype_of(call) in _INTEGER_RANGE:
        # Float bounds would promote codes to float32.
        return lambda x: torch.clamp(x, int(low), int(high))
    return lambda x: torch.clamp(x, low, high)


def prelu(call: Any, differentiable: bool) -> Kernel:
    """``relax.nn.prelu``: ``x > 0 ? x : slope·x``, slope along ``axis``."""
    axis = int(call.attrs.axis) % len(call.ty.shape)
    slope = tensor(call.args[1])
    if slope.numel() == 1:
        return lambda x: F.prelu(x, slope.reshape(1))
    # torch wants the channels second: views, and the fused kernel keeps their memory order.
    return lambda x: F.prelu(x.movedim(axis, 1), slope).movedim(1, axis)


def leaky_relu(call: Any, differentiable: bool) -> Kernel:
    """``relax.nn.leakyrelu``."""
    alpha = float(call.attrs.alpha)
    return lambda x: F.leaky_relu(x, alpha)


def softmax(call: Any, differentiable: bool) -> Kernel:
    """``relax.nn.softmax`` along one axis."""
    axis = int(call.attrs.axis)
    return lambda x: torch.softmax(x, axis)


def _along(vector: torch.Tensor, axis: int, rank: int) -> torch.Tensor:
    """Shape a per-channel vector so that it broadcasts along ``axis``."""
    if vector.dim() == 0:
        return vector
    return vector.reshape([-1 if d == axis % rank else 1 for d in range(rank)])


def quantize(call: Any, differentiable: bool) -> Kernel:
    """``relax.quantize``: multiply by the float32 reciprocal, round half to even, clamp.

    Differentiable, the codes stay float32 and the gradient passes the rounding unchanged inside
    the clamp (straight-through estimator) and is zero outside.
    """
    out = dtype_of(call)
    low, high = _INTEGER_RANGE[out]
    rank, axis = len(call.ty.shape), int(call.attrs.axis)
    scale = const_value(call.args[1]).astype(np.float32)
    reciprocal = _along(torch.from_numpy(np.asarray(np.float32(1) / scale)), axis, rank)
    zero = _along(tensor(call.args[2]).float(), axis, rank)

    def straight_through(x: torch.Tensor) -> torch.Tensor:
        scaled = x * reciprocal
        return torch.clamp(scaled + (scaled.round() - scaled).detach() + zero, low, high)

    def codes(x: torch.Tensor) -> torch.Tensor:
        return (x * reciprocal).round_().add_(zero).clamp_(low, high).to(TORCH_DTYPES[out])

    return straight_through if differentiable else codes


def dequantize(call: Any, differentiable: bool) -> Kernel:
    """``relax.dequantize``: ``(float32(code) - zero) · scale``, per tensor or per channel."""
    rank, axis = len(call.ty.shape), int(call.attrs.axis)
    scale = _along(tensor(call.args[1]).float(), axis, rank)
    zero = tensor(call.args[2]).float()
    if bool((zero == 0).all()):
        return lambda c: c.to(torch.float32) * scale
    zero = _along(zero, axis, rank)
    return lambda c: (c.to(torch.float32) - zero) * scale


def astype(call: Any, differentiable: bool) -> Kernel:
    """``relax.astype``; differentiable, a narrowed value is rounded but kept in float32."""
    dtype = TORCH_DTYPES[dtype_of(call)]
    if differentiable and dtype is torch.float16:
        return lambda x: x + (x.to(dtype).to(x.dtype) - x).detach()
    return lambda x: x.to(dtype)


TABLE: dict[str, Builder] = {
    "relax.add": _plain(torch.add),
    "relax.subtract": _plain(torch.sub),
    "relax.multiply": _plain(torch.mul),
    "relax.divide": _plain(torch.div),
    "relax.maximum": _plain(torch.maximum),
    "relax.minimum": _plain(torch.minimum),
    "relax.negative": _plain(torch.neg),
    "relax.abs": _plain(torch.abs),
    "relax.exp": _plain(torch.exp),
    "relax.sqrt": _plain(torch.sqrt),
    "relax.sigmoid": _plain(torch.sigmoid),
    "relax.tanh": _plain(torch.tanh),
    "relax.erf": _plain(torch.erf),
    "relax.nn.relu": _plain(torch.relu),
    "relax.nn.silu": _plain(lambda x: x * torch.sigmoid(x)),
    "relax.nn.gelu": _plain(F.gelu),
    "relax.nn.gelu_tanh": _plain(lambda x: F.gelu(x, approximate="tanh")),
    "relax.clip": clip,
    "relax.nn.prelu": prelu,
    "relax.nn.leakyrelu": leaky_relu,
    "relax.nn.softmax": softmax,
    "relax.quantize": quantize,
    "relax.dequantize": dequantize,
    "relax.astype": astype,
}

"""Linear operators, float and integer: convolution, transposed convolution, dense.

Integer operators are exact: float32 arithmetic holds every partial sum where
``127 · max_o Σ|w_o| < 2**24``, otherwise float64 does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from resq_tvm.passes.graph import is_const, op_name
from resq_tvm.reference.operands import Builder, Kernel, dtype_of, ints, nhwc, tensor

_EXACT_FLOAT32 = 1 << 24
_MAX_CODE = 128


Run = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Linear:
    """One operator: what to compute, and how its weight lies."""

    run: Run  # (input, weight in torch's order) -> output
    order: tuple[int, ...]  # Relax's weight axes in torch's order
    summed: tuple[int, ...]  # axes, in torch's order, that one output sums over


def _conv2d(call: Any) -> _Linear:
    at = call.attrs
    last = nhwc(str(at.data_layout), call)
    top, left, bottom, right = ints(at.padding)
    stride, dilation, groups = ints(at.strides), ints(at.dilation), int(at.groups)

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if last:
            x = x.permute(0, 3, 1, 2)
        if (top, left) == (bottom, right):
            y = F.conv2d(x, weight, None, stride, (top, left), dilation, groups)
        else:
            x = _pad(x, top, left, bottom, right)
            y = F.conv2d(x, weight, None, stride, 0, dilation, groups)
        return y.permute(0, 2, 3, 1) if last else y

    return _Linear(run, _order(at.kernel_layout, "OIHW"), (1, 2, 3))


def _conv2d_transpose(call: Any) -> _Linear:
    at = call.attrs
    last = nhwc(str(at.data_layout), call)
    top, left, bottom, right = ints(at.padding)
    stride, dilation, groups = ints(at.strides), ints(at.dilation), int(at.groups)
    out_h, out_w = ints(at.output_padding)
    plain = (top, left) == (bottom, right) and out_h < stride[0] and out_w < stride[1]

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if last:
            x = x.permute(0, 3, 1, 2)
        if plain:
            extra = (out_h, out_w)
            y = F.conv_transpose2d(x, weight, None, stride, (top, left), extra, groups, dilation)
        else:
            # Padding of a transposed convolution crops its full output.
            y = F.conv_transpose2d(x, weight, None, stride, 0, 0, groups, dilation)
            y = _pad(y, -top, -left, out_h - bottom, out_w - right)
        return y.permute(0, 2, 3, 1) if last else y

    # In Relax's layout letters O counts output channels per group and I input channels. A
    # grouped one sums over a part of I only: the sum over all is an upper bound.
    return _Linear(run, _order(at.kernel_layout, "IOHW"), (0, 2, 3))


def _matmul(call: Any) -> _Linear:
    rank = len(call.args[1].ty.shape)
    return _Linear(torch.matmul, tuple(range(rank)), (rank - 2,))


_FORMS: dict[str, Callable[[Any], _Linear]] = {
    "relax.nn.conv2d": _conv2d,
    "relax.nn.conv2d_transpose": _conv2d_transpose,
    "relax.matmul": _matmul,
}


def float_layer(call: Any, weight: torch.Tensor) -> Kernel:
    """Return the float32 function of a linear layer's input, with another weight.

    Parameters
    ----------
    call : relax.Call
        A linear layer of a canonical function.
    weight : torch.Tensor
        float32, in the shape and axis order of the call's own weight.
    """
    form = _FORMS[op_name(call)](call)
    arranged = _packed(weight.permute(form.order))
    return lambda x: form.run(x, arranged)


def linear(call: Any, differentiable: bool) -> Kernel:
    """Any linear operator: float32, or integers with an int32 result."""
    form = _FORMS[op_name(call)](call)
    integer = dtype_of(call) == "int32"
    if not is_const(call.args[1]):
        if integer:
            return lambda x, w: form.run(x.double(), w.double().permute(form.order)).int()
        return lambda x, w: form.run(x, w.permute(form.order))
    weight = tensor(call.args[1])
    if not integer:
        return float_layer(call, weight)
    weight = weight.permute(form.order)
    largest = float(weight.double().abs().sum(dim=form.summed).max()) * _MAX_CODE
    # In float64 torch's convolution is faster in its default order than in channels_last.
    fits = largest < _EXACT_FLOAT32
    exact = torch.float32 if fits else torch.float64
    carrier = _packed(weight.to(exact)) if fits else weight.to(exact).contiguous()
    result = torch.float32 if differentiable else torch.int32
    return lambda x: form.run(x.to(exact), carrier).to(result)


def _order(layout: Any, letters: str) -> tuple[int, ...]:
    return tuple(str(layout).index(letter) for letter in letters)


def _pad(x: torch.Tensor, top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    return F.pad(x, (left, right, top, bottom))


def _packed(weight: torch.Tensor) -> torch.Tensor:
    # torch's channels_last kernels are the fast ones only if the weight is in that order, too.
    if weight.dim() != 4:
        return weight.contiguous()
    return weight.contiguous(memory_format=torch.channels_last)


TABLE: dict[str, Builder] = dict.fromkeys(_FORMS, linear)

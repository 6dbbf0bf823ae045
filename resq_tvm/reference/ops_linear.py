"""Linear operators, float and integer: convolution, transposed convolution, dense.

Integer operators are exact: float32 arithmetic holds every partial sum where
``127 · max_o Σ|w_o| < 2**24``, otherwise float64 does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from resq_tvm.passes.graph import is_const
from resq_tvm.reference.operands import Builder, Kernel, dtype_of, ints, nhwc, tensor

_EXACT_FLOAT32 = 1 << 24
_MAX_CODE = 128


def conv2d(call: Any, differentiable: bool) -> Kernel:
    """``relax.nn.conv2d``: any layout of data (NHWC, NCHW) and kernel."""
    at = call.attrs
    last = nhwc(str(at.data_layout), call)
    top, left, bottom, right = ints(at.padding)
    stride, dilation, groups = ints(at.strides), ints(at.dilation), int(at.groups)
    order = [str(at.kernel_layout).index(axis) for axis in "OIHW"]

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if last:
            x = x.permute(0, 3, 1, 2)
        if (top, left) == (bottom, right):
            y = F.conv2d(x, weight, None, stride, (top, left), dilation, groups)
        else:
            y = F.conv2d(
                _pad(x, top, left, bottom, right), weight, None, stride, 0, dilation, groups
            )
        return y.permute(0, 2, 3, 1) if last else y

    return _with_weight(call, run, lambda w: w.permute(order), (1, 2, 3), differentiable)


def conv2d_transpose(call: Any, differentiable: bool) -> Kernel:
    """``relax.nn.conv2d_transpose``: kernel axis I counts input, O output channels per group."""
    at = call.attrs
    last = nhwc(str(at.data_layout), call)
    top, left, bottom, right = ints(at.padding)
    stride, dilation, groups = ints(at.strides), ints(at.dilation), int(at.groups)
    out_h, out_w = ints(at.output_padding)
    order = [str(at.kernel_layout).index(axis) for axis in "IOHW"]
    plain = (top, left) == (bottom, right) and out_h < stride[0] and out_w < stride[1]

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if last:
            x = x.permute(0, 3, 1, 2)
        if plain:
            y = F.conv_transpose2d(
                x, weight, None, stride, (top, left), (out_h, out_w), groups, dilation
            )
        else:
            # Padding of a transposed convolution crops its full output.
            y = F.conv_transpose2d(x, weight, None, stride, 0, 0, groups, dilation)
            y = _pad(y, -top, -left, out_h - bottom, out_w - right)
        return y.permute(0, 2, 3, 1) if last else y

    return _with_weight(call, run, lambda w: w.permute(order), (0, 2, 3), differentiable)


def matmul(call: Any, differentiable: bool) -> Kernel:
    """``relax.matmul``, with or without constant second operand."""
    return _with_weight(call, torch.matmul, lambda w: w, (0,), differentiable)


def _pad(x: torch.Tensor, top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    return F.pad(x, (left, right, top, bottom))


def _with_weight(
    call: Any,
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    arrange: Callable[[torch.Tensor], torch.Tensor],
    summed: tuple[int, ...],
    differentiable: bool,
) -> Kernel:
    """Bind the weight, in the order torch wants, and the arithmetic that the dtypes ask for."""
    integer = dtype_of(call) == "int32"
    if not is_const(call.args[1]):
        if integer:
            return lambda x, w: run(x.double(), arrange(w.double())).int()
        return lambda x, w: run(x, arrange(w))
    weight = arrange(tensor(call.args[1]))
    if not integer:
        # torch's channels_last kernels are the fast ones only if the weight is in that order, too.
        weight = _packed(weight)
        return lambda x: run(x, weight)
    # A transposed convolution sums over its input channels only, a grouped one over a part of
    # them: the sum over all is an upper bound for both.
    largest = float(weight.double().abs().sum(dim=summed).max()) * _MAX_CODE
    exact = torch.float32 if largest < _EXACT_FLOAT32 else torch.float64
    carrier = _packed(weight.to(exact)) if exact is torch.float32 else weight.to(exact).contiguous()
    if differentiable:
        return lambda x: run(x.to(exact), carrier).to(torch.float32)
    return lambda x: run(x.to(exact), carrier).to(torch.int32)


def _packed(weight: torch.Tensor) -> torch.Tensor:
    if weight.dim() != 4:
        return weight.contiguous()
    return weight.contiguous(memory_format=torch.channels_last)


TABLE: dict[str, Builder] = {
    "relax.nn.conv2d": conv2d,
    "relax.nn.conv2d_transpose": conv2d_transpose,
    "relax.matmul": matmul,
}

"""Reading a Relax call for the operator tables: constants, attributes, operand binding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from resq_tvm.passes.graph import const_value, is_const, op_name

Kernel = Callable[..., torch.Tensor]
Builder = Callable[[Any, bool], Kernel]
"""Makes, from a Relax call and "differentiable", a function of the call's variable operands."""

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "float64": torch.float64,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}


def tensor(expr: Any) -> torch.Tensor:
    """Return a Relax tensor constant as a torch tensor that owns its memory."""
    return torch.from_numpy(const_value(expr).copy())


def ints(values: Any) -> list[int]:
    """Return an attribute array as a list of integers."""
    return [int(v) for v in values]


def dtype_of(expr: Any) -> str:
    """Return the dtype of a tensor expression as text."""
    return str(expr.ty.dtype)


def bound(call: Any, function: Callable[..., torch.Tensor]) -> Kernel:
    """Return ``function`` of all the call's operands with the constant ones filled in."""
    constants = {i: tensor(a) for i, a in enumerate(call.args) if is_const(a)}
    if not constants:
        return function
    if len(call.args) == 2 and 1 in constants:
        second = constants[1]
        return lambda x: function(x, second)
    count = len(call.args)

    def kernel(*variables: torch.Tensor) -> torch.Tensor:
        rest = iter(variables)
        return function(*(constants[i] if i in constants else next(rest) for i in range(count)))

    return kernel


def nhwc(layout: str, place: Any) -> bool:
    """Whether the layout is NHWC (else NCHW); raise `ValueError` for any other."""
    if layout not in ("NHWC", "NCHW"):
        raise ValueError(f"{op_name(place)} has layout {layout!r}; use NHWC or NCHW")
    return layout == "NHWC"


def channels_first(kernel: Kernel, layout_is_nhwc: bool) -> Kernel:
    """Run an NCHW torch operator on an NHWC tensor by permuted views.

    torch takes the permuted view for channels_last and answers in the same memory order, so no
    element is moved.
    """
    if not layout_is_nhwc:
        return kernel
    return lambda x: kernel(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

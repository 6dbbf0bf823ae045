"""Grouped convolutions on a dense array: how many groups run as one, with zeros between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.npu.tensors import CHANNEL_GRAIN
from resq_tvm.schedules.packing import densify
from resq_tvm.schedules.spec import Conv, FusedKernel
from resq_tvm.targets.npu.description import MatrixUnit


def join_groups(kernel: FusedKernel, unit: MatrixUnit, whole: bool) -> FusedKernel:
    """Return a grouped convolution with as many of its groups joined as takes the least time.

    Groups of few channels leave most of the array idle; joined, they fill it, though with products
    by zero. The output channels of what is joined begin at whole bytes.

    Parameters
    ----------
    kernel : FusedKernel
        Its anchor is an integer convolution.
    unit : MatrixUnit
    whole : bool
        Whether a tile has to hold all channels of a pixel.
    """
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    if anchor.groups == 1:
        return kernel
    if whole or len(anchor.inputs) > 1:
        return densify(kernel, kernel.c + 1, 1)
    size = anchor.weight.shape[0] // anchor.groups
    counts = [
        n
        for n in range(1, anchor.groups + 1)
        if anchor.groups % n == 0 and (n == anchor.groups or n * size % CHANNEL_GRAIN == 0)
    ]
    best = min(counts, key=lambda n: (_passes(anchor, unit, n), n))
    return kernel if best == 1 else replace(kernel, anchor=_joined(anchor, best))


def _passes(anchor: Conv, unit: MatrixUnit, joined: int) -> int:
    """Return how often the array works on a pixel if so many groups are joined."""
    out, height, width, inputs = anchor.weight.shape
    taps, terms = height * width, joined * inputs
    deep = (
        ceil_div(taps * terms, unit.depth)
        if unit.packs_taps
        else taps * ceil_div(terms, unit.depth)
    )
    return anchor.groups // joined * ceil_div(out // anchor.groups * joined, unit.outputs) * deep


def _joined(anchor: Conv, count: int) -> Conv:
    """Return a convolution of which ``count`` groups are one, with weights of zero between them."""
    out, height, width, inputs = anchor.weight.shape
    size = out // anchor.groups
    weight: Any = np.zeros((out, height, width, inputs * count), anchor.weight.dtype)
    for group in range(anchor.groups):
        rows = slice(group * size, (group + 1) * size)
        first = group % count * inputs
        weight[rows, :, :, first : first + inputs] = anchor.weight[rows]
    return replace(anchor, weight=weight, groups=anchor.groups // count)

"""Reduction order of a convolution, and its weights packed in that order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.context import LANES, ceil_div
from resq_tvm.schedules.spec import Conv, FloatConv, FusedKernel, Phase


@dataclass(frozen=True)
class Segment:
    """A run of the reduction: taps on a regular grid × channel groups of one input.

    Tap (i, j) reads the input at ``(dy + i·step_y, dx + j·step_x)``; ``taps`` lists the kernel
    positions (ky, kx) row by row. ``start`` is the segment's first reduction step; every tap has
    ``groups`` steps.
    """

    input: str
    channels: slice
    start: int
    groups: int
    rows: int
    columns: int
    dy: int
    dx: int
    step_y: int
    step_x: int
    taps: tuple[tuple[int, int], ...]

    @property
    def steps(self) -> int:
        """Reduction steps of the segment."""
        return len(self.taps) * self.groups


def densify(kernel: FusedKernel, outputs: int, inputs: int) -> FusedKernel:
    """Return the kernel with a grouped convolution written as a dense one where it must be.

    A group stays by itself where its output channels are whole tiles of ``outputs`` and its input
    channels whole steps of ``inputs``; else zero weights fill the block-diagonal matrix.
    """
    anchor = kernel.anchor
    assert isinstance(anchor, Conv | FloatConv)
    o, kh, kw, i = anchor.weight.shape
    size = o // anchor.groups
    apart = len(anchor.inputs) == 1 and size % outputs == 0 and i % inputs == 0
    if anchor.groups == 1 or apart:
        return kernel
    dense: Any = np.zeros((o, kh, kw, i * anchor.groups), anchor.weight.dtype)
    for g in range(anchor.groups):
        rows = slice(g * size, (g + 1) * size)
        dense[rows, :, :, g * i : (g + 1) * i] = anchor.weight[rows]
    return replace(kernel, anchor=replace(anchor, weight=dense, groups=1))


def _grids(phase: Phase) -> list[tuple[tuple[int, int, int, int], ...]]:
    """Return the phase's taps as one grid where they form one, else tap by tap."""
    taps = phase.taps
    ys = list(dict.fromkeys(t[2] for t in taps))
    xs = list(dict.fromkeys(t[3] for t in taps))
    regular = len(taps) == len(ys) * len(xs) and all(
        (t[2], t[3]) == (ys[i // len(xs)], xs[i % len(xs)]) for i, t in enumerate(taps)
    )
    even = all(len({b - a for a, b in pairwise(v)}) <= 1 for v in (ys, xs))
    if regular and even:
        return [taps] if taps else []
    return [(tap,) for tap in taps]


def segments_of(kernel: FusedKernel, phase: Phase, group: int) -> list[Segment]:
    """Cut a phase's reduction into segments, in steps of ``group`` channels."""
    anchor = kernel.anchor
    assert isinstance(anchor, Conv | FloatConv)
    segments = []
    start = first = 0
    for name in anchor.inputs:
        c = kernel.tensor(name).c if anchor.groups == 1 else anchor.weight.shape[3]
        for grid in _grids(phase):
            columns = len(dict.fromkeys(t[3] for t in grid))
            rows = len(grid) // columns
            segment = Segment(
                input=name,
                channels=slice(first, first + c),
                start=start,
                groups=ceil_div(c, group),
                rows=rows,
                columns=columns,
                dy=grid[0][2],
                dx=grid[0][3],
                step_y=grid[columns][2] - grid[0][2] if rows > 1 else 0,
                step_x=grid[1][3] - grid[0][3] if columns > 1 else 0,
                taps=tuple((t[0], t[1]) for t in grid),
            )
            segments.append(segment)
            start += segment.steps
        first += c
    return segments


def reading(segments: list[Segment], inputs: Sequence[str], names: Sequence[str]) -> list[Segment]:
    """Return segments that read other tensors in the place of their inputs, in the same order."""
    new = dict(zip(inputs, names, strict=True))
    return [replace(s, input=new[s.input]) for s in segments]


def pack_weight(
    weight: NDArray[Any], segments: list[Segment], group: int, vectors: int
) -> NDArray[Any]:
    """Pack ``(O, kh, kw, I)`` as ``(vectors, 16, steps, group)``; absent weights are zero."""
    o = weight.shape[0]
    parts = []
    for s in segments:
        taps = np.stack([weight[:, ky, kx, s.channels] for ky, kx in s.taps], axis=1)
        short = s.groups * group - taps.shape[2]
        taps = np.pad(taps, ((0, vectors * LANES - o), (0, 0), (0, short)))
        parts.append(taps.reshape(vectors, LANES, s.steps, group))
    if not parts:
        return np.zeros((vectors, LANES, 0, group), weight.dtype)
    return np.concatenate(parts, axis=2)

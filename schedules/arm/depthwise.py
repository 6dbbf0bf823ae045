"""Depthwise convolutions on ARM: 16 channels side by side, taps summed in int16 while that is safe.

``smull`` and ``smlal`` multiply 8 channels each into int16. Taps are added up there in groups,
proven from the real weights (two taps of any 8-bit codes fit; ±7 · ±7 fits 668); ``saddw`` moves a
group's sums to int32.

Reference: Arm Architecture Reference Manual, SMULL, SMLAL and SADDW (vector).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.arm.depth import INT16, limits_of
from resq_tvm.schedules.code import Expr, cast, load
from resq_tvm.schedules.context import LANES, Context, load_vector
from resq_tvm.schedules.depthwise import DepthwiseBlock, emit_depthwise
from resq_tvm.schedules.packing import Segment
from resq_tvm.schedules.spec import Conv

Tap = tuple[int, int, int]  # row and column offset in the input, number of the packed weights


def emit_depthwise_arm(ctx: Context) -> None:
    """Emit a depthwise convolution with its epilogue."""
    emit_depthwise(ctx, _ArmBlock)


def tap_groups(weights: NDArray[np.int8], limit: int) -> list[int]:
    """Return how many taps, one after the other, are summed in int16 before the next group.

    Parameters
    ----------
    weights : ndarray
        int8 ``(taps, channels)``.
    limit : int
        Largest magnitude of an activation's code.
    """
    sizes: list[int] = []
    total = np.zeros(weights.shape[1], np.int64)
    for tap in np.abs(weights.astype(np.int64)):
        if sizes and limit * int((total + tap).max(initial=0)) <= INT16:
            total += tap
            sizes[-1] += 1
        else:
            total = tap
            sizes.append(1)
    return sizes


class _ArmBlock(DepthwiseBlock):
    """One phase on one run of channel vectors."""

    widened = False

    def reduce(
        self, segments: Sequence[Segment], acc: list[Any], o: Expr, i: Expr, x0: Expr, c: Expr
    ) -> None:
        """Add all products to the accumulators of a tile."""
        code = self.ctx.code
        taps = _taps(segments)
        (name,) = {s.input for s in segments}
        channels = self.ctx.kernel.c
        kernel = self.ctx.kernel.anchor
        assert isinstance(kernel, Conv)
        weights = np.stack(
            [kernel.weight[:, ky, kx, 0] for s in segments for ky, kx in s.taps]
        ).reshape(-1, channels)
        limit, _ = limits_of(kernel)
        first = 0
        for size in tap_groups(weights, limit):
            sums = self._sum(name, taps[first : first + size], o, i, x0, c)
            for n, total in enumerate(sums):
                self.add(acc, n, code.bind(total, "s"))
            first += size

    def _sum(self, name: str, taps: list[Tap], o: Expr, i: Expr, x0: Expr, c: Expr) -> list[Expr]:
        """Return the int16 sums of some taps of an input, pixel by pixel."""
        code, kernel = self.ctx.code, self.ctx.kernel
        spec = kernel.tensor(name)
        iy, ix = self.anchor.in_stride
        loaded: dict[tuple[int, int], Expr] = {}

        def activation(dy: int, column: int) -> Expr:
            if (dy, column) not in loaded:
                y = i * iy + (dy + spec.halo[0])
                x = x0 * ix + (column + spec.halo[1])
                vector = load_vector(self.ctx, name, [0, y, x, c], self.block)
                loaded[dy, column] = code.bind(vector, "a")
            return cast(loaded[dy, column], "int16", LANES)

        sums: list[Expr | None] = [None] * self.width
        for dy, dx, place in taps:
            w = cast(code.bind(load(self.weight, [o, place, 0], LANES), "w"), "int16", LANES)
            for n in range(self.width):
                product = activation(dy, n * ix + dx) * w
                old = sums[n]
                sums[n] = code.bind(product if old is None else old + product, "s")
        return [s for s in sums if s is not None]


def _taps(segments: Sequence[Segment]) -> list[Tap]:
    return [
        (s.dy + a * s.step_y, s.dx + b * s.step_x, a * s.columns + b + s.start)
        for s in segments
        for a in range(s.rows)
        for b in range(s.columns)
    ]

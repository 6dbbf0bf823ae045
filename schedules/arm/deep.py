"""Narrow operands (W3A3, W2A2): ``mla`` alone, one instruction for 16 products.

An int8 lane sums a window of chunks: 14 at ±3 · ±3, 127 of ternary codes at the extremes, more with
real weights. Then ``sadalp`` moves the sums to int16 accumulators in the first cache level.

Reference: Arm Architecture Reference Manual, MLA and SADALP (vector).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resq_tvm.schedules.arm.depth import INT8, INT16, Window, longest_window, total_bound
from resq_tvm.schedules.arm.runs import Reduction
from resq_tvm.schedules.arm.scheme import value
from resq_tvm.schedules.arm.windowed import Windowed
from resq_tvm.schedules.code import Code, Expr

_WORTH = 6  # chunks: with fewer between flushes, `Pairs` is as fast


class Deep(Windowed):
    """Meaning: as `Smull`, with int8 sums over a window of chunks."""

    name = "deep"
    bits = (3, 3)
    narrow, wide = "int8", "int16"

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Keep a window per byte within int8, everything per pair of bytes within int16."""
        if 2 * total_bound(reduction, limits[0], 16) > INT16:
            return None
        return longest_window(reduction, limits[0], INT8, 16, _WORTH)

    def multiply(
        self,
        code: Code,
        state: Any,
        vector: int,
        weights: Sequence[Expr],
        chunks: Sequence[Sequence[Expr]],
        size: int,
    ) -> None:
        """Multiply one chunk."""
        (w,), (chunk,) = weights, chunks
        for m, a in enumerate(chunk):
            acc = state[0][m][vector]
            code.store(acc, [0], value(acc, 16) + a * w, 16)

"""One 8-bit and one narrow operand (W8A4, W4A8): ``smlal`` in int16, two per 16 products.

At ±127 · ±7 a lane takes 36 products; real weights allow more (`resq_tvm.schedules.arm.depth`).
Then ``sadalp`` moves the sums to int32 accumulators, which live in the first cache level.

Reference: Arm Architecture Reference Manual, SMLAL, SMLAL2 (vector).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resq_tvm.schedules.arm.depth import INT16, Window, longest_window
from resq_tvm.schedules.arm.runs import Reduction
from resq_tvm.schedules.arm.scheme import value
from resq_tvm.schedules.arm.smull import high, low, products
from resq_tvm.schedules.arm.windowed import Windowed
from resq_tvm.schedules.code import Code, Expr

_WORTH = 4  # chunks: with fewer between flushes, ``smull`` is as fast


class Smlal(Windowed):
    """Meaning: as `Smull`, with int16 sums over a window of chunks."""

    name = "smlal"
    narrow, wide = "int16", "int32"

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Keep the products of bytes i and i + 8 of a window's chunks within int16."""
        return longest_window(reduction, limits[0], INT16, 8, _WORTH)

    def multiply(
        self,
        code: Code,
        state: Any,
        vector: int,
        weights: Sequence[Expr],
        chunks: Sequence[Sequence[Expr]],
        size: int,
    ) -> None:
        """Multiply one chunk; of a short one the upper half is left out."""
        (w,), (chunk,) = weights, chunks
        for m, a in enumerate(chunk):
            acc = state[0][m][vector]
            code.store(acc, [0], value(acc, 8) + products(low(a), low(w)), 8)
        if size == 16:
            for m, a in enumerate(chunk):
                acc = state[0][m][vector]
                code.store(acc, [0], value(acc, 8) + products(high(a), high(w)), 8)

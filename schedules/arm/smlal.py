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
from resq_tvm.schedules.arm.scheme import Scheme, store_quads, value, widen_pairs, zeros
from resq_tvm.schedules.arm.smull import high, low, products
from resq_tvm.schedules.code import Code, Expr, constant

_WORTH = 4  # chunks: with fewer between flushes, ``smull`` is as fast


class Smlal(Scheme):
    """Meaning: as `Smull`, with int16 sums over a window of chunks."""

    name = "smlal"

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Keep the products of bytes i and i + 8 of a window's chunks within int16."""
        window = longest_window(reduction, limits[0], INT16, 8)
        return window if window and (window.level == "all" or window.chunks >= _WORTH) else None

    def start(self, code: Code, pixels: int) -> Any:
        """One int16x8 per pixel and output; int32x4 ones where there are several windows."""
        narrow = [zeros(code, self.outputs, 8, "int16") for _ in range(pixels)]
        if self.window.level == "all":
            return narrow, None
        return narrow, [zeros(code, self.outputs, 4, "int32") for _ in range(pixels)]

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

    def accumulators(self, state: Any) -> list[Any]:
        """Return the narrow ones."""
        return [acc for row in state[0] for acc in row]

    def flush(self, code: Code, state: Any) -> None:
        """Add the int16 sums to the int32 ones (``sadalp``)."""
        for narrow, wide in zip(*state, strict=True):
            for a, b in zip(narrow, wide, strict=True):
                code.store(b, [0], value(b, 4) + widen_pairs("int32", value(a, 8)), 4)
                code.store(a, [0], constant(0, "int16", 8), 8)

    def finish(self, code: Code, state: Any, spill: Any, first: Expr) -> None:
        """Sum the lanes of every accumulator."""
        narrow, wide = state
        if wide is None:
            quads = [[widen_pairs("int32", value(acc, 8)) for acc in row] for row in narrow]
        else:
            quads = [[value(acc, 4) for acc in row] for row in wide]
        store_quads(code, quads, spill, first)

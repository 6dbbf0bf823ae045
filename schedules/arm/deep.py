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
from resq_tvm.schedules.arm.scheme import Scheme, store_quads, value, widen_pairs, zeros
from resq_tvm.schedules.code import Code, Expr, constant

_WORTH = 6  # chunks: with fewer between flushes, `Pairs` is as fast


class Deep(Scheme):
    """Meaning: as `Smull`, with int8 sums over a window of chunks."""

    name = "deep"
    bits = (3, 3)

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Keep a window per byte within int8, everything per pair of bytes within int16."""
        if 2 * total_bound(reduction, limits[0], 16) > INT16:
            return None
        window = longest_window(reduction, limits[0], INT8, 16)
        return window if window and (window.level == "all" or window.chunks >= _WORTH) else None

    def start(self, code: Code, pixels: int) -> Any:
        """One int8x16 per pixel and output; int16x8 ones where there are several windows."""
        narrow = [zeros(code, self.outputs, 16, "int8") for _ in range(pixels)]
        if self.window.level == "all":
            return narrow, None
        return narrow, [zeros(code, self.outputs, 8, "int16") for _ in range(pixels)]

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

    def accumulators(self, state: Any) -> list[Any]:
        """Return the narrow ones."""
        return [acc for row in state[0] for acc in row]

    def flush(self, code: Code, state: Any) -> None:
        """Add the int8 sums to the int16 ones (``sadalp``)."""
        for narrow, wide in zip(*state, strict=True):
            for a, b in zip(narrow, wide, strict=True):
                code.store(b, [0], value(b, 8) + widen_pairs("int16", value(a, 16)), 8)
                code.store(a, [0], constant(0, "int8", 16), 16)

    def finish(self, code: Code, state: Any, spill: Any, first: Expr) -> None:
        """Sum the lanes of every accumulator."""
        narrow, wide = state
        if wide is None:
            sums = [[widen_pairs("int16", value(acc, 16)) for acc in row] for row in narrow]
        else:
            sums = [[value(acc, 8) for acc in row] for row in wide]
        quads = [[widen_pairs("int32", s) for s in row] for row in sums]
        store_quads(code, quads, spill, first)

"""W4A4: ``mul`` and ``mla`` on 16 bytes, ``sadalp`` into int16: three instructions for 32 products.

Two products of ±7 · ±7, at most 98, fit an int8 lane. The int16 sums last for the whole reduction
(5344 products at the extremes), or the scheme does not apply.

Reference: Arm Architecture Reference Manual, MUL, MLA and SADALP (vector).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resq_tvm.schedules.arm.depth import INT8, INT16, Window, total_bound
from resq_tvm.schedules.arm.runs import Reduction
from resq_tvm.schedules.arm.scheme import Scheme, store_quads, value, widen_pairs, zeros
from resq_tvm.schedules.code import Code, Expr


class Pairs(Scheme):
    """Meaning: as `Smull`, two chunks at a time."""

    name = "pairs"
    bits = (7, 7)
    unit = 2

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Keep two chunks per lane within int8, everything per pair of lanes within int16."""
        if limits[0] * limits[1] * 2 > INT8:  # the extremes decide: real weights gain little
            return None
        # Byte pairs (2i, 2i + 1) share a lane of int16: bounding all by twice the larger is safe.
        total = 2 * total_bound(reduction, limits[0], 16)
        return Window("all", reduction.chunks, total) if total <= INT16 else None

    def start(self, code: Code, pixels: int) -> Any:
        """One int16x8 per pixel and output."""
        return [zeros(code, self.outputs, 8, "int16") for _ in range(pixels)]

    def multiply(
        self,
        code: Code,
        state: Any,
        vector: int,
        weights: Sequence[Expr],
        chunks: Sequence[Sequence[Expr]],
        size: int,
    ) -> None:
        """Multiply two chunks, or one."""
        sums = [code.bind(a * weights[0], "p") for a in chunks[0]]
        for w, chunk in zip(weights[1:], chunks[1:], strict=True):
            sums = [code.bind(s + a * w, "p") for s, a in zip(sums, chunk, strict=True)]
        for m, s in enumerate(sums):
            acc = state[m][vector]
            code.store(acc, [0], value(acc, 8) + widen_pairs("int16", s), 8)

    def finish(self, code: Code, state: Any, spill: Any, first: Expr) -> None:
        """Sum the lanes of every accumulator."""
        quads = [[widen_pairs("int32", value(acc, 8)) for acc in row] for row in state]
        store_quads(code, quads, spill, first)

"""W8A8 on ARMv8.0: ``smull``, ``smlal2``, ``sadalp``, three instructions for 16 products.

Two products of symmetric 8-bit codes, at most 2 · 127² = 32258, fit the int16 lane in between.

Reference: Arm Architecture Reference Manual, SMULL, SMLAL2 and SADALP (vector).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from resq_tvm.schedules.arm.depth import Window
from resq_tvm.schedules.arm.runs import Reduction
from resq_tvm.schedules.arm.scheme import Scheme, store_quads, value, widen_pairs, zeros
from resq_tvm.schedules.code import Code, Expr, intrinsic


def low(vector: Expr) -> Expr:
    """Return the first 8 bytes."""
    return tirx.op.vectorlow("int8x8", vector)


def high(vector: Expr) -> Expr:
    """Return the last 8 bytes."""
    return tirx.op.vectorhigh("int8x8", vector)


def products(a: Expr, b: Expr) -> Expr:
    """Multiply 8 bytes into int16 (``smull``)."""
    return intrinsic("llvm.aarch64.neon.smull.v8i16", "int16", 8, a, b)


class Smull(Scheme):
    """Meaning: ``acc[m, n] += Σ_k a[m, k] · w[n, k]``; lanes of the accumulator split k."""

    name = "smull"

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Apply always: two products of any symmetric codes fit int16."""
        return Window("all", reduction.chunks, 2 * limits[0] * limits[1])

    def start(self, code: Code, pixels: int) -> Any:
        """One int32x4 per pixel and output."""
        return [zeros(code, self.outputs, 4, "int32") for _ in range(pixels)]

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
        sums = [code.bind(products(low(a), low(w)), "p") for a in chunk]
        if size == 16:
            both = zip(sums, chunk, strict=True)
            sums = [code.bind(s + products(high(a), high(w)), "p") for s, a in both]
        for m, s in enumerate(sums):
            acc = state[m][vector]
            code.store(acc, [0], value(acc, 4) + widen_pairs("int32", s), 4)

    def finish(self, code: Code, state: Any, spill: Any, first: Expr) -> None:
        """Sum the four lanes of every accumulator."""
        store_quads(code, [[value(acc, 4) for acc in row] for row in state], spill, first)

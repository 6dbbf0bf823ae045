"""Ternary W2A2: two outputs per byte of weights, ``w0 + 16 · w1``: ``mla`` makes 32 products.

While a window's sums stay within ±7, the low and the high nibble of the accumulator separate
exactly: the low one by shifting left and right by 4, the high one by a rounding shift right.
Both are added to int8 accumulators, which last for the whole reduction.

Reference: Arm Architecture Reference Manual, MLA, SSRA and SRSRA (vector).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.arm.depth import INT8, Window, longest_window, total_bound
from resq_tvm.schedules.arm.runs import Reduction
from resq_tvm.schedules.arm.scheme import Scheme, store_quads, value, widen_pairs, zeros
from resq_tvm.schedules.code import Code, Expr, constant, intrinsic

_NIBBLE = 7
_WORTH = 4  # chunks: with fewer between flushes, `Deep` is as fast


class Nibble(Scheme):
    """Meaning: as `Smull`; accumulators hold outputs n and n + 2 of a block."""

    name = "nibble"
    bits = (1, 1)
    vectors = 2
    separates = True

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Keep a window per byte within ±7, everything per byte within int8."""
        if limits[1] > 1 or total_bound(reduction, limits[0], 16) > INT8:
            return None
        return longest_window(reduction, limits[0], _NIBBLE, 16, _WORTH)

    def pack(self, weights: NDArray[np.int8]) -> NDArray[np.int8]:
        """Join outputs 0 and 2, 1 and 3."""
        joined = weights[:, :2] + 16 * weights[:, 2:]
        return np.ascontiguousarray(joined.transpose(0, 2, 1, 3))

    def start(self, code: Code, pixels: int) -> Any:
        """One int8x16 of products per pixel and pair of outputs, and two of separate sums."""
        return [[zeros(code, self.vectors, 16, "int8") for _ in range(pixels)] for _ in range(3)]

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
        """Return those of products, then those of low, then those of high nibbles."""
        return [acc for part in state for row in part for acc in row]

    def flush(self, code: Code, state: Any) -> None:
        """Separate the nibbles (``shl``, ``ssra``; ``srsra``)."""
        four = constant(4, "int8", 16)
        down = constant(-4, "int8", 16)
        for joined, lows, highs in zip(*state, strict=True):
            for acc, low, high in zip(joined, lows, highs, strict=True):
                total = value(acc, 16)
                rounded = intrinsic("llvm.aarch64.neon.srshl.v16i8", "int8", 16, total, down)
                code.store(low, [0], value(low, 16) + ((total << four) >> four), 16)
                code.store(high, [0], value(high, 16) + rounded, 16)
                code.store(acc, [0], constant(0, "int8", 16), 16)

    def finish(self, code: Code, state: Any, spill: Any, first: Expr) -> None:
        """Sum the lanes of every accumulator."""
        if self.window.level == "all":
            self.flush(code, state)
        quads = []
        for lows, highs in zip(state[1], state[2], strict=True):
            sums = [widen_pairs("int16", value(acc, 16)) for acc in (*lows, *highs)]
            quads.append([widen_pairs("int32", s) for s in sums])
        store_quads(code, quads, spill, first)

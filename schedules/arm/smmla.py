"""Cores with i8mm (ARMv8.6): ``smmla``, one instruction for 32 products.

It multiplies two pixels × 8 channels by two outputs × 8 channels into a 2 × 2 block of int32.

Reference: Arm Architecture Reference Manual, SMMLA (vector).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from resq_tvm.schedules.arm.depth import Window
from resq_tvm.schedules.arm.runs import Reduction
from resq_tvm.schedules.arm.scheme import Scheme, interleave_outputs, value, zeros
from resq_tvm.schedules.code import Code, Expr, intrinsic, reinterpret
from resq_tvm.schedules.context import LANES

_GROUP = 8  # channels that one product sums


class Smmla(Scheme):
    """Meaning: ``acc[m, n] += Σ_k a[m, k] · w[n, k]`` in int32; lanes are pixels × outputs."""

    name = "smmla"
    outputs = 16
    vectors = 16
    pixels = 2

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Apply always: sums are int32 from the start."""
        return Window("all", reduction.chunks, limits[0] * limits[1])

    def pack(self, weights: NDArray[np.int8]) -> NDArray[np.int8]:
        """Two outputs times eight channels per vector."""
        return interleave_outputs(weights, _GROUP)

    def start(self, code: Code, pixels: int) -> Any:
        """Eight int32x4 per pair of pixels."""
        return [zeros(code, self.outputs // 2, 4, "int32") for _ in range(pixels // 2)]

    def multiply(
        self,
        code: Code,
        state: Any,
        vector: int,
        weights: Sequence[Expr],
        chunks: Sequence[Sequence[Expr]],
        size: int,
    ) -> None:
        """Multiply eight channels of one chunk by two outputs."""
        (w,), (chunk,) = weights, chunks
        group, pair = divmod(vector, self.outputs // 2)
        for m in range(0, len(chunk), 2):
            halves = [reinterpret(a, "int64", 2) for a in chunk[m : m + 2]]
            row = reinterpret(tirx.Shuffle(halves, [group, 2 + group]), "int8", 16)
            acc = state[m // 2][pair]
            name = "llvm.aarch64.neon.smmla.v4i32.v16i8"
            code.store(acc, [0], intrinsic(name, "int32", 4, value(acc, 4), row, w), 4)

    def needed(self, size: int) -> int:
        """Return how many of a chunk's vectors of weights have something to multiply."""
        return max(1, size // _GROUP) * (self.outputs // 2)

    def finish(self, code: Code, state: Any, spill: Any, first: Expr) -> None:
        """Store the accumulators: the first half of each belongs to the first pixel."""
        for m, row in enumerate(state):
            for p in range(0, len(row), 2):
                pair = [reinterpret(value(acc, 4), "int64", 2) for acc in row[p : p + 2]]
                for i in range(2):
                    quad = reinterpret(tirx.Shuffle(pair, [i, 2 + i]), "int32", 4)
                    code.store(spill, [first + ((2 * m + i) * LANES + 2 * p)], quad, 4)

"""Dot-product cores (ARMv8.2): ``sdot`` by lane, one instruction for 16 products.

A vector of weights holds 4 outputs × 4 channels; the pixel's 4 channels are a lane of the vector
that holds 16 of them, so that one load of activations serves 4 · 16 outputs.

Reference: Arm Architecture Reference Manual, SDOT (by element).
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

_GROUP = 4  # channels that one lane sums


class Sdot(Scheme):
    """Meaning: ``acc[m, n] += Σ_k a[m, k] · w[n, k]`` in int32; lanes are outputs."""

    name = "sdot"
    outputs = 16
    vectors = 16

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Apply always: sums are int32 from the start."""
        return Window("all", reduction.chunks, limits[0] * limits[1])

    def pack(self, weights: NDArray[np.int8]) -> NDArray[np.int8]:
        """Four outputs times four channels per vector."""
        return interleave_outputs(weights, _GROUP)

    def start(self, code: Code, pixels: int) -> Any:
        """Four int32x4 per pixel."""
        return [zeros(code, self.outputs // 4, 4, "int32") for _ in range(pixels)]

    def multiply(
        self,
        code: Code,
        state: Any,
        vector: int,
        weights: Sequence[Expr],
        chunks: Sequence[Sequence[Expr]],
        size: int,
    ) -> None:
        """Multiply four channels of one chunk by four outputs."""
        (w,), (chunk,) = weights, chunks
        group, quad = divmod(vector, self.outputs // 4)
        for m, a in enumerate(chunk):
            whole = reinterpret(a, "int32", 4)
            lane = reinterpret(tirx.Shuffle([whole], [group] * 4), "int8", 16)
            acc = state[m][quad]
            name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
            code.store(acc, [0], intrinsic(name, "int32", 4, value(acc, 4), w, lane), 4)

    def needed(self, size: int) -> int:
        """Return how many of a chunk's vectors of weights have something to multiply."""
        return size // _GROUP * (self.outputs // 4)

    def finish(self, code: Code, state: Any, spill: Any, first: Expr) -> None:
        """Store the accumulators."""
        for m, row in enumerate(state):
            for p, acc in enumerate(row):
                code.store(spill, [first + (m * LANES + 4 * p)], value(acc, 4), 4)

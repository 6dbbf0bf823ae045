"""What a scheme of multiplying is: how weights are packed, what a step does, where sums end up.

Two shapes exist. *Channels in lanes*: a vector holds 16 input channels of one pixel, another 16
weights of one output; lanes are summed at the end. *Outputs in lanes*: an instruction sums groups
of channels by itself, and a vector of accumulators holds several outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.arm.depth import Window
from resq_tvm.schedules.arm.runs import CHUNK, Reduction
from resq_tvm.schedules.code import Code, Expr, constant, intrinsic, load
from resq_tvm.schedules.context import LANES


class Scheme:
    """One scheme; instances belong to one kernel.

    Attributes
    ----------
    name : str
        As decisions spell it (`resq_tvm.schedules.decision.Decision.method`).
    bits : (int, int)
        Largest magnitudes of codes and weights that it is made for.
    outputs : int
        Output channels of one block of accumulators.
    unit : int
        Full chunks that are multiplied together.
    vectors : int
        Weight vectors of one block and chunk.
    pixels : int
        Pixels of a tile must be a multiple of it.
    separates : bool
        Whether the in-order loop (`resq_tvm.schedules.arm.loops`) flushes by itself.
    """

    name: ClassVar[str]
    bits: ClassVar[tuple[int, int]] = (127, 127)
    outputs: ClassVar[int] = 4
    unit: ClassVar[int] = 1
    vectors: ClassVar[int] = 4
    pixels: ClassVar[int] = 1
    separates: ClassVar[bool] = False

    def __init__(self, window: Window) -> None:
        self.window = window

    @classmethod
    def prove(cls, reduction: Reduction, limits: tuple[int, int]) -> Window | None:
        """Return when to flush so that nothing overflows; None if the scheme does not apply.

        Parameters
        ----------
        reduction : Reduction
            With the kernel's real weights.
        limits : (int, int)
            Largest magnitude of the activations' codes and of the weights.
        """
        raise NotImplementedError

    def pack(self, weights: NDArray[np.int8]) -> NDArray[np.int8]:
        """Pack ``(blocks, outputs, chunks, 16)`` as ``(blocks, chunks, vectors, 16)``."""
        return np.ascontiguousarray(weights.transpose(0, 2, 1, 3))

    def start(self, code: Code, pixels: int) -> Any:
        """Allocate and clear the accumulators of a tile."""
        raise NotImplementedError

    def multiply(
        self,
        code: Code,
        state: Any,
        vector: int,
        weights: Sequence[Expr],
        chunks: Sequence[Sequence[Expr]],
        size: int,
    ) -> None:
        """Multiply one vector of weights per chunk by the pixels' activations.

        Parameters
        ----------
        vector : int
            Which of the ``vectors`` of a chunk.
        weights : sequence of int8x16
            Per chunk: ``unit`` of them, or one where fewer are left.
        chunks : sequence of sequence of int8x16
            Per chunk, per pixel.
        size : int
            Bytes of a chunk that count: 16, or 8 or 4 of a short one, whose other bytes meet
            weights of zero.
        """
        raise NotImplementedError

    def needed(self, size: int) -> int:
        """Return how many of a chunk's vectors of weights have something to multiply."""
        return self.vectors

    def accumulators(self, state: Any) -> list[Any]:
        """Return the buffers that `multiply` adds to: pixel by pixel, output by output."""
        return [acc for row in state for acc in row]

    def flush(self, code: Code, state: Any) -> None:
        """Add the narrow accumulators to wider ones, and clear them; by default there are none."""

    def finish(self, code: Code, state: Any, spill: Any, first: Expr) -> None:
        """Store the sums: pixel n's to ``spill[16·n + first]`` and the following."""
        raise NotImplementedError


def zeros(code: Code, count: int, lanes: int, dtype: str) -> list[Any]:
    """Allocate ``count`` vectors of zero."""
    buffers = [code.allocate(lanes, dtype) for _ in range(count)]
    for buffer in buffers:
        code.store(buffer, [0], constant(0, dtype, lanes), lanes)
    return buffers


def value(buffer: Any, lanes: int) -> Expr:
    """Return a vector's value."""
    return load(buffer, [0], lanes)


def widen_pairs(wide: str, vector: Expr) -> Expr:
    """Add neighbouring lanes into lanes of twice the width (``saddlp``; with an add: ``sadalp``).

    ``wide`` is ``"int32"`` (from int16x8) or ``"int16"`` (from int8x16).
    """
    if wide == "int32":
        return intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32", 4, vector)
    return intrinsic("llvm.aarch64.neon.saddlp.v8i16.v16i8", "int16", 8, vector)


def add_across(code: Code, quads: Sequence[Expr]) -> Expr:
    """Sum the lanes of four int32x4 vectors; lane i of the result belongs to vector i."""
    pair = "llvm.aarch64.neon.addp.v4i32"
    first = code.bind(intrinsic(pair, "int32", 4, quads[0], quads[1]))
    second = code.bind(intrinsic(pair, "int32", 4, quads[2], quads[3]))
    return intrinsic(pair, "int32", 4, first, second)


def store_quads(code: Code, quads: Sequence[Sequence[Expr]], spill: Any, first: Expr) -> None:
    """Store per pixel the sums of four int32x4 vectors to the spilled tile."""
    for n, vectors in enumerate(quads):
        code.store(spill, [first + n * LANES], add_across(code, vectors), 4)


def interleave_outputs(weights: NDArray[np.int8], group: int) -> NDArray[np.int8]:
    """Pack ``(blocks, outputs, chunks, 16)`` with outputs in lanes.

    A vector holds ``16 / group`` outputs times ``group`` channels; the vectors of a chunk are
    ordered by groups of channels, then outputs: ``(blocks, chunks, vectors, 16)``.
    """
    blocks, outputs, chunks, _ = weights.shape
    per = CHUNK // group  # outputs of a vector
    cut = weights.reshape(blocks, outputs // per, per, chunks, CHUNK // group, group)
    cut = cut.transpose(0, 3, 4, 1, 2, 5)
    return np.ascontiguousarray(
        cut.reshape(blocks, chunks, outputs // per * (CHUNK // group), CHUNK)
    )

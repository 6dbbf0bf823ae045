"""Weights of at most 4 bits, stored two in a byte and unpacked once per run of a kernel.

Unpacking in the inner loop would cost a fifth of its time on in-order cores; a panel of whole bytes
that is made once and used at every pixel costs next to nothing, and the stored weights, which come
from memory once per frame, take half the space.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.arm.runs import CHUNK
from resq_tvm.schedules.code import constant, load
from resq_tvm.schedules.context import Context

_NIBBLE = 7
_WORTH = 256  # uses of every weight: with fewer, unpacking takes over one per cent


def pack_nibbles(weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """Pack vectors of 16 in pairs: the first in the low nibbles, the second in the high ones.

    Parameters
    ----------
    weights : ndarray
        int8, a multiple of 16 in all, of magnitudes up to 7.
    """
    vectors = weights.reshape(-1, CHUNK)
    if len(vectors) % 2:
        vectors = np.concatenate([vectors, np.zeros((1, CHUNK), np.int8)])
    low, high = vectors[0::2].astype(np.uint8), vectors[1::2].astype(np.uint8)
    return ((low & 15) | (high << 4)).astype(np.uint8).view(np.int8).reshape(-1)


def emit_weights(ctx: Context, weights: NDArray[np.int8]) -> Any:
    """Add packed weights to a kernel; returns the flat int8 buffer that its loops read.

    Narrow weights are unpacked there and then, where every weight is used often enough and the
    kernel does not skip tiles.
    """
    kernel = ctx.kernel
    flat = weights.reshape(-1)
    often = kernel.sparse is None and kernel.h * kernel.w >= _WORTH
    if not often or np.abs(flat.astype(np.int16)).max(initial=0) > _NIBBLE:
        return ctx.constant("w", flat)
    code = ctx.code
    packed = pack_nibbles(flat)
    stored = ctx.constant("w", packed)
    panel = code.allocate(2 * packed.size, "int8", "panel")
    four = constant(4, "int8", CHUNK)
    with code.loop(packed.size // CHUNK, "n", ctx.decision.parallel) as n:
        both = code.bind(load(stored, [n * CHUNK], CHUNK), "v")
        code.store(panel, [n * (2 * CHUNK)], (both << four) >> four, CHUNK)
        code.store(panel, [n * (2 * CHUNK) + CHUNK], both >> four, CHUNK)
    return panel

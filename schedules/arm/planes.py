"""Bit planes of ternary codes.

Eight channels make two bytes: the bits of the first tell which are negative, those of the second
which are positive, or which are not zero. A plane holds such a pair for every eight bytes of a
tensor, in the tensor's order. It is made once per run of a kernel, before the convolution reads it
at every tap and output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from resq_tvm.schedules.code import Expr, cast, constant, intrinsic, load, reinterpret
from resq_tvm.schedules.context import Context

GROUP = 8  # channels of a byte
_BLOCK = 64  # codes that become one vector of 16 bytes
_PAIRS = tuple(4 * i + j for i in range(4) for j in (0, 2, 1, 3))


def plane_bytes(codes: int) -> int:
    """Return the bytes of the planes of so many codes."""
    return codes // GROUP * 2


def packable(codes: int) -> bool:
    """Return whether a tensor of so many bytes can be packed."""
    return codes >= _BLOCK and codes % GROUP == 0


def pack(codes: NDArray[np.int8], positive: bool) -> NDArray[np.uint8]:
    """Return the meaning of `emit_planes`: ``(…, n, 8)`` ternary codes as ``(…, n, 2)`` bytes."""
    planes = (codes < 0, codes > 0 if positive else codes != 0)
    return np.concatenate([np.packbits(p, axis=-1, bitorder="little") for p in planes], axis=-1)


def emit_planes(ctx: Context, name: str, positive: bool) -> Any:
    """Emit the packing of an input of ternary codes; returns the buffer of its planes.

    ``positive`` says whether the second plane tells what is positive, or what is not zero.

    ``cmtst``-like masks select one bit per channel; three pairwise additions gather eight channels.
    """
    code = ctx.code
    spec = ctx.kernel.tensor(name)
    codes = int(np.prod(spec.shape))
    planes = code.allocate(plane_bytes(codes), "uint8", "planes")
    bits = ctx.constant("bits", np.tile(1 << np.arange(GROUP), 2).astype(np.uint8))
    buffer = ctx.buffer(name)
    blocks = -(-codes // _BLOCK)
    with code.loop(blocks, "n", ctx.decision.parallel) as n:
        first: Expr = n * _BLOCK
        if codes % _BLOCK:  # the last block overlaps the one before
            first = tirx.Min(first, tirx.const(codes - _BLOCK, "int32"))
        first = code.bind(first, "first")
        pattern = code.bind(load(bits, [0], 16), "bits")
        quarters = []
        for i in range(0, _BLOCK, 16):
            value = code.bind(load(buffer, [0, 0, 0, first + i], 16), "v")
            sign = value >> constant(7, "int8", 16)
            least = constant(0, "int8", 16)
            second = value > least if positive else value != least
            wanted = tirx.Select(second, pattern, constant(0, "uint8", 16))
            masks = [reinterpret(sign, "uint8", 16) & pattern, wanted]
            quarters.append(code.bind(_pairwise(*masks), "r"))
        halves = [code.bind(_pairwise(*quarters[i : i + 2]), "r") for i in (0, 2)]
        gathered = code.bind(_pairwise(*halves), "r")
        ordered = tirx.Shuffle([gathered], list(_PAIRS))
        at = [cast(first, "int32", 1) // (_BLOCK // 16)]
        code.store(planes, at, ordered, 16)
    return planes


def _pairwise(a: Expr, b: Expr) -> Expr:
    return intrinsic("llvm.aarch64.neon.addp.v16i8", "uint8", 16, a, b)

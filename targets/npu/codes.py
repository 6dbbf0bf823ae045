"""Codes in memory: two's complement at 2, 4 or 8 bits, the first in the lowest bits of a byte."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CODE_FORMATS: Final = {"c2": 2, "c4": 4, "c8": 8}  # of an operand → bits

# All codes of a byte as one element, so that unpacking is one look-up for every byte.
_ONE_LOOKUP: Final[dict[int, np.dtype[Any]]] = {2: np.dtype(np.uint32), 4: np.dtype(np.uint16)}


def code_bytes(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes of ``bits`` take, begun at a whole byte."""
    return -(-count * bits // 8)


def code_range(bits: int) -> tuple[int, int]:
    """Return the least and the largest code that ``bits`` can hold."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Pack codes along the last axis.

    Parameters
    ----------
    codes : ndarray of integers (..., n)
        Within `code_range`; others lose their high bits.
    bits : int
        2, 4 or 8.

    Returns
    -------
    ndarray of uint8 (..., code_bytes(n, bits))
        What is left of the last byte holds zero.
    """
    signed = np.ascontiguousarray(codes, np.int8) if codes.dtype != np.int8 else codes
    if bits == 8:
        return signed.view(np.uint8)
    per_byte = 8 // bits
    count = signed.shape[-1]
    packed = np.zeros((*signed.shape[:-1], code_bytes(count, bits)), np.uint8)
    mask = (1 << bits) - 1
    raw = signed.view(np.uint8)
    for position in range(min(per_byte, count)):
        part = raw[..., position::per_byte] & mask
        if position:
            part <<= position * bits
        packed[..., : part.shape[-1]] |= part
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, count: int, first: int = 0) -> NDArray[np.int8]:
    """Unpack codes ``first`` to ``first + count`` of every vector along the last axis.

    Parameters
    ----------
    packed : ndarray of uint8 (..., n)
        With ``n`` at least ``code_bytes(first + count, bits)``.
    bits : int
        2, 4 or 8.

    Returns
    -------
    ndarray of int8 (..., count)
        For 8 bits a view of ``packed``.
    """
    if bits == 8:
        return packed.view(np.int8)[..., first : first + count]
    whole = np.take(_table(bits), packed).view(np.int8)
    return whole[..., first : first + count]


@cache
def _table(bits: int) -> NDArray[Any]:
    """Return the codes of every byte, as one element of ``8 / bits`` bytes each."""
    positions = np.arange(8 // bits) * bits
    codes = (np.arange(256)[:, None] >> positions) & ((1 << bits) - 1)
    negative = codes >= 1 << (bits - 1)
    signed = np.ascontiguousarray(codes - negative * (1 << bits), np.int8)
    return signed.view(_ONE_LOOKUP[bits])[:, 0]

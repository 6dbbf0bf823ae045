"""The memories of a simulated NPU: bytes, and strided views that never reach outside."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from resq_tvm.targets.npu.codes import code_bytes, unpack
from resq_tvm.targets.npu.commands import Plane, ring_runs


class Fault(Exception):
    """What a command does wrong, in one line. `Machine.run` adds which command it was."""


class Memory:
    """A named array of bytes.

    Attributes
    ----------
    name : str
        As messages call it.
    data : ndarray of uint8 (n,)
        C-contiguous.
    """

    def __init__(self, name: str, data: NDArray[np.uint8]) -> None:
        self.name = name
        self.data = data

    def view(
        self, dtype: DTypeLike, address: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> NDArray[Any]:
        """Return elements of the memory, to read or to write.

        Parameters
        ----------
        dtype : dtype
            Little-endian; elements need not be aligned.
        address : int
            Byte of the first element.
        shape, strides : tuple of int
            Elements, and bytes between them.

        Raises
        ------
        Fault
            If a byte lies outside.
        """
        kind = np.dtype(dtype)
        if 0 in shape:
            return np.empty(shape, kind)
        first, end = address, address + kind.itemsize
        for n, stride in zip(shape, strides, strict=True):
            if stride < 0:
                first += stride * (n - 1)
            else:
                end += stride * (n - 1)
        if first < 0 or end > self.data.size:
            raise Fault(f"{self.name} bytes {first} to {end} lie outside its {self.data.size}")
        return np.ndarray(shape, kind, self.data, address, strides)


def filled_with_junk(nbytes: int, seed: int) -> NDArray[np.uint8]:
    """Return bytes that no program expects, the same ones for a seed."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def plane_codes(
    sram: Memory, plane: Plane, top: int, left: int, h: int, w: int
) -> NDArray[np.int8]:
    """Return codes of a plane: pixels from (top, left) on, all of them inside it.

    Returns
    -------
    ndarray of int8 (h, w, plane.channels)
    """
    begin = plane.first * plane.bits // 8
    skipped = plane.first - begin * 8 // plane.bits
    nbytes = code_bytes(skipped + plane.channels, plane.bits)
    parts = []
    for row, rows in ring_runs(plane.top + top, h, plane.ring):
        address = plane.address + row * plane.row + left * plane.pixel + begin
        parts.append(sram.view(np.uint8, address, (rows, w, nbytes), (plane.row, plane.pixel, 1)))
    packed = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return unpack(packed, plane.bits, plane.channels, skipped)

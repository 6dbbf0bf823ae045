"""The matrix unit: exact integer convolutions of one tile into accumulators.

The sums run in float32 where they stay below 2^24 whatever their order, else in float64, whose
matrix products are the fast ones of this machine and exact there. Accumulators wrap at 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.npu.codes import code_bytes, unpack
from resq_tvm.targets.npu.commands import Matrix, Plane, ring_runs
from resq_tvm.targets.npu.memory import Fault, Memory, plane_codes

_EXACT_FLOAT32: Final = 1 << 24
_EXACT_FLOAT64: Final = 1 << 53
_KEPT_WEIGHTS: Final = 64  # blocks of unpacked weights


@dataclass(frozen=True)
class _Weights:
    """Unpacked weights: (out, taps · in), or (taps, out) if depthwise; ``sums``: of magnitudes."""

    packed: bytes
    values: NDArray[Any]
    dtype: type


@dataclass
class MatrixUnit:
    """Runs matrix commands; keeps unpacked weights as long as their bytes stay what they are."""

    sram: Memory
    accumulators: Memory
    _kept: dict[tuple[int, ...], _Weights] = field(default_factory=dict)

    def run(self, command: Matrix) -> None:
        """Run a command.

        Raises
        ------
        Fault
            If it reads or writes outside a memory, or its extents contradict each other.
        """
        if command.depthwise and command.source.channels != command.out:
            raise Fault(
                f"depthwise, but {command.source.channels} input channels for {command.out} outputs"
            )
        weights = self._weights(command)
        pixels = _padded(self.sram, command, weights.dtype)
        sums = (_depthwise if command.depthwise else _convolve)(pixels, weights.values, command)
        shape = (command.h, command.w, command.out)
        place = self.accumulators.view(
            "<i4", command.accumulators, shape, (4 * command.w * command.out, 4 * command.out, 4)
        )
        whole = sums.reshape(shape)
        if weights.dtype is np.float64:
            whole = whole.astype(np.int64)
        if command.accumulate:
            place += whole.astype(np.int32)
        else:
            np.copyto(place, whole, casting="unsafe")

    def _weights(self, command: Matrix) -> _Weights:
        """Unpack the weights of a command, or find them where they are as they were."""
        taps = command.taps[0] * command.taps[1]
        vectors, length = command.out, taps * command.source.channels
        if command.depthwise:
            vectors, length = taps, command.out
        bits = command.weight_bits
        nbytes = code_bytes(length, bits)
        raw = self.sram.view(np.uint8, command.weights, (vectors, nbytes), (nbytes, 1))
        key = (command.weights, vectors, length, bits, command.source.bits, command.depthwise)
        packed = raw.tobytes()
        kept = self._kept.get(key)
        if kept is not None and kept.packed == packed:
            return kept
        codes = unpack(raw, bits, length)
        values = codes.astype(np.float32)
        # No sum of any part of the products is larger than the largest code times this.
        magnitudes = np.abs(values).sum(axis=0 if command.depthwise else 1, dtype=np.float64)
        bound = float(magnitudes.max(initial=0)) * (1 << (command.source.bits - 1))
        if bound >= _EXACT_FLOAT64:
            raise Fault(f"sums of up to {bound:.3g} are beyond this simulator")
        dtype = np.float32 if bound < _EXACT_FLOAT32 else np.float64
        if len(self._kept) >= _KEPT_WEIGHTS:
            self._kept.clear()
        self._kept[key] = _Weights(packed, values.astype(dtype, copy=False), dtype)
        return self._kept[key]


@dataclass(frozen=True)
class Reach:
    """What a tile needs along an axis: ``extent`` pixels; the plane has ``first`` to ``end``.

    ``before`` pixels lie outside the plane before ``first``.
    """

    extent: int
    first: int
    end: int
    before: int


def reach(command: Matrix) -> tuple[Reach, Reach]:
    """Return what the taps of a tile reach, along height and width."""
    source = command.source
    needed = []
    for axis, (outputs, present) in enumerate(((command.h, source.h), (command.w, source.w))):
        to_last_tap = (command.taps[axis] - 1) * command.dilation[axis]
        extent = (outputs - 1) * command.stride[axis] + abs(to_last_tap) + 1
        begin = command.origin[axis] + min(0, to_last_tap)
        first = min(max(begin, 0), present)
        end = max(first, min(begin + extent, present))
        needed.append(Reach(extent, first, end, first - begin))
    return needed[0], needed[1]


def _padded(sram: Memory, command: Matrix, dtype: type) -> NDArray[Any]:
    """Return the pixels that the taps of the tile reach; zero where the plane has none."""
    y, x = reach(command)
    h, w = y.end - y.first, x.end - x.first
    codes = plane_codes(sram, command.source, y.first, x.first, h, w)
    if command.bits_map is not None:  # nobody need have written the codes of a pixel of 0 bits
        seen = bits_of(sram, command.bits_map)[y.first : y.end, x.first : x.end, None]
        codes = np.where(seen != 0, codes, 0)
    if (y.extent, x.extent) == (h, w):
        return codes.astype(dtype)
    pixels: NDArray[Any] = np.zeros((y.extent, x.extent, command.source.channels), dtype)
    if h and w:
        pixels[y.before : y.before + h, x.before : x.before + w] = codes
    return pixels


def _first_tap(command: Matrix) -> tuple[int, int]:
    """Return where the first tap of the first output lies in the pixels that the tile reaches."""
    y, x = (max(0, (n - 1) * -d) for n, d in zip(command.taps, command.dilation, strict=True))
    return y, x


def _convolve(pixels: NDArray[Any], weights: NDArray[Any], command: Matrix) -> NDArray[Any]:
    """Return the sums of a tile, (h · w, out): one product of matrices over taps and channels."""
    row, pixel, channel = pixels.strides
    down, across = _first_tap(command)
    shape = (command.h, command.w, *command.taps, pixels.shape[2])
    strides = (
        row * command.stride[0],
        pixel * command.stride[1],
        row * command.dilation[0],
        pixel * command.dilation[1],
        channel,
    )
    begin = down * row + across * pixel
    gathered = np.ndarray(shape, pixels.dtype, pixels, begin, strides)
    return gathered.reshape(command.h * command.w, weights.shape[1]) @ weights.T


def _depthwise(pixels: NDArray[Any], weights: NDArray[Any], command: Matrix) -> NDArray[Any]:
    """Return the sums of a tile, (h, w, out), where every channel has its own taps."""
    (down, across), (h, w) = command.stride, (command.h, command.w)
    first_y, first_x = _first_tap(command)
    sums: NDArray[Any] = np.zeros((h, w, command.out), pixels.dtype)
    products = np.empty_like(sums)
    for ky in range(command.taps[0]):
        for kx in range(command.taps[1]):
            y, x = first_y + ky * command.dilation[0], first_x + kx * command.dilation[1]
            tap = pixels[y : y + (h - 1) * down + 1 : down, x : x + (w - 1) * across + 1 : across]
            np.multiply(tap, weights[ky * command.taps[1] + kx], out=products)
            sums += products
    return sums


def bits_of(sram: Memory, plane: Plane) -> NDArray[np.uint8]:
    """Return a map of bits per pixel, (h, w)."""
    parts = [
        sram.view(
            np.uint8, plane.address + row * plane.row, (rows, plane.w), (plane.row, plane.pixel)
        )
        for row, rows in ring_runs(plane.top, plane.h, plane.ring)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

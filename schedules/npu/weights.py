"""The weights of an NPU's convolution: packed by tiles of output channels, and their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.npu.intrinsics import most
from resq_tvm.schedules.packing import Segment
from resq_tvm.targets.npu.codes import pack


class Weights:
    """The weights of a run of output channels, segment by segment of the reduction.

    Dense: ``[out][taps][in]``, every output channel from a whole byte on. Depthwise:
    ``[taps][out]``, every tap from a whole byte on.

    Parameters
    ----------
    array : ndarray of int8 (out, kh, kw, in)
    segments : sequence of Segment
    bits : int
        Of a weight in memory.
    tile : int
        Output channels of a tile.
    depthwise : bool
    grouped : bool
        Whether ``array`` has the input channels of one group, to which no slice applies.
    """

    def __init__(
        self,
        array: NDArray[Any],
        segments: Sequence[Segment],
        bits: int,
        tile: int,
        *,
        depthwise: bool,
        grouped: bool,
    ) -> None:
        self._array, self._segments, self.bits, self._tile = array, segments, bits, tile
        self._depthwise, self._grouped = depthwise, grouped

    @cached_property
    def _rows(self) -> list[int]:
        """Bytes of one output channel's weights, by segment; depthwise: unused."""
        return [
            -(-len(s.taps) * (s.channels.stop - s.channels.start) * self.bits // 8)
            for s in self._segments
        ]

    def segment_bytes(self, index: int, out: Expr) -> Expr:
        """Return the bytes of a segment's weights of ``out`` output channels."""
        if self._depthwise:
            return (out * self.bits + 7) // 8 * len(self._segments[index].taps)
        return out * self._rows[index]

    def used(self, out: Expr) -> Expr:
        """Return the bytes of a tile of ``out`` output channels."""
        return most(sum(self.segment_bytes(i, out) for i in range(len(self._segments))), 1)

    @property
    def tile_bytes(self) -> int:
        """Return the bytes of a whole tile."""
        return int(self.used(self._tile))

    def packed(self) -> NDArray[np.uint8]:
        """Return the weights, one row of bytes per tile of output channels."""
        tiles = range(0, len(self._array), self._tile)
        blocks = np.zeros((len(tiles), self.tile_bytes), np.uint8)
        for block, first in zip(blocks, tiles, strict=True):
            part = self._array[first : first + self._tile]
            begin = 0
            for segment in self._segments:
                contents = self._pack(part, segment)
                block[begin : begin + contents.size] = contents
                begin += contents.size
        return blocks

    def _pack(self, part: NDArray[Any], segment: Segment) -> NDArray[np.uint8]:
        taps = np.stack([part[:, ky, kx] for ky, kx in segment.taps], axis=1)  # (out, taps, in)
        if self._depthwise:
            return pack(taps[:, :, 0].T, self.bits).reshape(-1)
        if not self._grouped:
            taps = taps[:, :, segment.channels]
        return pack(taps.reshape(len(part), -1), self.bits).reshape(-1)

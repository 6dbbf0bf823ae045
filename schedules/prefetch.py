"""Fetching ahead what a later tile reads and writes.

State lies in memory untouched since the frame before. Where a kernel walks it in strips of channels
or in several rows at once, the processor's own prefetchers do not follow. Nor can they where a
kernel leaves out tiles; but it has a list of them, so that it knows where the next one is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from tvm import tirx

from resq_tvm.schedules.code import Expr, load
from resq_tvm.schedules.context import LANES, Context, at
from resq_tvm.schedules.sparse import Tile
from resq_tvm.schedules.spec import Conv, Phase, TensorSpec

LINE = 64  # bytes of a cache line


def fetch_ahead(
    ctx: Context,
    tile: tuple[int, int],
    position: Callable[[int, Expr], tuple[Expr, Expr]],
    c: Expr,
    vectors: int,
) -> None:
    """Emit prefetches of a tile's pixels in every tensor of the epilogue.

    Parameters
    ----------
    ctx : Context
    tile : (int, int)
        Rows and columns.
    position : callable
        Maps a row and a column of the tile to the output's (y, x).
    c
        The first channel.
    vectors : int
        Vectors of 16 channels.
    """
    kernel = ctx.kernel
    names = {n.name for n in kernel.nodes if n.op == "load"}
    read = [s for s in kernel.inputs if s.name in names and s.h * s.w > 1]
    for spec, write in (*((s, 0) for s in read), *((s, 1) for s in kernel.outputs)):
        size = np.dtype(spec.dtype).itemsize
        pixel = spec.c_phys * size
        per_line = max(1, LINE // pixel)
        reach = min(vectors * LANES * size, pixel)
        for i in range(tile[0]):
            for j in range(0, tile[1], per_line):
                for byte in range(0, reach, LINE):
                    y, x = position(i, j)
                    fetch(ctx, spec, y, x, c + byte // size, write)


@dataclass(frozen=True)
class _Box:
    """Rows of pixels of a tensor, relative to a tile at (y, x).

    They start at ``(y * stride[0] + rows[i], x * stride[1] + column)``.
    """

    spec: TensorSpec
    stride: tuple[int, int]
    rows: tuple[int, ...]
    column: int
    width: int
    write: bool = False

    @property
    def lines(self) -> int:
        """Cache lines of a row: its pixels lie next to each other."""
        pixel = self.spec.c_phys * np.dtype(self.spec.dtype).itemsize
        return -(-self.width * pixel // LINE)


class NextTile:
    """Fetches what a convolution's next tile in the list needs, a part with every channel block.

    It comes to the second cache level: all of a tile is more than the first one holds.

    Parameters
    ----------
    ctx : Context
    phase : Phase
    tile : (int, int)
        Rows and columns; of a gathered tile, those of one pixel.
    blocks : int
        Channel blocks of a tile.
    """

    def __init__(self, ctx: Context, phase: Phase, tile: tuple[int, int], blocks: int) -> None:
        kernel, anchor = ctx.kernel, ctx.kernel.anchor
        assert isinstance(anchor, Conv)
        self.ctx, self.blocks = ctx, blocks
        (height, width), (iy, ix), (oy, ox) = tile, anchor.in_stride, anchor.out_stride
        rows = tuple(sorted({i * iy + dy for i in range(height) for _, _, dy, _ in phase.taps}))
        columns = [j * ix + dx for j in (0, width - 1) for _, _, _, dx in phase.taps]
        first = min(columns, default=0)
        span = max(columns, default=0) - first + 1
        self.boxes = [
            _Box(kernel.tensor(name), (iy, ix), rows, first, span) for name in anchor.inputs
        ]
        own = tuple(phase.oy + i * oy for i in range(height))
        names = {n.name for n in kernel.nodes if n.op == "load"}
        read = [s for s in kernel.inputs if s.name in names and s.h * s.w > 1]
        for spec, write in (*((s, False) for s in read), *((s, True) for s in kernel.outputs)):
            self.boxes.append(_Box(spec, (oy, ox), own, phase.ox, (width - 1) * ox + 1, write))

    def fetch(self, tile: Tile, block: Expr) -> None:
        """Emit the prefetches that go with one channel block of a tile."""
        assert tile.later is not None
        corners = tile.later.pixels or ((tile.later.y, tile.later.x),)
        for box, corner in product(self.boxes, corners):
            share = -(-box.lines // self.blocks)
            size = np.dtype(box.spec.dtype).itemsize
            for row in box.rows:
                y = corner[0] * box.stride[0] + row
                x = corner[1] * box.stride[1] + box.column
                for n in range(share):
                    c = (block * share + n) * (LINE // size)
                    fetch(self.ctx, box.spec, y, x, c, int(box.write), level=2)


def fetch(
    ctx: Context, spec: TensorSpec, y: Expr, x: Expr, c: Expr, write: int, level: int = 1
) -> None:
    """Emit one prefetch of a position, which may lie beyond the tensor's end."""
    address = tirx.op.address_of(load(ctx.buffer(spec.name), at(spec, y, x, c), 1))
    number = [tirx.const(n, "int32") for n in (write, 4 - level, 1)]  # 1: data
    ctx.code.run(tirx.op.call_llvm_intrin("void", "llvm.prefetch", address, *number))

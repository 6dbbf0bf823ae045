"""Fetching ahead what the epilogue of a later tile reads and writes.

State lies in memory untouched since the frame before. Where a kernel walks it in strips of channels
or in several rows at once, the processor's own prefetchers do not follow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import tirx

from resq_tvm.schedules.code import Expr, load
from resq_tvm.schedules.context import LANES, Context, at
from resq_tvm.schedules.spec import TensorSpec

_LINE = 64  # bytes of a cache line


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
        per_line = max(1, _LINE // pixel)
        reach = min(vectors * LANES * size, pixel)
        for i in range(tile[0]):
            for j in range(0, tile[1], per_line):
                for byte in range(0, reach, _LINE):
                    y, x = position(i, j)
                    _fetch(ctx, spec, y, x, c + byte // size, write)


def _fetch(ctx: Context, spec: TensorSpec, y: Expr, x: Expr, c: Expr, write: int) -> None:
    address = tirx.op.address_of(load(ctx.buffer(spec.name), at(spec, y, x, c), 1))
    number = [tirx.const(n, "int32") for n in (write, 3, 1)]  # to the first level, data
    ctx.code.run(tirx.op.call_llvm_intrin("void", "llvm.prefetch", address, *number))

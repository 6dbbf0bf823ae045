"""Sparse kernels: walking over the tiles that need work.

`resq_tvm.schedules.listing` has listed them. One loop runs over the list alone, so that threads
share what there is to do, and an unchanged region costs a few loads per tile.

Changes are frayed: most tiles that changed have pixels that did not. Where neighbours share
nothing (a 1 × 1 convolution), pixels are listed one by one and *gathered*: the pixels of a tile in
registers are any that are next in the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from resq_tvm.schedules.atrest import rests_at_zero
from resq_tvm.schedules.code import Code, Expr, cast, constant, index_of, load
from resq_tvm.schedules.context import Context, at, ceil_div
from resq_tvm.schedules.listing import (
    MOST_GATHERED,
    Windows,
    from_end,
    list_pixels,
    list_tiles,
)
from resq_tvm.schedules.tiles import overlap

_BYTES = 64  # of a vector
_FEW = 32  # channels: pixels of a row share vectors where the policy looks at them
# Pixels of a plane on which one thread looks at all tiles that were computed: that is short, and to
# hand tiles out to threads a second time takes as long on small planes.
_SHORT = 1024


@dataclass(frozen=True)
class Tile:
    """A tile to work on: its first row and column, and whether it changed.

    ``active`` is int32 1 or 0; None if all tiles of the loop changed.

    Its first ``before_y`` rows and ``before_x`` columns belong to the tiles before it. ``later`` is
    the tile that is fetched while this one is worked on. A gathered tile is a row of pixels whose
    positions are in ``pixels``, and for loops over them in the buffers ``table`` (y and x); the
    last one of a list has its last pixel several times.
    """

    y: Expr
    x: Expr
    active: Expr | None = None
    before_y: Expr = 0
    before_x: Expr = 0
    later: Tile | None = None
    pixels: tuple[tuple[Expr, Expr], ...] = ()
    table: tuple[Any, Any] | None = None

    def at(self, i: int, j: Expr) -> tuple[Expr, Expr]:
        """Return the position of the tile's pixel in row ``i`` and column ``j``."""
        if not self.pixels:
            return self.y + i, self.x + j
        assert self.table is not None
        ys, xs = self.table
        return load(ys, [j], 1), load(xs, [j], 1)


Finish = Callable[[Tile, tuple[int, int]], None] | None


@contextmanager
def changed_tiles(
    ctx: Context,
    rows: int,
    columns: int,
    tile_y: int,
    tile_x: int,
    windows: Windows,
    stride: tuple[int, int] = (1, 1),
    offsets: Sequence[tuple[int, int]] = ((0, 0),),
    finish: Finish = None,
    together: int = 1,
) -> Iterator[Tile]:
    """Nest what follows in a loop over the tiles of a plane that need work.

    The maps of outputs without bits of their own are marked on the way.

    Parameters
    ----------
    rows, columns, tile_y, tile_x : int
        The plane and its tiles; the last ones overlap their neighbours.
    windows : callable
        Maps the first row, the first column and the columns of a row of tiles to what they depend
        on.
    stride, offsets : tuple of int, sequence of tuple of int
        Where the plane's pixels lie in the output: ``stride`` apart, the first at an offset; with
        several offsets a pixel of the plane is as many of the output.
    finish : callable, optional
        Emits what follows when all tiles are done, tile by tile in a second loop: what has just
        been stored in small pieces cannot be loaded in large ones without a stall.
    together : int
        How many tiles are gathered; if more than 1, they must be pixels that depend on nothing but
        themselves.
    """
    assert ctx.kernel.sparse is not None
    plane, size = (rows, columns), (tile_y, tile_x)
    finished = _finished(ctx, plane, size)
    if together > 1:
        changed, reset = list_pixels(ctx, windows)
    else:
        changed, reset = list_tiles(ctx, plane, size, windows, stride, offsets, finished > 1)
    resting = rests_at_zero(ctx.kernel, ctx.kernel.sparse.differences)
    walk = partial(_walk, ctx, (changed, None if resting else reset), plane, size)
    with walk(together) as tile:
        yield tile
    if finish is not None:
        with walk(finished, parallel=rows * columns > _SHORT) as tile:
            finish(tile, (1, len(tile.pixels)) if tile.pixels else size)
    if resting:
        with _walk(ctx, (None, reset), plane, size, 1, parallel=False) as tile:
            for offset in offsets:
                _clear(ctx, tile, size, stride, offset)


def _finished(ctx: Context, plane: tuple[int, int], size: tuple[int, int]) -> int:
    """Return how many tiles are finished together: as many as fill the lanes of a vector.

    One where tiles overlap, which has to be known then, or where few channels let the pixels of a
    row share vectors.
    """
    few = ctx.kernel.c <= _FEW and size[1] > 1
    overlapping = any(extent % length for extent, length in zip(plane, size, strict=True))
    pixels = size[0] * size[1]
    return 1 if few or overlapping or MOST_GATHERED % pixels else MOST_GATHERED // pixels


@contextmanager
def _walk(
    ctx: Context,
    counts: tuple[Expr | None, Expr | None],
    plane: tuple[int, int],
    size: tuple[int, int],
    together: int,
    parallel: bool = True,
) -> Iterator[Tile]:
    """Nest what follows in a loop over the list: ``counts`` that changed, that are to be reset.

    None leaves an end of the list out. The loop is for one thread if the kernel is or unless
    ``parallel``.
    """
    code, buffers = ctx.code, ctx.sparse
    assert buffers is not None
    (rows, columns), (tile_y, tile_x) = plane, size
    groups, resets = (None if n is None else _groups(n, together) for n in counts)
    if groups is not None and resets is not None:
        groups = code.bind(groups, "groups")
    total = code.bind(_sum(groups, resets), "total")

    def place(number: Expr) -> tuple[Expr, Expr | None]:
        """Return where the tiles of a group are in the list, and whether they changed."""
        if resets is None:
            return number * together, None
        # The pixels of a tile may come in any order, so that both ends are read alike.
        last = together - 1
        if groups is None:
            return from_end(ctx, number * together + last), None
        active = code.bind(number < groups, "active")
        first = tirx.Select(active, number, number - groups) * together
        slot = tirx.Select(active, first, from_end(ctx, first + last))
        return slot, cast(active, "int32", 1)

    def tile(number: Expr, later: Tile | None = None) -> Tile:
        slot, active = place(number)
        position = code.bind(load(buffers.list, [slot], together), "tile")
        i, j = _row_and_column(position, ceil_div(columns, tile_x), together)
        if together > 1:
            return _gathered(code, (i, j), together, size, active, later)
        y, x = code.bind(overlap(i, tile_y, rows), "y"), code.bind(overlap(j, tile_x, columns), "x")
        before_y = 0 if rows % tile_y == 0 else i * tile_y - y
        before_x = 0 if columns % tile_x == 0 else j * tile_x - x
        return Tile(y, x, active, before_y, before_x, later)

    with code.loop(total, "p", ctx.decision.parallel and parallel) as p:
        ahead = ctx.decision.prefetch
        later = tile(tirx.Min(p + ahead, total - 1)) if ahead else None
        yield tile(p, later)


def _gathered(
    code: Code,
    numbers: tuple[Expr, Expr],
    together: int,
    size: tuple[int, int],
    active: Expr | None,
    later: Tile | None,
) -> Tile:
    """Return the pixels of several tiles as one; ``numbers`` are the tiles' rows and columns."""
    kept = [_kept(code, value, together) for value in numbers]
    corners = [
        [code.bind(load(buffer, [n], 1) * length, "at") for n in range(together)]
        for buffer, length in zip(kept, size, strict=True)
    ]
    pixels = tuple(
        (y + i, x + j)
        for y, x in zip(*corners, strict=True)
        for i in range(size[0])
        for j in range(size[1])
    )
    if len(pixels) > together:
        kept = [code.allocate(len(pixels), "int32", "at") for _ in kept]
        for n, position in enumerate(pixels):
            for buffer, value in zip(kept, position, strict=True):
                code.store(buffer, [n], value, 1)
    ys, xs = kept
    return Tile(*pixels[0], active, later=later, pixels=pixels, table=(ys, xs))


def _sum(a: Expr | None, b: Expr | None) -> Expr:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _clear(
    ctx: Context,
    tile: Tile,
    size: tuple[int, int],
    stride: tuple[int, int],
    offset: tuple[int, int],
) -> None:
    """Make a tile zero in all outputs, and unmarked where it has bits."""
    code, kernel = ctx.code, ctx.kernel
    assert kernel.sparse is not None
    with code.loop(size[0], "i") as i, code.loop(size[1], "j") as j:
        y = (tile.y + i) * stride[0] + offset[0]
        x = (tile.x + j) * stride[1] + offset[1]
        for store in kernel.stores:
            spec = kernel.tensor(store.name)
            zero = kernel.code.zero_point if spec.dtype == kernel.code.dtype else 0
            buffer, lanes = ctx.buffer(spec.name), _BYTES // np.dtype(spec.dtype).itemsize
            whole, rest = divmod(spec.c_phys, lanes)
            if whole:
                with code.loop(whole, "c") as c:
                    value = constant(zero, spec.dtype, lanes)
                    code.store(buffer, at(spec, y, x, c * lanes), value, lanes)
            if rest:
                value = constant(zero, spec.dtype, rest)
                code.store(buffer, at(spec, y, x, whole * lanes), value, rest)
            if store.choice is not None:
                seen = ctx.buffer(kernel.sparse.out_maps[store.name].name)
                code.store(seen, [0, y, x, 0], tirx.const(0, "uint8"), 1)


def _groups(count: Expr, together: int) -> Expr:
    """Return how many groups of ``together`` tiles there are, the last one filled up."""
    return count if together == 1 else tirx.floordiv(count + (together - 1), together)


def _row_and_column(position: Expr, across: int, lanes: int) -> tuple[Expr, Expr]:
    if across == 1:
        return position, constant(0, "int32", lanes)
    row = tirx.Div(position, constant(across, "int32", lanes))
    return row, position - row * constant(across, "int32", lanes)


def _kept(code: Code, value: Expr, lanes: int) -> Any:
    """Keep lanes in memory, where each can be had by itself."""
    buffer = code.allocate(lanes, "int32", "at")
    code.store(buffer, [0], value, lanes)
    return buffer


@contextmanager
def every_pixel(ctx: Context, rows: int, columns: int) -> Iterator[Tile]:
    """Nest what follows in a loop over all pixels, as `changed_tiles` does over some."""
    code = ctx.code
    with code.loop(rows, "y", ctx.decision.parallel) as y, code.loop(columns, "x") as x:
        yield Tile(y, x)


def choose_row(changed: Expr, row: Expr, otherwise: int) -> Expr:
    """Return ``row`` of a constant where a tile changed, else another."""
    return tirx.Select(changed, index_of(row), index_of(otherwise))

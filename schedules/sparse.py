"""Tiles that changed: finding them, walking over them, and marking what they wrote.

A kernel first lists its tiles: those with something in their receptive field that is not as on the
keyframe, and those to be reset (`resq_tvm.schedules.spec.Sparse`). Then one loop runs over the list
alone, so that threads share what there is to do, and an unchanged region costs a few loads per
tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from resq_tvm.schedules.code import Code, Expr, cast, load, reinterpret
from resq_tvm.schedules.context import Context, ceil_div
from resq_tvm.schedules.reach import Window
from resq_tvm.schedules.spec import TensorSpec
from resq_tvm.schedules.tiles import overlap

_CHUNKS = (8, 4, 2, 1)  # bytes of a map that one load takes

Windows = Callable[[Expr, Expr], Sequence[Window]]


@dataclass(frozen=True)
class Tile:
    """A tile to work on: its first row and column, and whether it changed (int32: 1, else 0)."""

    y: Expr
    x: Expr
    active: Expr


def begin(ctx: Context) -> None:
    """Clear the kernel's counts; comes before its first tile."""
    sparse, buffers = ctx.kernel.sparse, ctx.sparse
    assert sparse is not None and buffers is not None
    for i in range(2):
        ctx.code.store(buffers.counts, [2 * sparse.index + i], tirx.const(0, "int32"), 1)


@contextmanager
def changed_tiles(
    ctx: Context, rows: int, columns: int, tile_y: int, tile_x: int, windows: Windows
) -> Iterator[Tile]:
    """Nest what follows in a loop over the tiles of a plane that need work.

    Parameters
    ----------
    rows, columns, tile_y, tile_x : int
        The plane and its tiles; the last ones overlap their neighbours.
    windows : callable
        Maps a tile's first row and column to what it depends on.
    """
    code, sparse, buffers = ctx.code, ctx.kernel.sparse, ctx.sparse
    assert sparse is not None and buffers is not None
    down, across = ceil_div(rows, tile_y), ceil_div(columns, tile_x)
    first = buffers.reserve(down * across)
    count = code.allocate(1, "int32", "n")
    one = tirx.const(1, "int32")
    code.store(count, [0], tirx.const(0, "int32"), 1)
    with code.loop(down, "ty") as i, code.loop(across, "tx") as j:
        position = i * across + j
        active = one
        if not sparse.everywhere:
            y, x = overlap(i, tile_y, rows), overlap(j, tile_x, columns)
            active = code.bind(_any(ctx, windows(y, x)), "act")
        index = [position + first]
        before = code.bind(cast(load(buffers.tiles, index, 1), "int32", 1), "was")
        code.store(buffers.tiles, index, cast(active, "uint8", 1), 1)
        n = code.bind(load(count, [0], 1), "n")
        # Written at every tile and overwritten by the next one where there is nothing to do.
        code.store(buffers.list, [n], position * 2 + active, 1)
        code.store(count, [0], n + (active | before), 1)
        for row, value in ((0, active), (1, before & (active ^ one))):
            at = [2 * sparse.index + row]
            code.store(buffers.counts, at, load(buffers.counts, at, 1) + value, 1)
    total = code.bind(load(count, [0], 1), "total")
    with code.loop(total, "p", ctx.decision.parallel) as p:
        entry = code.bind(load(buffers.list, [p], 1), "entry")
        position = code.bind(entry >> one, "tile")
        y = overlap(tirx.floordiv(position, across) if across > 1 else position, tile_y, rows)
        x = overlap(tirx.floormod(position, across) if across > 1 else 0, tile_x, columns)
        bound = [v if isinstance(v, int) else code.bind(v, "at") for v in (y, x)]
        yield Tile(bound[0], bound[1], code.bind(entry & one, "active"))


@contextmanager
def every_pixel(ctx: Context, rows: int, columns: int) -> Iterator[Tile]:
    """Nest what follows in a loop over all pixels, as `changed_tiles` does over some."""
    code = ctx.code
    with code.loop(rows, "y", ctx.decision.parallel) as y, code.loop(columns, "x") as x:
        yield Tile(y, x, tirx.const(1, "int32"))


def mark(ctx: Context, seen: TensorSpec, y: Expr, x: Expr, width: int, value: Expr) -> None:
    """Store one value to ``width`` pixels of a map."""
    lanes = cast(value, "uint8", 1)
    spread = tirx.Broadcast(lanes, width) if width > 1 else lanes
    # A map has one channel: pixels of a row are contiguous.
    ctx.code.store(ctx.buffer(seen.name), [0, y, 0, x], spread, width)


def _any(ctx: Context, windows: Sequence[Window]) -> Expr:
    """Return 1 if any pixel of the windows changed, else 0."""
    code = ctx.code
    seen: Any = None
    for window in windows:
        for value in _bytes(code, ctx.buffer(window.map.name), window):
            seen = value if seen is None else seen | value
    if seen is None:
        return tirx.const(0, "int32")
    return cast(tirx.NE(seen, tirx.const(0, "int64")), "int32", 1)


def _bytes(code: Code, buffer: Any, window: Window) -> Iterator[Expr]:
    """Yield the bytes of a window as integers."""
    height, extent = window.map.h, window.map.w
    width = min(window.width, extent)
    chunk = next(c for c in _CHUNKS if c <= width)
    column = code.bind(_inside(window.column, extent - width), "wx")
    starts = [*range(0, width - chunk, chunk), width - chunk]
    for row in window.rows:
        y = code.bind(_inside(row, height - 1), "wy")
        for start in starts:
            # A map has one channel: pixels of a row are contiguous.
            part = load(buffer, [0, y, 0, column + start], chunk)
            bits = 8 * chunk
            yield cast(reinterpret(part, f"int{bits}", 1), "int64", 1)


def _inside(index: Expr, last: int) -> Expr:
    """Clamp an index to ``[0, last]``."""
    if isinstance(index, int):
        return min(max(index, 0), last)
    return tirx.Max(tirx.Min(index, tirx.const(last, "int32")), tirx.const(0, "int32"))


def choose_row(changed: Expr, row: Expr, otherwise: int) -> Expr:
    """Return ``row`` of a constant where a tile changed, else another."""
    chosen = tirx.const(row, "int32") if isinstance(row, int) else row
    return tirx.Select(changed, chosen, tirx.const(otherwise, "int32"))

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
from functools import partial
from typing import Any

from tvm import tirx

from resq_tvm.schedules.code import Code, Expr, cast, index_of, load, reinterpret
from resq_tvm.schedules.context import Context, ceil_div
from resq_tvm.schedules.reach import Window
from resq_tvm.schedules.spec import TensorSpec
from resq_tvm.schedules.tiles import overlap, rest

_CHUNKS = (8, 4, 2, 1)  # bytes of a map that one load takes

_RUN = 8  # tiles of a row that are looked at together first

Windows = Callable[[Expr, Expr, int], Sequence[Window]]


@dataclass(frozen=True)
class Tile:
    """A tile to work on: its first row and column, and whether it changed (int32: 1, else 0).

    Its first ``before_y`` rows and ``before_x`` columns belong to the tiles before it. The tile
    that is fetched while this one is worked on starts at ``next_y``, ``next_x``.
    """

    y: Expr
    x: Expr
    active: Expr
    before_y: Expr = 0
    before_x: Expr = 0
    next_y: Expr = 0
    next_x: Expr = 0


def begin(ctx: Context) -> None:
    """Clear the kernel's counts; comes before its first tile."""
    sparse, buffers = ctx.kernel.sparse, ctx.sparse
    assert sparse is not None and buffers is not None
    for i in range(2):
        ctx.code.store(buffers.counts, [2 * sparse.index + i], tirx.const(0, "int32"), 1)


@contextmanager
def changed_tiles(
    ctx: Context,
    rows: int,
    columns: int,
    tile_y: int,
    tile_x: int,
    windows: Windows,
    stride: tuple[int, int] = (1, 1),
    offset: tuple[int, int] = (0, 0),
    finish: Callable[[Tile], None] | None = None,
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
    stride, offset : tuple of int
        Where the plane's pixels lie in the output.
    finish : callable, optional
        Emits what follows when all tiles are done, tile by tile in a second loop: what has just
        been stored in small pieces cannot be loaded in large ones without a stall.
    """
    code, sparse, buffers = ctx.code, ctx.kernel.sparse, ctx.sparse
    assert sparse is not None and buffers is not None
    down, across = ceil_div(rows, tile_y), ceil_div(columns, tile_x)

    def look(i: Expr, j: Expr) -> Expr:
        y = overlap(i, tile_y, rows)
        return any_changed(ctx, windows(y, j * tile_x, _RUN * tile_x))

    first = buffers.reserve(down * across)
    one, zero = tirx.const(1, "int32"), tirx.const(0, "int32")
    # Listed, changed, reset: in registers until all tiles have been looked at.
    count, *sums = (code.allocate(1, "int32", name) for name in ("n", "changed", "reset"))
    for one_count in (count, *sums):
        code.store(one_count, [0], zero, 1)
    with code.loop(down, "ty") as i, _tiles_of_row(ctx, i, (down, across), first, look) as j:
        position = i * across + j
        active = one
        if not sparse.everywhere:
            y, x = overlap(i, tile_y, rows), overlap(j, tile_x, columns)
            active = code.bind(any_changed(ctx, windows(y, x, tile_x)), "act")
        index = [position + first]
        before = code.bind(cast(load(buffers.tiles, index, 1), "int32", 1), "was")
        used = code.bind((before + 1) >> one, "used")  # 1 also of a tile to be refreshed: 2
        code.store(buffers.tiles, index, cast(active, "uint8", 1), 1)
        plain = _plain_maps(ctx)
        if plain:
            # Tiles that stay as they were are marked already.
            with code.when(tirx.NE(active, before)):
                y, x = overlap(i, tile_y, rows), overlap(j, tile_x, columns)
                for seen in plain:
                    _mark_tile(ctx, seen, (y, x), (tile_y, tile_x), stride, offset, active)
        n = code.bind(load(count, [0], 1), "n")
        # Written at every tile and overwritten by the next one where there is nothing to do.
        code.store(buffers.list, [n], position * 2 + active, 1)
        code.store(count, [0], n + (active | used), 1)
        for sum_, value in zip(sums, (active, used & (active ^ one)), strict=True):
            code.store(sum_, [0], load(sum_, [0], 1) + value, 1)
    for row, sum_ in enumerate(sums):
        at = [2 * sparse.index + row]
        code.store(buffers.counts, at, load(buffers.counts, at, 1) + load(sum_, [0], 1), 1)
    total = code.bind(load(count, [0], 1), "total")
    walk = partial(_walk, ctx, total, (rows, columns), (tile_y, tile_x))
    with walk() as tile:
        yield tile
    if finish is not None:
        with walk() as tile:
            finish(tile)


@contextmanager
def _tiles_of_row(
    ctx: Context,
    row: Expr,
    tiles: tuple[int, int],
    first: int,
    look: Callable[[Expr, Expr], Expr],
) -> Iterator[Expr]:
    """Nest what follows in a loop over the tiles of a row that may need work.

    Runs of tiles are left out where nothing changed (``look``), nor did when they were last
    computed.
    """
    code, sparse, buffers = ctx.code, ctx.kernel.sparse, ctx.sparse
    assert sparse is not None and buffers is not None
    down, across = tiles
    noted = ctx.kernel.h * ctx.kernel.w  # tiles that the buffer has room for
    if sparse.everywhere or across < 2 * _RUN or noted < first + down * across + _RUN:
        with code.loop(across, "tx") as j:
            yield j
        return
    with code.loop(ceil_div(across, _RUN), "run") as run:
        start = run * _RUN
        # The run of a row's end may go on in the next row: that is looked at in vain.
        before = load(buffers.tiles, [row * across + start + first], _RUN)
        before = cast(tirx.NE(reinterpret(before, "int64", 1), tirx.const(0, "int64")), "int32", 1)
        with (
            code.when(tirx.NE(look(row, start) | before, tirx.const(0, "int32"))),
            code.loop(rest(across, start, _RUN), "tx") as j,
        ):
            yield start + j


@contextmanager
def _walk(
    ctx: Context, total: Expr, plane: tuple[int, int], size: tuple[int, int]
) -> Iterator[Tile]:
    """Nest what follows in a loop over the list of tiles."""
    code, buffers = ctx.code, ctx.sparse
    assert buffers is not None
    (rows, columns), (tile_y, tile_x) = plane, size
    across = ceil_div(columns, tile_x)
    one = tirx.const(1, "int32")

    def place(entry: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        position = code.bind(entry >> one, "tile")
        i = tirx.floordiv(position, across) if across > 1 else position
        j = tirx.floormod(position, across) if across > 1 else 0
        y = code.bind(overlap(i, tile_y, rows), "at")
        return i, j, y, code.bind(overlap(j, tile_x, columns), "at")

    with code.loop(total, "p", ctx.decision.parallel) as p:
        entry = code.bind(load(buffers.list, [p], 1), "entry")
        i, j, y, x = place(entry)
        before_y = 0 if rows % tile_y == 0 else i * tile_y - y
        before_x = 0 if columns % tile_x == 0 else j * tile_x - x
        next_y, next_x = y, x
        if ctx.decision.prefetch:
            later = tirx.Min(p + ctx.decision.prefetch, total - 1)
            _, _, next_y, next_x = place(load(buffers.list, [later], 1))
        yield Tile(y, x, code.bind(entry & one, "active"), before_y, before_x, next_y, next_x)


@contextmanager
def every_pixel(ctx: Context, rows: int, columns: int) -> Iterator[Tile]:
    """Nest what follows in a loop over all pixels, as `changed_tiles` does over some."""
    code = ctx.code
    with code.loop(rows, "y", ctx.decision.parallel) as y, code.loop(columns, "x") as x:
        yield Tile(y, x, tirx.const(1, "int32"))


def _plain_maps(ctx: Context) -> list[TensorSpec]:
    """Return the maps of outputs that have no bits of their own; a gate's map is made before."""
    sparse = ctx.kernel.sparse
    assert sparse is not None
    chosen = {s.name for s in ctx.kernel.stores if s.choice is not None}
    plain = {m.name: m for name, m in sparse.out_maps.items() if name not in chosen}
    return [m for m in plain.values() if sparse.gate_map is None or m.name != sparse.gate_map.name]


def _mark_tile(
    ctx: Context,
    seen: TensorSpec,
    at: tuple[Expr, Expr],
    size: tuple[int, int],
    stride: tuple[int, int],
    offset: tuple[int, int],
    value: Expr,
) -> None:
    for i in range(size[0]):
        y = (at[0] + i) * stride[0] + offset[0]
        if stride[1] == 1:
            mark(ctx, seen, y, at[1] + offset[1], size[1], value)
            continue
        with ctx.code.loop(size[1], "m") as j:
            mark(ctx, seen, y, (at[1] + j) * stride[1] + offset[1], 1, value)


def mark(ctx: Context, seen: TensorSpec, y: Expr, x: Expr, width: int, value: Expr) -> None:
    """Store one value to ``width`` pixels of a map."""
    lanes = cast(value, "uint8", 1)
    spread = tirx.Broadcast(lanes, width) if width > 1 else lanes
    # A map has one channel: pixels of a row are contiguous.
    ctx.code.store(ctx.buffer(seen.name), [0, y, 0, x], spread, width)


def any_changed(ctx: Context, windows: Sequence[Window]) -> Expr:
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
    return tirx.Select(changed, index_of(row), index_of(otherwise))

"""Listing the tiles that need work: what a sparse kernel does first.

Tiles with something in their receptive field that is not as on the keyframe come from the front of
the list, those to be reset (`resq_tvm.schedules.spec.Sparse`) from its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

from tvm import tirx

from resq_tvm.schedules.code import Code, Expr, cast, constant, load, reinterpret, splat
from resq_tvm.schedules.context import Context, ceil_div
from resq_tvm.schedules.reach import Window
from resq_tvm.schedules.spec import TensorSpec
from resq_tvm.schedules.tiles import overlap, rest

MOST_GATHERED = 16  # pixels of a gathered tile: the lanes of a vector
MARGIN = 2 * MOST_GATHERED  # of the list: both ends are filled up to whole gathered tiles
RUN = 8  # tiles of a row, or pixels, that are looked at together
_MANY = 64  # pixels
_CHUNKS = (8, 4, 2, 1)  # bytes of a map that one load takes

Windows = Callable[[Expr, Expr, int], Sequence[Window]]
Counts = tuple[Expr, Expr]


def begin(ctx: Context) -> None:
    """Clear the kernel's counts; comes before its first tile."""
    sparse, buffers = ctx.kernel.sparse, ctx.sparse
    assert sparse is not None and buffers is not None
    for i in range(2):
        ctx.code.store(buffers.counts, [2 * sparse.index + i], tirx.const(0, "int32"), 1)


def list_tiles(
    ctx: Context,
    plane: tuple[int, int],
    size: tuple[int, int],
    windows: Windows,
    stride: tuple[int, int],
    offsets: Sequence[tuple[int, int]],
    full: bool = False,
) -> Counts:
    """List the tiles of a plane; return how many changed, and how many are to be reset.

    The maps of outputs without bits of their own are marked on the way.

    Parameters
    ----------
    plane, size : (int, int)
        Rows and columns of the plane and of a tile; the last tiles overlap their neighbours.
    windows : callable
        Maps the first row, the first column and the columns of a row of tiles to what they depend
        on.
    stride, offsets : tuple of int, sequence of tuple of int
        Where the plane's pixels lie in the output.
    full : bool
        Whether the list ends with several tiles to be read at once.
    """
    code, sparse, buffers = ctx.code, ctx.kernel.sparse, ctx.sparse
    assert sparse is not None and buffers is not None
    (rows, columns), (tile_y, tile_x) = plane, size
    down, across = ceil_div(rows, tile_y), ceil_div(columns, tile_x)

    def look(i: Expr, j: Expr) -> Expr:
        y = overlap(i, tile_y, rows)
        return any_changed(ctx, windows(y, j * tile_x, RUN * tile_x))

    first = buffers.reserve(down * across)
    one = tirx.const(1, "int32")
    listed = _Listed(ctx)
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
                for seen, offset in product(plain, offsets):
                    _mark_tile(ctx, seen, (y, x), size, stride, offset, active)
        listed.changed(position, active)
        listed.reset(position, used & (active ^ one))
    if full:
        listed.fill_up()
    return listed.counts()


def list_pixels(ctx: Context, windows: Windows) -> Counts:
    """Do the same by pixel, of a kernel whose pixels depend on nothing but themselves."""
    code, sparse, buffers = ctx.code, ctx.kernel.sparse, ctx.sparse
    assert sparse is not None and buffers is not None
    size = ctx.kernel.h * ctx.kernel.w
    maps = {w.map.name: w.map for w in windows(0, 0, RUN)}
    first = buffers.reserve(size)
    one, zero = constant(1, "uint8", RUN), constant(0, "uint8", RUN)
    listed = _Listed(ctx)

    def flags(value: Expr) -> Expr:
        return tirx.Select(tirx.NE(value, zero), one, zero)

    def bits(value: Expr) -> Expr:
        return code.bind(reinterpret(value, "int64", 1), "bits")

    def seen_by(start: Expr, lanes: int) -> Expr:
        """Return what the maps say of pixels, together."""
        found: Any = constant(int(sparse.everywhere), "uint8", lanes)
        for seen in maps.values():
            # Maps have one channel and no halo: a plane is one row of bytes.
            place, width = (start, lanes) if seen.h * seen.w > 1 else (0, 1)
            value = load(ctx.buffer(seen.name), [0, 0, 0, place], width)
            found = found | (splat(value, lanes) if width == 1 else value)
        return found

    with _runs(ctx, size, first, seen_by) as run:
        start = code.bind(overlap(run, RUN, size), "start")
        active = code.bind(flags(seen_by(start, RUN)), "act")
        before = code.bind(load(buffers.tiles, [start + first], RUN), "was")
        with code.when(tirx.NE(bits(active | before), tirx.const(0, "int64"))):
            code.store(buffers.tiles, [start + first], active, RUN)
            for seen in _plain_maps(ctx):
                # Pixels that stay as they were are marked already.
                buffer, index = ctx.buffer(seen.name), [0, 0, 0, start]
                marked = load(buffer, index, RUN)
                marked = tirx.Select(tirx.NE(active, before), active, marked)
                code.store(buffer, index, marked, RUN)
            fresh = one
            if size % RUN:  # the last run overlaps the one before
                lanes = tirx.Ramp(tirx.const(0, "int32"), 1, RUN)
                fresh = tirx.Select(lanes >= splat(run * RUN - start, RUN), one, zero)
            changed, reset = bits(active & fresh), bits(flags(before) & (active ^ one) & fresh)
            for n in range(RUN):
                listed.changed(start + n, _byte(changed, n))
            with code.when(tirx.NE(reset, tirx.const(0, "int64"))):
                for n in range(RUN):
                    listed.reset(start + n, _byte(reset, n))
    listed.fill_up()
    return listed.counts()


@contextmanager
def _runs(
    ctx: Context, size: int, first: int, seen_by: Callable[[Expr, int], Expr]
) -> Iterator[Expr]:
    """Nest what follows in a loop over runs of pixels; many runs are left out together."""
    code, buffers = ctx.code, ctx.sparse
    assert buffers is not None
    if size % _MANY or size < 4 * _MANY:
        with code.loop(ceil_div(size, RUN), "run") as run:
            yield run
        return
    with code.loop(size // _MANY, "many") as many:
        start = many * _MANY
        found = seen_by(start, _MANY) | load(buffers.tiles, [start + first], _MANY)
        words = reinterpret(found, "int64", _MANY // 8)
        work = tirx.op.call_llvm_pure_intrin("int64", "llvm.vector.reduce.or", words)
        with (
            code.when(tirx.NE(work, tirx.const(0, "int64"))),
            code.loop(_MANY // RUN, "run") as run,
        ):
            yield many * (_MANY // RUN) + run


def _byte(bits: Expr, n: int) -> Expr:
    shifted = bits >> tirx.const(8 * n, "int64")
    return cast(shifted & tirx.const(1, "int64"), "int32", 1)


class _Listed:
    """The two ends of the list under construction."""

    def __init__(self, ctx: Context) -> None:
        assert ctx.sparse is not None
        self.ctx, self.code, self.list = ctx, ctx.code, ctx.sparse.list
        # In registers until all tiles have been looked at.
        self.sums = [self.code.allocate(1, "int32", name) for name in ("changed", "reset")]
        for sum_ in self.sums:
            self.code.store(sum_, [0], tirx.const(0, "int32"), 1)

    def changed(self, position: Expr, flag: Expr) -> None:
        """List a tile from the front if ``flag`` is 1."""
        self._put(0, position, flag)

    def reset(self, position: Expr, flag: Expr) -> None:
        """List a tile from the end if ``flag`` is 1."""
        self._put(1, position, flag)

    def _put(self, end: int, position: Expr, flag: Expr) -> None:
        # Written at every tile and overwritten by the next one where there is nothing to do: there
        # is room for more tiles than there are.
        count = self.code.bind(load(self.sums[end], [0], 1), "n")
        slot = from_end(self.ctx, count) if end else count
        self.code.store(self.list, [slot], position, 1)
        self.code.store(self.sums[end], [0], count + flag, 1)

    def fill_up(self) -> None:
        """Repeat the last tile of either end until a gathered tile is full."""
        for end, sum_ in enumerate(self.sums):
            count = self.code.bind(load(sum_, [0], 1), "n")
            with self.code.when(tirx.NE(count, tirx.const(0, "int32"))):
                last = count - 1
                tile = load(self.list, [from_end(self.ctx, last) if end else last], 1)
                more = from_end(self.ctx, last + MOST_GATHERED) if end else count
                self.code.store(self.list, [more], splat(tile, MOST_GATHERED), MOST_GATHERED)

    def counts(self) -> Counts:
        """Note how many tiles there are at either end and return it."""
        code, sparse, buffers = self.code, self.ctx.kernel.sparse, self.ctx.sparse
        assert sparse is not None and buffers is not None
        changed, reset = (code.bind(load(sum_, [0], 1), "total") for sum_ in self.sums)
        for row, value in enumerate((changed, reset)):
            at = [2 * sparse.index + row]
            code.store(buffers.counts, at, load(buffers.counts, at, 1) + value, 1)
        return changed, reset


def from_end(ctx: Context, index: Expr) -> Expr:
    """Return the place of a tile to be reset in the list."""
    assert ctx.kernel.sparse is not None
    return tirx.const(ctx.kernel.sparse.list_size - 1, "int32") - index


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
    beyond = across % RUN > 0 and noted < first + down * across + RUN
    if sparse.everywhere or across < 2 * RUN or beyond:
        with code.loop(across, "tx") as j:
            yield j
        return
    with code.loop(ceil_div(across, RUN), "run") as run:
        start = run * RUN
        # The run of a row's end may go on in the next row: that is looked at in vain.
        before = load(buffers.tiles, [row * across + start + first], RUN)
        before = cast(tirx.NE(reinterpret(before, "int64", 1), tirx.const(0, "int64")), "int32", 1)
        with (
            code.when(tirx.NE(look(row, start) | before, tirx.const(0, "int32"))),
            code.loop(rest(across, start, RUN), "tx") as j,
        ):
            yield start + j


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


def any_changed(ctx: Context, windows: Sequence[Window], mask: int = 0xFF) -> Expr:
    """Return 1 if any pixel of the windows changed (has a bit of ``mask`` in its map), else 0."""
    code = ctx.code
    seen: Any = None
    for window in windows:
        for value in _bytes(code, ctx.buffer(window.map.name), window):
            seen = value if seen is None else seen | value
    if seen is None:
        return tirx.const(0, "int32")
    if mask != 0xFF:
        seen = seen & tirx.const(mask * 0x0101010101010101, "int64")
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

"""Tiles with nothing to do: flags that tell which they are, and the commands that they guard.

A residual kernel's tile has nothing to do where all that it reads of differences is zero: then so
is what it would write. Before its first tile a kernel lets the vector unit look through the maps of
its inputs, one window per tile, and clears the maps of its outputs. All commands of a tile carry
the address of its flag. Loads of constants that many tiles share carry that of the whole frame's,
which the gate finds, so that they need not wait for the kernel before; where there is none, that of
all tiles together.
Nobody writes the outputs of a tile that is skipped. Their maps are zero there, and whoever reads a
tensor beside its map takes pixels at which the map is zero for zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.npu.context import NpuContext, Slots
from resq_tvm.schedules.npu.intrinsics import VECTOR, call, flag
from resq_tvm.schedules.npu.tensors import Rect, Tile
from resq_tvm.schedules.spec import ANYTHING, TensorSpec
from resq_tvm.targets.npu.commands import Step

Spans = tuple[tuple[int, int], ...]  # first and past pixel, for every tile along an axis


@dataclass(frozen=True)
class Look:
    """What the tiles of a grid depend on in one map: its name, or a plane in SRAM; windows."""

    map: str | Tile
    rows: Spans
    columns: Spans


@dataclass(frozen=True)
class Grid:
    """Tiles of a plane, row by row, and what each depends on."""

    down: int
    across: int
    looks: tuple[Look, ...]


class Flags:
    """The flags of a kernel's tiles: one byte for each, and one for all.

    Parameters
    ----------
    ctx : NpuContext
        Unless it says that the kernel skips tiles, no command gets a flag.
    grids : sequence of Grid
        Planes that the kernel goes through, one after the other.
    """

    def __init__(self, ctx: NpuContext, grids: Sequence[Grid]) -> None:
        self.ctx, self.grids, self.skips = ctx, grids, ctx.skips
        self._told = self._byte(ctx.maps_out.get(ANYTHING))
        self._asked = self._byte(ctx.maps_in.get(ANYTHING))
        if not self.skips:
            return
        counts = [grid.down * grid.across for grid in grids]
        self._firsts = [sum(counts[:i]) for i in range(len(counts) + 1)]
        self._flags = ctx.slots("flags", self._firsts[-1] + 1, 1)
        maps = [look.map for grid in grids for look in grid.looks]
        self._whole = {name: self._plane(name) for name in dict.fromkeys(maps) if name in ctx.specs}
        self._cleared = {name: self._plane(name) for name in ctx.out_map_names}
        self._number = len(ctx.programs)
        ctx.programs += [self._program(), (Step("scalar"), Step("write", (0,), index=0))]

    def _byte(self, frame: TensorSpec | None) -> Any:
        """Return what holds the frame's flag; None where it does not stay in SRAM."""
        return self.ctx.base(frame.name) if frame and self.ctx.is_resident(frame.name) else None

    def _plane(self, name: str | Tile) -> Slots | None:
        """Allocate room for a whole map; None where it stays in SRAM."""
        assert isinstance(name, str)
        spec = self.ctx.spec(name)
        if self.ctx.is_resident(name):
            return None
        return self.ctx.slots(f"{name}_whole", spec.h * spec.w, 1)

    def _program(self) -> tuple[Step, ...]:
        """Return the program that finds the flags; operands are the looks' maps, then flags."""
        steps: list[Step] = []
        found: list[int] = []  # of every grid
        operand = 0
        for grid in filter(_has_tiles, self.grids):
            value = -1
            for look in grid.looks:
                table = (("columns", look.columns), ("rows", look.rows))
                steps.append(Step("active", index=operand, table=table))
                operand += 1
                if value >= 0:
                    steps.append(Step("max", (value, len(steps) - 1)))
                value = len(steps) - 1
            if value < 0:
                steps.append(Step("scalar"))
            found.append(len(steps) - 1)
        total = -1
        for value in found:
            steps.append(Step("write", (value,), index=operand))
            operand += 1
            steps.append(Step("any", (value,)))
            if total >= 0:
                steps.append(Step("max", (total, len(steps) - 1)))
            total = len(steps) - 1
        steps.append(Step("write", (total,), index=operand))
        if self._told is not None:
            steps.append(Step("write", (total,), index=operand + 1))
        return tuple(steps)

    def emit(self) -> None:
        """Find the flags and clear the maps of the outputs; comes before the kernel's tiles."""
        if not self.skips:
            return
        ctx = self.ctx
        whole = {name: self._fetch(name, slots) for name, slots in self._whole.items()}
        looks = [look.map for grid in filter(_has_tiles, self.grids) for look in grid.looks]
        operands = [a for m in looks for a in (m if isinstance(m, Tile) else whole[m]).operand()]
        for grid, first in zip(self.grids, self._firsts, strict=False):
            if _has_tiles(grid):
                operands += self._bytes(first, grid.down, grid.across).operand()
        operands += self._bytes(self._firsts[-1], 1, 1).operand()
        if self._told is not None:
            operands += Tile(self._told, 0, 1, 1, 1, 1, 1, "u8").operand()
        down = max(grid.down for grid in self.grids)
        across = max(grid.across for grid in self.grids)
        ctx.code.run(call(VECTOR, self._number, down, across, 1, 0, 0, 0, 0, 0, *operands))
        for name, slots in self._cleared.items():
            spec = ctx.spec(name)
            tile = self._tile(name, slots)
            extents = (spec.h, spec.w, 1)
            ctx.code.run(call(VECTOR, self._number + 1, *extents, 0, 0, 0, 0, 0, *tile.operand()))
            ctx.put(name, Rect(0, 0, *extents[:2], 0, 1), tile)

    def _bytes(self, first: int, down: int, across: int) -> Tile:
        return Tile(self._flags.buffer, first, down, across, 1, across, 1, "u8")

    def _fetch(self, name: str, slots: Slots | None) -> Tile:
        spec = self.ctx.spec(name)
        return self.ctx.fetch(name, Rect(0, 0, spec.h, spec.w, 0, 1), self._tile(name, slots))

    def _tile(self, name: str, slots: Slots | None) -> Tile:
        spec = self.ctx.spec(name)
        base = self.ctx.base(name) if slots is None else slots.buffer
        return Tile(base, 0, spec.h, spec.w, 1, spec.w, 1, "u8")

    @contextmanager
    def any_tile(self) -> Iterator[None]:
        """Nest commands that many tiles need."""
        if not self.skips:
            yield
            return
        of_all = (self._flags.buffer, self._firsts[-1])
        with self.ctx.code.when(flag(*(of_all if self._asked is None else (self._asked, 0)))):
            yield

    @contextmanager
    def tile(self, grid: int, number: Expr) -> Iterator[None]:
        """Nest the commands of a tile of a grid."""
        if not self.skips:
            yield
            return
        with self.ctx.code.when(flag(self._flags.buffer, self._firsts[grid] + number)):
            yield


def _has_tiles(grid: Grid) -> bool:
    return grid.down * grid.across > 0


def tile_spans(total: int, tile: int, reach: tuple[int, int, int], size: int) -> Spans:
    """Return what the tiles of an axis read: first and past pixel of an input.

    Parameters
    ----------
    total, tile : int
        Outputs along the axis, and those of a tile.
    reach : tuple of int
        Stride; first and last pixel that output 0 reads.
    size : int
        Of the input.
    """
    stride, before, behind = reach
    spans = []
    for first in range(0, total, tile):
        last = min(first + tile, total) - 1
        begin = min(max(first * stride + before, 0), size)
        spans.append((begin, max(begin, min(last * stride + behind + 1, size))))
    return tuple(spans)


def elementwise_looks(
    ctx: NpuContext, down: tuple[int, int], across: tuple[int, int],
    stride: tuple[int, int] = (1, 1), offset: tuple[int, int] = (0, 0),
) -> tuple[Look, ...]:  # fmt: skip
    """Return what tiles depend on in tensors that the epilogue loads at the output's pixels.

    Parameters
    ----------
    ctx : NpuContext
    down, across : (int, int)
        Outputs along the axis, and those of a tile.
    stride, offset : (int, int)
        Where they lie in the whole output.
    """
    looks = []
    for name in dict.fromkeys(n.name for n in ctx.kernel.nodes if n.op == "load"):
        seen = ctx.maps_in.get(name)
        if seen is None:
            continue
        if seen.h == seen.w == 1:
            looks.append(Look(seen.name, ((0, 1),) * -(-down[0] // down[1]),
                              ((0, 1),) * -(-across[0] // across[1])))  # fmt: skip
            continue
        rows, columns = (
            tile_spans(*axis, (step, first, first), size)
            for axis, step, first, size in zip(
                (down, across), stride, offset, (seen.h, seen.w), strict=True
            )
        )
        looks.append(Look(seen.name, rows, columns))
    return tuple(looks)

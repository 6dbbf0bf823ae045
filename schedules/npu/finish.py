"""The vector unit's part of a kernel: operands into SRAM, the program, results back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.npu.context import NpuContext, Slots, working_bytes
from resq_tvm.schedules.npu.intrinsics import VECTOR, call
from resq_tvm.schedules.npu.program import epilogue_of
from resq_tvm.schedules.npu.tensors import Rect, Tile, channel_bytes, format_of, in_place

_SMALL = 32  # part of the memory that constants may take to be loaded at once


class Finish:
    """Runs a kernel's epilogue on tiles.

    Parameters
    ----------
    ctx : NpuContext
    tile : (int, int, int)
        Largest tile: rows, columns, channels.
    firsts : list of int
        First channel of every tile along the channels.
    turns : int
        How many tiles there are altogether.
    thresholds : tuple of float
    """

    def __init__(
        self,
        ctx: NpuContext,
        tile: tuple[int, int, int],
        firsts: list[int],
        turns: int,
        thresholds: tuple[float, ...],
    ) -> None:
        self.ctx, self.size = ctx, tile
        self.epilogue = epilogue_of(ctx.kernel, thresholds, len(firsts) == 1)
        self.number = len(ctx.programs)
        ctx.programs.append(self.epilogue.steps)
        rows, columns, channels = tile
        twice = ctx.copies(turns)
        self.slots: dict[str, Slots] = {}
        for name in (*self.epilogue.loads, *self.epilogue.masks, *self.epilogue.writes):
            if ctx.is_resident(name):
                continue
            spec = ctx.spec(name)
            height, width = (1, 1) if self._is_broadcast(name) else (rows, columns)
            size = height * width * int(channel_bytes(spec, min(spec.c, channels)))
            self.slots[name] = ctx.slots(name, size, twice)
        self.constants: Any = None
        self.all_loaded = False
        if self.epilogue.vectors:
            table = self._vectors(channels, firsts)
            self.constants = ctx.constant("v", table)
            self.table_bytes = table.nbytes
            self.keep = table.nbytes <= working_bytes(ctx.npu) // _SMALL
            size = table.nbytes if self.keep else table[0].nbytes
            count = 1 if self.keep or len(firsts) == 1 else 2
            self.vectors = ctx.slots("v", size, count, kept=self.keep)

    def _vectors(self, channels: int, firsts: list[int]) -> Any:
        """Return the per-channel constants, (channel tiles, constants, channels of a tile)."""
        rows = [self.ctx.kernel.vectors[name] for name in self.epilogue.vectors]
        table = np.pad(np.stack(rows).astype(np.float32), ((0, 0), (0, channels)))
        return np.stack([table[:, first : first + channels] for first in firsts])

    @property
    def loads_once(self) -> bool:
        """Whether the constants of all channels are loaded before the first tile."""
        return self.constants is None or self.keep

    def _is_broadcast(self, name: str) -> bool:
        spec, kernel = self.ctx.spec(name), self.ctx.kernel
        return spec.h * spec.w == 1 and kernel.h * kernel.w > 1

    def begin_all(self) -> None:
        """Load the constants of all channels once, if they are small."""
        if self.constants is not None and self.keep and not self.all_loaded:
            self.ctx.load_constant(self.constants, 0, self.vectors, 0, self.table_bytes)
            self.all_loaded = True

    def begin(self, o: Expr, turn: Expr) -> Expr:
        """Load the constants of a tile of channels, if they are not there; say where they are."""
        if self.constants is None:
            return 0
        size = 4 * len(self.epilogue.vectors) * self.size[2]
        if self.keep:
            return o * size
        return self.ctx.load_constant(self.constants, o * size, self.vectors, turn, size)

    def tile(
        self,
        turn: Expr,
        rect: Rect,
        anchor: Tile | None,
        constants: Expr,
        window: tuple[Expr, Expr] = (0, 0),
        mask: Tile | None = None,
        anchor_map: Tile | None = None,
    ) -> None:
        """Run the epilogue on one tile of the output and store its results.

        ``rect`` says which; ``anchor`` is operand 0, ``constants`` what `begin` returned,
        ``window`` the first pixel of operand 0 in the whole input, ``mask`` the changed blocks of a
        gate, ``anchor_map`` the map of operand 0.
        """
        operands: list[Any] = [] if anchor is None else anchor.operand()
        operands += [] if anchor_map is None else anchor_map.operand()
        for name in (*self.epilogue.loads, *self.epilogue.masks):
            operands += self.read(name, turn, rect)
        for i in range(len(self.epilogue.vectors)):
            offset = constants + 4 * i * self.size[2]
            operands += ["f32", self.vectors.buffer, offset, 1, 1, rect.channels, 0, 0, 0, 0]
        if mask is not None:
            operands += mask.operand()
        written = [(name, *self._place(name, turn, rect)) for name in self.epilogue.writes]
        for _, _, tile in written:
            operands += tile.operand()
        self.ctx.code.run(
            call(
                VECTOR, self.number, rect.rows, rect.columns, rect.channels,
                rect.y, rect.x, rect.first, *window, *operands,
            )
        )  # fmt: skip
        for name, area, tile in written:
            self.ctx.put(name, area, tile)

    def read(self, name: str, turn: Expr, rect: Rect) -> list[Any]:
        """Load an input at the output's pixels; return the arguments of its operand."""
        area = self._area(name, rect)
        if self._is_broadcast(name):
            area = Rect(0, 0, 1, 1, area.first, area.channels)
        return self.ctx.fetch(name, area, self._tile(name, turn, area)).operand()

    def _place(self, name: str, turn: Expr, rect: Rect) -> tuple[Rect, Tile]:
        area = self._area(name, rect)
        return area, self._tile(name, turn, area)

    def _area(self, name: str, rect: Rect) -> Rect:
        """Return the part of a tensor that belongs to a part of the output."""
        if self.ctx.spec(name).c > 1:
            return rect
        return replace(rect, first=0, channels=1)

    def _tile(self, name: str, turn: Expr, rect: Rect) -> Tile:
        """Return the tile of SRAM that a rectangle of a tensor goes through."""
        spec = self.ctx.spec(name)
        if self.ctx.is_resident(name):
            return in_place(spec, self.ctx.base(name), rect)
        slots = self.slots[name]
        pixel = int(channel_bytes(spec, min(spec.c, self.size[2])))
        row = self.size[1] * pixel
        return Tile(
            slots.buffer, slots.at(turn), rect.rows, rect.columns, rect.channels,
            row, pixel, format_of(spec),
        )  # fmt: skip

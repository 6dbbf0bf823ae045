"""Bits per pixel: the policy, applied to the codes of a tile as soon as they are stored.

The epilogue stores the finest codes. When all channels of a tile are done, the policy decides from
what each lower choice would lose, notes the bits in the map, and rewrites the codes of pixels that
get fewer. Meaning: `resq_tvm.reference.ops_policy.choose_bits`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from tvm import tirx

from resq_tvm.schedules.code import Expr, cast, constant, index_of, intrinsic, load, splat
from resq_tvm.schedules.context import LANES, Context
from resq_tvm.schedules.energy import Energy
from resq_tvm.schedules.rewrite import KEEP, Rewriter
from resq_tvm.schedules.sparse import Tile
from resq_tvm.schedules.spec import Store

_F = "float32"
_STACKED = 8  # vectors in a buffer on the stack


class Chooser:
    """The policy of one stored code tensor.

    Parameters
    ----------
    ctx : Context
    store : Store
        With a choice.
    """

    def __init__(self, ctx: Context, store: Store) -> None:
        assert store.choice is not None and ctx.kernel.sparse is not None
        self.ctx, self.code, self.choice = ctx, ctx.code, store.choice
        self.spec = ctx.kernel.tensor(store.name)
        self.map = ctx.kernel.sparse.out_maps[store.name]
        # What dropping everything loses tells whether a pixel is zero, whatever the pool.
        lower = list(zip(self.choice.pool[:-1], self.choice.shifts[:-1], strict=True))
        self.candidates = lower if lower[0][0] == 0 else [(0, 0), *lower]
        self.rewriter = Rewriter(ctx, self.spec, lower)
        self._energies: dict[bool, Energy] = {}

    def finish(
        self, tile: Tile, size: tuple[int, int], stride: tuple[int, int], offset: tuple[int, int]
    ) -> None:
        """Decide for all pixels of a tile, note their bits and rewrite their codes if need be."""
        code, (height, width) = self.code, size
        contiguous = stride[1] == 1 and not tile.pixels
        if contiguous not in self._energies:
            self._energies[contiguous] = Energy(self.ctx, self.spec, self.candidates, contiguous)
        energy = self._energies[contiguous]
        if tile.pixels:
            columns = self._anywhere(energy, tile, width, stride, offset)
        else:
            columns = [[] for _ in self.candidates]
            for i in range(height):
                y, x = self._place(tile, i, 0, stride, offset)
                for column, part in zip(columns, energy.row(y, x, stride[1], width), strict=True):
                    column.extend(part)
        totals = [energy.folded(column) for column in columns]
        count = len(totals[0])
        noted = code.allocate(LANES * count, "int32", "bits")
        todo = code.allocate(LANES * count, "int32", "todo")
        work: Any = None
        for n in range(count):
            bits, left = self._decide([t[n] for t in totals], self._owned(energy, tile, size, n))
            code.store(noted, [n * LANES], bits, LANES)
            code.store(todo, [n * LANES], left, LANES)
            work = left if work is None else tirx.Max(work, left)
        for i in range(height):
            self._note(energy, noted, tile, i, width, stride, offset)
        most = tirx.op.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax", work)
        with code.when(tirx.GT(most, tirx.const(KEEP, "int32"))):
            self.rewriter.tile(
                todo,
                size,
                energy.shared,
                lambda i, j: energy.slot(i, j, width),
                lambda i, j: self._place(tile, i, j, stride, offset),
            )

    def _anywhere(
        self,
        energy: Energy,
        tile: Tile,
        count: int,
        stride: tuple[int, int],
        offset: tuple[int, int],
    ) -> list[list[Expr]]:
        """Return per candidate the vectors of gathered pixels, one each."""
        code = self.code
        columns: list[list[Expr]] = [[] for _ in self.candidates]
        for first in range(0, count, _STACKED):
            some = min(_STACKED, count - first)
            held = [code.allocate(LANES * some, "int32", "e") for _ in self.candidates]
            with code.loop(some, "j") as j:
                y, x = self._place(tile, 0, j + first, stride, offset)
                for buffer, (part,) in zip(held, energy.row(y, x, 1, 1), strict=True):
                    code.store(buffer, [j * LANES], part, LANES)
            for column, buffer in zip(columns, held, strict=True):
                column.extend(load(buffer, [n * LANES], LANES) for n in range(some))
        return columns

    def _place(
        self, tile: Tile, i: Expr, j: Expr, stride: tuple[int, int], offset: tuple[int, int]
    ) -> tuple[Expr, Expr]:
        y, x = tile.at(i, j)
        return y * stride[0] + offset[0], x * stride[1] + offset[1]

    def _note(
        self,
        energy: Energy,
        noted: Any,
        tile: Tile,
        i: int,
        width: int,
        stride: tuple[int, int],
        offset: tuple[int, int],
    ) -> None:
        """Store a row of bits to the map."""
        code, buffer = self.code, self.ctx.buffer(self.map.name)
        if stride[1] == 1 and not tile.pixels and _own(tile, i, 0) is None:
            y, x = self._place(tile, i, 0, stride, offset)
            # A map has one channel: pixels of a row are contiguous.
            row = cast(load(noted, [energy.slot(i, 0, width)], width), "uint8", width)
            code.store(buffer, [0, y, 0, x], row, width)
            return
        with code.loop(width, "fx") as j:
            one = cast(load(noted, [energy.slot(i, j, width)], 1), "uint8", 1)
            own = _own(tile, i, j)
            y, x = self._place(tile, i, j, stride, offset)
            with nullcontext() if own is None else code.when(own):
                code.store(buffer, [0, y, x, 0], one, 1)

    def _owned(self, energy: Energy, tile: Tile, size: tuple[int, int], vector: int) -> Expr | None:
        """Return which of 16 slots no tile before has, too; None if none can.

        Codes that have been rewritten must not be decided on again.
        """
        owned: Any = None
        for axis, before in enumerate((tile.before_y, tile.before_x)):
            if isinstance(before, int):
                continue
            places = np.full(LANES, size[axis], np.int32)
            for i, j in np.ndindex(*size):
                slot = energy.slot(i, j, size[1]) - vector * LANES
                if 0 <= slot < LANES:
                    places[slot] = (i, j)[axis]
            mine = load(self.ctx.constant("at", places), [0], LANES) >= splat(before, LANES)
            owned = mine if owned is None else tirx.And(owned, mine)
        return owned

    def _decide(self, totals: list[Any], owned: Expr | None) -> tuple[Expr, Expr]:
        """Return the bits of 16 pixels, and to what bits to rewrite their codes, or `KEEP`."""
        code, ctx = self.code, self.ctx
        pool = self.choice.pool
        own = totals if pool[0] == 0 else totals[1:]
        roots = [code.hold(_roots(t), _F, LANES) for t in own]
        roots.append(constant(0.0, _F, LANES))
        assert ctx.sparse is not None
        limit = load(ctx.sparse.thresholds, [self.choice.threshold], 1)
        threshold = code.bind(splat(limit, LANES), "tau")
        none = constant(0, "int32", LANES)
        finest = constant(pool[-1], "int32", LANES)
        empty = tirx.EQ(totals[0], none)
        bits = tirx.Select(empty, none, finest)
        for i in range(len(own) - 1, -1, -1):
            left = constant(pool[i], "int32", LANES)
            if pool[i]:
                # Nothing is left of a pixel that loses as much as by dropping it.
                left = tirx.Select(tirx.EQ(own[i], totals[0]), none, left)
            enough = roots[i] - roots[i + 1] < threshold
            bits = code.hold(tirx.Select(enough, left, bits), "int32", LANES)
        kept = tirx.Or(tirx.EQ(bits, finest), empty)
        if owned is not None:
            kept = tirx.Or(kept, tirx.Not(owned))
        todo = tirx.Select(kept, constant(KEEP, "int32", LANES), bits)
        return bits, code.hold(todo, "int32", LANES)

    def clear(self, y: Expr, x: Expr) -> None:
        """Drop a pixel after all."""
        self.ctx.code.store(self.ctx.buffer(self.map.name), [0, y, x, 0], tirx.const(0, "uint8"), 1)
        self.rewriter.pixel(y, x, 0, 0)


def _own(tile: Tile, i: Expr, j: Expr) -> Expr | None:
    """Return whether no tile before has pixel (i, j), too; None if none can have it.

    What has been noted must not be noted again: its codes may have been rewritten since.
    """
    conditions = [
        tirx.GE(index_of(index), before)
        for index, before in ((i, tile.before_y), (j, tile.before_x))
        if not isinstance(before, int)
    ]
    if not conditions:
        return None
    return conditions[0] if len(conditions) == 1 else tirx.And(*conditions)


def _roots(totals: Expr) -> Expr:
    return intrinsic("llvm.sqrt", _F, LANES, cast(totals, _F, LANES))

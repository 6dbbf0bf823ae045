"""Integer convolutions: a register tile of pixels × output channels over one long reduction.

Accumulators stay in registers over all taps and input channels; the epilogue reads them there.
Several inputs are several segments of the reduction; a transposed convolution is several phases.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from resq_tvm.schedules.arm.core import ArmCore
from resq_tvm.schedules.arm.runs import CHUNK
from resq_tvm.schedules.arm.ternary import TERNARY, TernaryCore
from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.context import LANES, ChannelBlock, Context, ceil_div
from resq_tvm.schedules.dotcore import DotCore
from resq_tvm.schedules.dots import dot_for
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.packing import densify
from resq_tvm.schedules.prefetch import NextTile, fetch_ahead
from resq_tvm.schedules.reach import convolution, pointwise
from resq_tvm.schedules.sparse import Tile, changed_tiles
from resq_tvm.schedules.spec import Conv, Phase
from resq_tvm.schedules.tiles import overlap

Core = ArmCore | TernaryCore | DotCore


def emit_conv(ctx: Context) -> None:
    """Emit a dense or grouped integer convolution with its epilogue."""
    core: type[Core] = DotCore
    step = dot_for(ctx.target).group
    if ctx.decision.method != "dot":
        core = TernaryCore if ctx.decision.method == TERNARY else ArmCore
        step = CHUNK
    ctx.kernel = densify(ctx.kernel, ctx.decision.tile_o * LANES, step)
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    epilogue = Epilogue(ctx)
    if ctx.kernel.sparse is not None:
        _emit_changed(ctx, core, epilogue)
        return
    for block in ctx.channel_blocks(ctx.decision.tile_o):
        # Phases of equal height go row by row together: they write to the same lines.
        by_rows: dict[int, list[_PhaseBlock]] = {}
        for phase in anchor.phases:
            part = _PhaseBlock(ctx, core, epilogue, phase, block)
            if part.rows > 0 and part.columns > 0:
                by_rows.setdefault(part.rows, []).append(part)
        for rows, parts in by_rows.items():
            _emit_rows(ctx, block, rows, parts)


def _emit_changed(ctx: Context, core: type[Core], epilogue: Epilogue) -> None:
    """Emit the convolution on tiles that changed: all channels of a tile, then the next."""
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    # Phases that read the same pixels share a list of tiles, and write side by side.
    alike: dict[Any, list[Phase]] = {}
    for phase in anchor.phases:
        plane = _plane(ctx, anchor, phase)
        if min(plane) > 0:
            read = frozenset((dy, dx) for _, _, dy, dx in phase.taps)
            alike.setdefault((plane, read), []).append(phase)
    for (plane, _), phases in alike.items():
        _emit_alike(ctx, core, epilogue, plane, phases)


def _emit_alike(
    ctx: Context,
    core: type[Core],
    epilogue: Epilogue,
    plane: tuple[int, int],
    phases: list[Phase],
) -> None:
    """Emit phases whose tiles change together."""
    anchor = ctx.kernel.anchor
    assert isinstance(anchor, Conv)
    shape = (min(ctx.decision.tile_y, plane[0]), min(ctx.decision.tile_x, plane[1]))
    listed, together = shape, 1
    if ctx.decision.gather:
        assert pointwise(ctx.kernel)
        shape = (1, ctx.decision.tile_y * ctx.decision.tile_x)
        listed, together = (1, 1), shape[1]
    blocks = ctx.channel_blocks(ctx.decision.tile_o)
    parts = [
        [_PhaseBlock(ctx, core, epilogue, phase, block) for block in blocks] for phase in phases
    ]

    windows = partial(convolution, ctx.kernel, phases, listed[0])
    lie = (anchor.out_stride, [(phase.oy, phase.ox) for phase in phases])
    finish = epilogue.finisher(*lie)
    ahead = [NextTile(ctx, phase, listed, sum(b.count for b in blocks)) for phase in phases]
    with changed_tiles(ctx, *plane, *listed, windows, *lie, finish, together) as tile:
        for later, own in zip(ahead, parts, strict=True):
            done = 0
            for part in own:
                with ctx.code.loop(part.block.count, "o") as o:
                    if ctx.decision.prefetch:
                        later.fetch(tile, o + done)
                    part.tile(o, tile, *shape, tile.active)
                done += part.block.count


def _plane(ctx: Context, anchor: Conv, phase: Phase) -> tuple[int, int]:
    """Return the rows and columns of a phase."""
    sy, sx = anchor.out_stride
    return ceil_div(ctx.kernel.h - phase.oy, sy), ceil_div(ctx.kernel.w - phase.ox, sx)


def _emit_rows(ctx: Context, block: ChannelBlock, rows: int, parts: list[_PhaseBlock]) -> None:
    """Emit the loops over channel blocks and bands of rows."""
    tile_y = min(ctx.decision.tile_y, rows)
    bands = ceil_div(rows, tile_y)
    outer = 1 if ctx.decision.inner_o else block.count
    with ctx.code.loop(outer * bands, "p", ctx.decision.parallel) as p:
        o, y = (p, 0) if bands == 1 else (0, p) if outer == 1 else (p // bands, p % bands)
        for part in parts:
            part.band(o, overlap(y, tile_y, rows), tile_y)


class _PhaseBlock:
    """One phase of a convolution on one run of output channels."""

    def __init__(
        self,
        ctx: Context,
        core: type[Core],
        epilogue: Epilogue,
        phase: Phase,
        block: ChannelBlock,
    ) -> None:
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv)
        self.ctx, self.code, self.epilogue = ctx, ctx.code, epilogue
        self.anchor, self.phase, self.block = anchor, phase, block
        self.rows, self.columns = _plane(ctx, anchor, phase)
        first = core(ctx, phase, block)
        self.cores: list[Any] = [first]
        if anchor.rest:
            assert not isinstance(first, TernaryCore)  # their codes have more than 2 bits
            self.cores.append(first.over(anchor.rest))

    def band(self, o: Expr, y0: Expr, tile_y: int) -> None:
        """Emit one band of ``tile_y`` rows for channel block ``o``, or for all of them."""
        tile_x = min(self.ctx.decision.tile_x, self.columns)
        inner = self.block.count if self.ctx.decision.inner_o else 1
        with (
            self.code.loop(ceil_div(self.columns, tile_x), "x") as x,
            self.code.loop(inner, "o") as i,
        ):
            block = i if self.ctx.decision.inner_o else o
            self.tile(block, Tile(y0, overlap(x, tile_x, self.columns)), tile_y, tile_x)

    def tile(
        self, o: Expr, tile: Tile, tile_y: int, tile_x: int, active: Expr | None = None
    ) -> None:
        """Emit one tile of channel block ``o``; if not ``active``, on accumulators of zero."""
        lanes = self.block.lanes
        changed = None if active is None else active != 0
        sy, sx = self.anchor.out_stride
        first = (o * len(lanes) + self.block.start) * LANES
        ahead = self.ctx.decision.prefetch * tile_x

        def place(i: int, j: Expr) -> tuple[Expr, Expr]:
            y, x = tile.at(i, j)
            return y * sy + self.phase.oy, x * sx + self.phase.ox

        if ahead and self.ctx.kernel.sparse is None:
            shape = (tile_y, tile_x)
            fetch_ahead(self.ctx, shape, lambda i, j: place(i, j + ahead), first, len(lanes))
        y0, x0 = (0, 0) if tile.pixels else (tile.y, tile.x)
        pixels = tile.pixels or [(i, j) for i in range(tile_y) for j in range(tile_x)]
        sums = []
        for core in self.cores:
            tiles = core.reduce(o, y0, x0, list(pixels), changed)
            sums.append(tiles if core.in_memory else [self.epilogue.spill(t) for t in tiles])
        for v, width in enumerate(lanes):
            own = [tiles[v] for tiles in sums]
            self.epilogue.tile(own, (tile_y, tile_x), place, first + v * LANES, width)

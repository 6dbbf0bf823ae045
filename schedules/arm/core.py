"""The reduction of a convolution's tile on ARM, by way of memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from functools import partial
from typing import Any

from tvm import tirx

from resq_tvm.schedules.arm.depth import limits_of
from resq_tvm.schedules.arm.sums import Sums
from resq_tvm.schedules.code import Expr, constant
from resq_tvm.schedules.context import LANES, ChannelBlock, Context
from resq_tvm.schedules.listing import any_changed
from resq_tvm.schedules.reach import taps
from resq_tvm.schedules.spec import Conv, Phase


class ArmCore:
    """Sums one phase of a convolution on one run of output channels.

    Parameters
    ----------
    ctx : Context
        ``ctx.decision.method`` names the scheme, ``ctx.decision.coarse`` that of tiles whose pixels
        all have few bits.
    phase : Phase
    block : ChannelBlock
        Of one vector of 16 outputs.

    Attributes
    ----------
    in_memory : bool
        Whether `reduce` leaves the sums in memory.

    Raises
    ------
    CompileError
        If a scheme cannot hold this kernel's sums.
    """

    in_memory = True

    def __init__(self, ctx: Context, phase: Phase, block: ChannelBlock) -> None:
        anchor = ctx.kernel.anchor
        assert isinstance(anchor, Conv)
        self.ctx, self.code, self.anchor, self.phase = ctx, ctx.code, anchor, phase
        made = partial(Sums, ctx, phase, block)
        limits = limits_of(anchor)
        self.usual = made(ctx.decision.method, limits)
        self.coarse: Sums | None = None
        if ctx.decision.coarse:
            assert anchor.coarse is not None
            few, shift = (anchor.coarse.limit, limits[1]), anchor.coarse.shift
            self.coarse = made(ctx.decision.coarse, few, shift, self.usual)

    def over(self, names: Sequence[str]) -> ArmCore:
        """Return the same sums, by the same weights, over other inputs."""
        twin = copy(self)
        twin.usual = self.usual.over(names)
        return twin

    def reduce(
        self, o: Expr, y0: Expr, x0: Expr, pixels: list[tuple[int, int]], changed: Expr | None
    ) -> list[Any]:
        """Emit a tile's sums; returns, per vector of outputs, where they are: int32 [pixel][16].

        A tile that has not ``changed`` has sums of zero.
        """
        code = self.code
        spill = code.allocate(LANES * len(pixels), "int32", "spill")
        if changed is not None:
            for n in range(len(pixels)):
                code.store(spill, [n * LANES], constant(0, "int32", LANES), LANES)
        with nullcontext() if changed is None else code.when(changed):
            if self.coarse is None:
                self.usual.tile(o, y0, x0, pixels, spill)
            else:
                fine = code.bind(self._is_fine(y0, x0, pixels), "fine")
                with code.when(tirx.NE(fine, tirx.const(0, "int32"))):
                    self.usual.tile(o, y0, x0, pixels, spill)
                with code.when(tirx.EQ(fine, tirx.const(0, "int32"))):
                    self.coarse.tile(o, y0, x0, pixels, spill)
        return [spill]

    def _is_fine(self, y0: Expr, x0: Expr, pixels: list[tuple[int, int]]) -> Expr:
        """Return 1 if a pixel that the tile reads has the most bits of its pool, else 0."""
        sparse = self.ctx.kernel.sparse
        assert sparse is not None and self.anchor.coarse is not None
        seen = [sparse.maps[name] for name in self.anchor.inputs]
        height, width = (1 + max(p[axis] for p in pixels) for axis in (0, 1))
        windows = taps(seen, self.phase, self.anchor.in_stride, y0, x0, height, width)
        return any_changed(self.ctx, windows, self.anchor.coarse.mask)

"""Bits per pixel: the policy, computed on the codes of a tile while they are in cache.

While the epilogue stores the finest codes, squares of what each lower choice would lose are summed
up per pixel (exactly: integers below 2^24 in float32 lanes). When all channels of a tile are done
the policy decides, and pixels that get fewer bits have their codes rewritten. Meaning:
`resq_tvm.reference.ops_policy.choose_bits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from resq_tvm.schedules.code import Expr, cast, constant, intrinsic, load, vector_type
from resq_tvm.schedules.context import LANES, Context, at, pad_channels
from resq_tvm.schedules.spec import Store
from resq_tvm.schedules.vecmath import MAGIC, clamp, fence

_F = "float32"


def narrow(codes: Expr, bits: int, shift: int, lanes: int) -> Expr:
    """Return float32 codes rounded to ``bits`` bits of step ``2**shift``; 0 bits give zero."""
    if bits == 0:
        return constant(0.0, _F, lanes)
    limit = (1 << (bits - 1)) - 1
    step = float(1 << shift)
    scaled = clamp(codes * constant(1 / step, _F, lanes), -limit, limit, lanes)
    # The fence keeps TVM's simplifier from cancelling MAGIC.
    rounded = fence(scaled + constant(MAGIC, _F, lanes), lanes) - constant(MAGIC, _F, lanes)
    return rounded * constant(step, _F, lanes)


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
        self.mask: Any = None
        if ctx.kernel.c % LANES:
            valid = pad_channels(np.ones(ctx.kernel.c, np.float32), ctx.vectors)
            self.mask = ctx.constant("m", valid)
        self.sums: list[Any] = []

    def begin(self, pixels: int) -> None:
        """Allocate and clear the sums of a tile."""
        self.sums = [self.code.allocate(LANES * pixels, _F, "e") for _ in self.candidates]
        for buffer in self.sums:
            with self.code.loop(pixels, "s") as s:
                self.code.store(buffer, [s * LANES], constant(0.0, _F, LANES), LANES)

    def add(self, codes: Expr, slot: Expr, c: Expr, lanes: int) -> None:
        """Add the channels ``c … c + lanes`` of the tile's pixel ``slot``; codes are int32."""
        code = self.code
        fine = code.bind(cast(codes, _F, lanes))
        if self.mask is not None:
            fine = code.bind(fine * load(self.mask, [c], lanes))
        for (bits, shift), buffer in zip(self.candidates, self.sums, strict=True):
            lost = fine if bits == 0 else code.bind(fine - narrow(fine, bits, shift, lanes))
            index = [slot * LANES]
            code.store(buffer, index, load(buffer, index, lanes) + lost * lost, lanes)

    def finish(self, y: Expr, x: Expr, slot: Expr) -> None:
        """Decide at one pixel, note its bits in the map and rewrite its codes if need be."""
        code = self.code
        totals = [code.bind(self._total(buffer, slot), "e2") for buffer in self.sums]
        bits = code.bind(self._decide(totals), "bits")
        code.store(self.ctx.buffer(self.map.name), [0, y, x, 0], cast(bits, "uint8", 1), 1)
        nonzero = tirx.NE(totals[0], tirx.const(0, "int32"))
        with code.when(tirx.And(nonzero, tirx.EQ(bits, tirx.const(0, "int32")))):
            self._rewrite(y, x, 0, 0)
        for width, shift in zip(self.choice.pool[:-1], self.choice.shifts[:-1], strict=True):
            if width:
                with code.when(tirx.EQ(bits, tirx.const(width, "int32"))):
                    self._rewrite(y, x, width, shift)

    def _total(self, buffer: Any, slot: Expr) -> Expr:
        lanes = cast(load(buffer, [slot * LANES], LANES), "int32", LANES)
        return tirx.op.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", lanes)

    def _decide(self, totals: list[Any]) -> Expr:
        """Return the pixel's bits from the squared losses of the candidates."""
        code, ctx = self.code, self.ctx
        pool = self.choice.pool
        own = totals if pool[0] == 0 else totals[1:]
        roots = [code.bind(_root(t), "r") for t in own]
        roots.append(tirx.const(0.0, _F))
        assert ctx.sparse is not None
        threshold = code.bind(load(ctx.sparse.thresholds, [self.choice.threshold], 1), "tau")
        none = tirx.const(0, "int32")
        finest = tirx.Select(tirx.EQ(totals[0], none), none, tirx.const(pool[-1], "int32"))
        bits: Expr = finest
        for i in range(len(own) - 1, -1, -1):
            left = tirx.const(pool[i], "int32")
            if pool[i]:
                # Nothing is left of a pixel that loses as much as by dropping it.
                left = tirx.Select(tirx.EQ(own[i], totals[0]), none, left)
            bits = tirx.Select(roots[i] - roots[i + 1] < threshold, left, bits)
        return bits

    def _rewrite(self, y: Expr, x: Expr, bits: int, shift: int) -> None:
        ctx, code, spec = self.ctx, self.code, self.spec
        zero = ctx.kernel.code.zero_point
        buffer = ctx.buffer(spec.name)
        for block in ctx.channel_blocks(1):
            (lanes,) = block.lanes
            with code.loop(block.count, "rc") as i:
                index = at(spec, y, x, (i + block.start) * LANES)
                if bits == 0:
                    code.store(buffer, index, constant(zero, spec.dtype, lanes), lanes)
                    continue
                stored = cast(load(buffer, index, lanes), "int32", lanes)
                fine = cast(stored - constant(zero, "int32", lanes), _F, lanes)
                coarse = cast(narrow(code.bind(fine), bits, shift, lanes), "int32", lanes)
                value = coarse + constant(zero, "int32", lanes)
                code.store(buffer, index, cast(value, spec.dtype, lanes), lanes)


def _root(total: Expr) -> Expr:
    return intrinsic("llvm.sqrt", _F, 1, tirx.Cast(vector_type(_F, 1), total))

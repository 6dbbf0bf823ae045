"""The gate of a frame: which blocks changed since the keyframe, beyond noise.

Per block, the squares of the differences (rounded to multiples of the gate's step, clamped) are
summed up as integers; blocks above the threshold and their neighbours count as changed. Meaning:
`resq_tvm.reference.ops_policy.changed_pixels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from resq_tvm.schedules.code import Expr, cast, constant, index_of, load, splat
from resq_tvm.schedules.context import LANES, Context, ceil_div
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.listing import mark
from resq_tvm.schedules.packed import PACK, PackedEpilogue
from resq_tvm.schedules.prefetch import LINE, fetch
from resq_tvm.schedules.tiles import rest
from resq_tvm.schedules.vecmath import MAGIC, clamp, fence

_F = "float32"
_CLAMP = 127
_MOST = 2.0**31 - 128  # the largest float32 that is an int32; more than any block has


def emit_gate(ctx: Context, epilogue: Epilogue) -> None:
    """Write the gate's map; comes before the kernel's tiles."""
    sparse, code = ctx.kernel.sparse, ctx.code
    assert sparse is not None and ctx.kernel.gate is not None and ctx.sparse is not None
    size, reach = ctx.kernel.gate.block, ctx.kernel.gate.reach
    down, across = ceil_div(ctx.kernel.h, size), ceil_div(ctx.kernel.w, size)
    # The list of tiles is not in use yet: block energies lie there, then flags.
    scratch = ctx.sparse.list
    limit = code.bind(load(ctx.sparse.thresholds, [ctx.kernel.gate.threshold], 1))
    # An integer is above a threshold if it is above the threshold's floor.
    limit = tirx.Min(limit, tirx.const(_MOST, _F))
    limit = code.bind(cast(limit, "int32", 1), "limit")
    energy = _Energy(ctx, epilogue)
    with code.loop(down, "by") as i, code.loop(across, "bx") as j:
        total = energy.block(i * size, j * size)
        flag = cast(tirx.GT(total, limit), "int32", 1)
        code.store(scratch, [i * across + j], flag, 1)
    with code.loop(down, "by") as i, code.loop(across, "bx") as j:
        changed: Any = tirx.const(0, "int32")
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                y, x = _clamped(i, dy, down), _clamped(j, dx, across)
                changed = changed | load(scratch, [y * across + x], 1)
        _mark_block(ctx, i * size, j * size, code.bind(changed, "changed"))


def _clamped(index: Expr, step: int, extent: int) -> Expr:
    moved = index + step
    if isinstance(moved, int):
        return min(max(moved, 0), extent - 1)
    return tirx.Max(tirx.Min(moved, tirx.const(extent - 1, "int32")), tirx.const(0, "int32"))


def _mark_block(ctx: Context, y: Expr, x: Expr, changed: Expr) -> None:
    sparse, code, kernel = ctx.kernel.sparse, ctx.code, ctx.kernel
    assert sparse is not None and kernel.gate is not None and sparse.gate_map is not None
    size, seen = kernel.gate.block, sparse.gate_map
    with code.loop(rest(kernel.h, y, size), "r") as r:
        if kernel.w % size == 0:
            mark(ctx, seen, y + r, x, size, changed)
        else:
            with code.loop(rest(kernel.w, x, size), "q") as q:
                mark(ctx, seen, y + r, x + q, 1, changed)


class _Energy:
    """Sums of squares of a block's differences, four pixels or one vector at a time."""

    def __init__(self, ctx: Context, epilogue: Epilogue) -> None:
        assert ctx.kernel.gate is not None
        self.ctx, self.epilogue, self.gate = ctx, epilogue, ctx.kernel.gate
        (index,) = [i for i, n in enumerate(ctx.kernel.nodes) if n.op == "gate"]
        self.args = ctx.kernel.nodes[index].args
        self.wanted = epilogue.needed(list(self.args))
        self.packed = isinstance(epilogue, PackedEpilogue)
        nodes = (ctx.kernel.nodes[i] for i in self.wanted)
        self.loaded = [ctx.kernel.tensor(n.name) for n in nodes if n.op == "load"]
        self.flat = self._is_flat()
        lanes = np.arange(LANES)
        if self.flat:
            return
        if self.packed:
            self.mask = ctx.constant("m", (lanes % PACK < ctx.kernel.c).astype(np.float32))
            self.pixel = ctx.constant("px", (lanes // PACK).astype(np.int32))
        else:
            valid = np.arange(ctx.vectors * LANES) < ctx.kernel.c
            self.mask = ctx.constant("m", valid.astype(np.float32))

    def _is_flat(self) -> bool:
        """Whether a block's row is one run of values in memory, all of them treated alike."""
        kernel = self.ctx.kernel
        nodes = [kernel.nodes[i] for i in self.wanted]
        return (
            self.packed
            and kernel.w % self.gate.block == 0
            and all(t.c_phys == t.c == kernel.c for t in self.loaded)
            and all(n.op != "vector" for n in nodes)
        )

    def block(self, y0: Expr, x0: Expr) -> Expr:
        """Return a block's energy (int32)."""
        code, kernel, size = self.ctx.code, self.ctx.kernel, self.gate.block
        # A sum per vector of a row and number of lanes: what is read as it was written, and does
        # not wait for the vector before, stays in a register.
        extent = size * kernel.c if self.flat else LANES
        widths = [min(LANES, extent - start) for start in range(0, extent, LANES)]
        sums = [code.allocate(lanes, _F, "e") for lanes in widths]
        for acc, lanes in zip(sums, widths, strict=True):
            code.store(acc, [0], constant(0.0, _F, lanes), lanes)
        acc = sums[0]
        with code.loop(rest(kernel.h, y0, size), "r") as r:
            if self.flat:
                self._fetch(y0 + r + size, x0)
                for n, lanes in enumerate(widths):
                    self._add(sums[n], y0 + r, x0, n * LANES, lanes, None)
            elif self.packed:
                for q in range(0, size, PACK):
                    self._four(acc, y0 + r, x0 + q, min(PACK, size - q))
            else:
                with code.loop(rest(kernel.w, x0, size), "q") as q:
                    self._pixel(acc, y0 + r, x0 + q)
        total: Any = tirx.const(0, "int32")
        for acc, lanes in zip(sums, widths, strict=True):
            whole = cast(load(acc, [0], lanes), "int32", lanes)
            total = total + tirx.op.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", whole)
        return code.bind(total, "energy")

    def _fetch(self, y: Expr, x: Expr) -> None:
        """Fetch a row of a block: the processor does not follow as many rows at once."""
        for spec in self.loaded:
            bytes_each = np.dtype(spec.dtype).itemsize
            for start in range(0, self.gate.block * spec.c_phys, LINE // bytes_each):
                fetch(self.ctx, spec, y, x, start, 0)

    def _four(self, acc: Any, y: Expr, x: Expr, count: int) -> None:
        """Add ``count`` of four pixels; at a row's end only those that no vector before had."""
        code, kernel = self.ctx.code, self.ctx.kernel
        mask = load(self.mask, [0], LANES)
        if kernel.w % PACK == 0 and self.gate.block % PACK == 0:
            with code.when(index_of(x) < kernel.w):
                self._add(acc, y, x, 0, LANES, mask)
            return
        position = index_of(x)
        with code.when(position < kernel.w):
            start = code.bind(tirx.Min(position, tirx.const(kernel.w - PACK, "int32")))
            pixel = load(self.pixel, [0], LANES)
            fresh = pixel >= splat(position - start, LANES)
            if count < PACK:
                fresh = tirx.And(fresh, pixel < splat(position - start + count, LANES))
            mask = tirx.Select(fresh, mask, constant(0.0, _F, LANES))
            self._add(acc, y, start, 0, LANES, mask)

    def _pixel(self, acc: Any, y: Expr, x: Expr) -> None:
        for block in self.ctx.channel_blocks(1):
            (lanes,) = block.lanes
            with self.ctx.code.loop(block.count, "c") as i:
                c = (i + block.start) * LANES
                self._add(acc, y, x, c, lanes, load(self.mask, [c], lanes))

    def _add(self, acc: Any, y: Expr, x: Expr, c: Expr, lanes: int, mask: Expr | None) -> None:
        code = self.ctx.code
        if isinstance(self.epilogue, PackedEpilogue):
            self.epilogue.spread = not self.flat
        self.epilogue.channels(c, lanes)
        values = self.epilogue.evaluate(self.wanted, None, y, x, c, lanes)
        if isinstance(self.epilogue, PackedEpilogue):
            self.epilogue.spread = True
        new, key = (values[a] for a in self.args)
        scaled = fence(tirx.Sub(new, key) * constant(self.gate.reciprocal, _F, lanes), lanes)
        clamped = clamp(scaled, -_CLAMP, _CLAMP, lanes)
        shifted = fence(clamped + constant(MAGIC, _F, lanes), lanes)
        rounded = shifted - constant(MAGIC, _F, lanes)
        codes = code.bind(rounded if mask is None else rounded * mask)
        code.store(acc, [0], load(acc, [0], lanes) + codes * codes, lanes)

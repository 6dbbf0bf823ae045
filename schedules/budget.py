"""The budget of tiles: of all blocks that still hold codes, only the strongest are kept.

Runs after the policy has decided on every pixel. Meaning:
`resq_tvm.reference.ops_policy.strongest_blocks`.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from resq_tvm.schedules.choose import Chooser
from resq_tvm.schedules.code import Expr, cast, load
from resq_tvm.schedules.context import Context, ceil_div
from resq_tvm.schedules.energy import Energy
from resq_tvm.schedules.listing import any_changed
from resq_tvm.schedules.reach import Window
from resq_tvm.schedules.spec import BUDGET_BLOCK, TensorSpec
from resq_tvm.schedules.tiles import rest

_OCTAVES = 33  # nothing, or 1 + the position of the highest bit


def emit_budget(ctx: Context, chooser: Chooser) -> None:
    """Drop the weakest blocks of a code tensor beyond its choice's ``keep``."""
    code, spec, keep = ctx.code, chooser.spec, chooser.choice.keep
    down, across = ceil_div(spec.h, BUDGET_BLOCK), ceil_div(spec.w, BUDGET_BLOCK)
    if not 0 < keep < down * across:
        return
    assert ctx.sparse is not None
    octaves = ctx.sparse.list  # the list of tiles has served
    histogram = code.allocate(_OCTAVES, "int32", "hist")
    one, zero = tirx.const(1, "int32"), tirx.const(0, "int32")
    with code.loop(_OCTAVES, "o") as o:
        code.store(histogram, [o], zero, 1)
    energy = Energy(ctx, spec, [(0, 0)], contiguous=True)
    with code.loop(down, "by") as i, code.loop(across, "bx") as j:
        index = [i * across + j]
        code.store(octaves, index, zero, 1)
        y, x = i * BUDGET_BLOCK, j * BUDGET_BLOCK
        rows = tuple(y + r for r in range(BUDGET_BLOCK))
        seen = any_changed(ctx, [Window(chooser.map, rows, x, BUDGET_BLOCK)])
        with code.when(tirx.NE(seen, zero)):
            octave = code.bind(_octave(_block_energy(ctx, energy, spec, y, x)), "octave")
            code.store(octaves, index, octave, 1)
            code.store(histogram, [octave], load(histogram, [octave], 1) + one, 1)
    cut = code.allocate(2, "int32", "cut")  # the octave that is kept in part, and how many of it
    code.store(cut, [0], zero, 1)
    code.store(cut, [1], tirx.const(keep, "int32"), 1)
    with code.loop(_OCTAVES - 1, "o") as o:
        octave = code.bind(tirx.const(_OCTAVES - 1, "int32") - o)
        left = code.bind(load(cut, [1], 1))
        count = code.bind(load(histogram, [octave], 1))
        open_ = tirx.EQ(load(cut, [0], 1), zero)
        with code.when(open_):
            code.store(cut, [0], tirx.Select(count > left, octave, zero), 1)
            code.store(cut, [1], tirx.Select(count > left, left, left - count), 1)
    with (
        code.when(tirx.NE(load(cut, [0], 1), zero)),
        code.loop(down, "by") as i,
        code.loop(across, "bx") as j,
    ):
        octave = code.bind(load(octaves, [i * across + j], 1))
        limit, left = code.bind(load(cut, [0], 1)), code.bind(load(cut, [1], 1))
        partly = tirx.And(tirx.EQ(octave, limit), left > zero)
        kept = code.bind(cast(tirx.Or(octave > limit, partly), "int32", 1), "kept")
        code.store(cut, [1], left - cast(partly, "int32", 1), 1)
        with code.when(tirx.And(tirx.EQ(kept, zero), octave > zero)):
            _drop(ctx, chooser, i * BUDGET_BLOCK, j * BUDGET_BLOCK)


def _octave(energy: Expr) -> Expr:
    """Return 1 + the position of the highest bit of a positive integer; 0 of zero."""
    leading = tirx.op.call_llvm_pure_intrin("int32", "llvm.ctlz", energy, tirx.const(False, "bool"))
    return tirx.const(32, "int32") - leading


def _block_energy(ctx: Context, energy: Energy, spec: TensorSpec, y: Expr, x: Expr) -> Expr:
    code = ctx.code
    total = code.allocate(1, "int32", "total")
    code.store(total, [0], tirx.const(0, "int32"), 1)
    with (
        code.loop(rest(spec.h, y, BUDGET_BLOCK), "r") as r,
        code.loop(rest(spec.w, x, BUDGET_BLOCK), "q") as q,
    ):
        for vector in energy.row(y + r, x + q, 1, 1)[0]:
            lanes: Any = tirx.op.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", vector)
            code.store(total, [0], load(total, [0], 1) + lanes, 1)
    return code.bind(load(total, [0], 1), "energy")


def _drop(ctx: Context, chooser: Chooser, y: Expr, x: Expr) -> None:
    code, spec = ctx.code, chooser.spec
    with (
        code.loop(rest(spec.h, y, BUDGET_BLOCK), "r") as r,
        code.loop(rest(spec.w, x, BUDGET_BLOCK), "q") as q,
    ):
        chooser.clear(y + r, x + q)

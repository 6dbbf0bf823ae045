"""The gate of a frame on the vector unit: block energies, changed blocks, then the kernel itself.

Meaning: `resq_tvm.reference.ops_policy.changed_pixels`. The planes of blocks are small and stay in
SRAM; the frame and its keyframe are read once, and once more where something changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.npu.context import NpuContext
from resq_tvm.schedules.npu.finish import Finish
from resq_tvm.schedules.npu.intrinsics import VECTOR, call, extent
from resq_tvm.schedules.npu.program import changed_program, energy_program
from resq_tvm.schedules.npu.skip import Flags, Grid, Look, tile_spans
from resq_tvm.schedules.npu.tensors import Rect, Tile


def plan_gate(ctx: NpuContext, thresholds: tuple[float, ...]) -> Callable[[], None]:
    """Allocate the tiles of a kernel with a gate; return what emits it."""
    kernel, code = ctx.kernel, ctx.code
    gate = kernel.gate
    assert gate is not None
    size = gate.block
    rows = _whole_blocks(ctx.decision.tile_y, kernel.h, size)
    columns = _whole_blocks(ctx.decision.tile_x, kernel.w, size)
    down, across = ceil_div(kernel.h, rows), ceil_div(kernel.w, columns)
    blocks_y, blocks_x = ceil_div(kernel.h, size), ceil_div(kernel.w, size)
    finish = Finish(ctx, (rows, columns, kernel.c), [0], down * across, thresholds)
    energies = ctx.slots("energy", 4 * blocks_y * blocks_x, 1)
    changed = ctx.slots("changed", blocks_y * blocks_x, 1)
    mask = Tile(changed.buffer, 0, blocks_y, blocks_x, 1, blocks_x, 1, "u8")
    spans = (
        tile_spans(blocks, ceil_div(tile, size), (1, 0, 0), blocks)
        for blocks, tile in ((blocks_y, rows), (blocks_x, columns))
    )
    flags = Flags(ctx, [Grid(down, across, (Look(mask, *spans),))])
    sums, loads = energy_program(kernel)
    first = len(ctx.programs)
    ctx.programs += [sums, changed_program(gate, thresholds[gate.threshold])]

    def tiles(run: Callable[[Expr, Rect], None]) -> None:
        with code.loop(down, "y") as y, code.loop(across, "x") as x:
            height, width = extent(rows, kernel.h, y), extent(columns, kernel.w, x)
            rect = Rect(y * rows, x * columns, height, width, 0, kernel.c)
            run(y * across + x, rect)

    def energy(turn: Expr, rect: Rect) -> None:
        offset = 4 * (rect.y // size * blocks_x + rect.x // size)
        height, width = (rect.rows + size - 1) // size, (rect.columns + size - 1) // size
        written = Tile(energies.buffer, offset, height, width, 1, 4 * blocks_x, 4, "f32")
        operands: list[Any] = [a for name in loads for a in finish.read(name, turn, rect)]
        code.run(
            call(
                VECTOR, first, rect.rows, rect.columns, kernel.c, rect.y, rect.x, 0, 0, 0,
                *operands, *written.operand(),
            )
        )  # fmt: skip

    def emit() -> None:
        finish.begin_all()
        tiles(energy)
        whole = Tile(energies.buffer, 0, blocks_y, blocks_x, 1, 4 * blocks_x, 4, "f32")
        code.run(
            call(
                VECTOR, first + 1, blocks_y, blocks_x, 1, 0, 0, 0, 0, 0,
                *whole.operand(), *mask.operand(),
            )
        )  # fmt: skip
        flags.emit()
        constants = finish.begin(0, 0)

        def select(turn: Expr, rect: Rect) -> None:
            with flags.tile(0, turn):
                finish.tile(turn, rect, None, constants, mask=mask)

        tiles(select)

    return emit


def _whole_blocks(tile: int, size: int, block: int) -> int:
    """Return a tile's extent in whole blocks, or all of it."""
    return min(ceil_div(tile, block) * block, size)

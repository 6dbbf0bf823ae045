"""Which tiles a kernel of an NPU gets before anything was tuned."""

from __future__ import annotations

import math
from dataclasses import replace

from resq_tvm.errors import CompileError
from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.context import skips_tiles, working_bytes
from resq_tvm.schedules.npu.emit import Footprint, fits, footprint
from resq_tvm.schedules.npu.tensors import format_of, tensor_bytes
from resq_tvm.schedules.spec import Conv, FusedKernel, phase_plane
from resq_tvm.targets.npu.commands import format_bits
from resq_tvm.targets.npu.description import Npu
from resq_tvm.targets.preset import Target

MATRIX, VECTOR = "matrix", "vector"  # methods
_TILES = 4  # of a plane at least, so that transfers overlap with work
_BLOCKS = 4  # of output channels at most
# Tiles that can be skipped: what one takes at least, so that its commands cost little beside it,
# and how many there are at most, so that the stream stays short.
_WORTH_A_TEST = 300  # cycles
_MOST_TILES = 128
_PASSES = 2  # of the vector unit through a tile, about


def decide_npu(kernel: FusedKernel, target: Target) -> Decision:
    """Return the largest tiles that fit: whole rows first, then columns, then channels.

    Kernels that skip tiles get small ones.

    Parameters
    ----------
    kernel : FusedKernel
    target : Target
        An NPU.

    Raises
    ------
    CompileError
        If not even the smallest tile fits.
    """
    assert target.npu is not None
    npu, anchor = target.npu, kernel.anchor
    blocks = ceil_div(kernel.c, npu.matrix.outputs)
    if isinstance(anchor, Conv):
        rows, columns = phase_plane(kernel, anchor)
        weights = anchor.weight.size  # bytes at 8 bits
        decision = Decision(
            "largest", MATRIX, ceil_div(rows, _TILES), columns, min(blocks, _BLOCKS),
            inner_o=weights <= working_bytes(npu) // 4, parallel=False,
        )  # fmt: skip
    else:
        decision = Decision(
            "largest", VECTOR, ceil_div(kernel.h, _TILES), kernel.w, blocks, parallel=False
        )
    if skips_tiles(kernel):
        decision = _small_tiles(kernel, decision, npu)
    smallest = npu.matrix.pixels
    while not fits(kernel, decision, target):
        if decision.tile_y > 1:
            decision = replace(decision, tile_y=ceil_div(decision.tile_y, 2))
        elif decision.tile_x > smallest:
            decision = replace(decision, tile_x=ceil_div(decision.tile_x, 2))
        elif decision.inner_o:
            decision = replace(decision, inner_o=False)
        elif decision.tile_o > 1:
            decision = replace(decision, tile_o=ceil_div(decision.tile_o, 2))
        elif decision.tile_x > 1:
            decision = replace(decision, tile_x=ceil_div(decision.tile_x, 2))
        else:
            raise CompileError(
                f"kernel {kernel.name} ({kernel.h} x {kernel.w} x {kernel.c}): its smallest tile "
                f"does not fit {npu.name} ({working_bytes(npu)} bytes of SRAM for a kernel, "
                f"{npu.matrix.accumulator_bytes} of accumulators); use a machine with more memory"
            )
    return decision


def _small_tiles(kernel: FusedKernel, decision: Decision, npu: Npu) -> Decision:
    """Return tiles that are as small as pays where those with nothing to do are skipped."""
    moved = sum(tensor_bytes(s) for s in (*kernel.inputs, *kernel.outputs) if s.memory != "sram")
    pixels = kernel.h * kernel.w
    transfers = moved / npu.bytes_per_cycle / pixels  # cycles
    arithmetic = _PASSES * kernel.c / npu.vector.lanes
    wanted = max(_WORTH_A_TEST / max(transfers, arithmetic), pixels / _MOST_TILES)
    side = 1 << max(0, round(math.log2(wanted) / 2))
    columns = min(max(side, npu.matrix.pixels), decision.tile_x)
    rows = min(max(1, round(wanted / columns)), decision.tile_y)
    return replace(decision, tile_y=rows, tile_x=columns)


def decide_bands(
    kernel: FusedKernel, rows: int, target: Target, wanted: Decision | None = None
) -> tuple[Decision, Footprint] | None:
    """Return a decision with tiles of so many rows and what it takes; None if none fits.

    Parameters
    ----------
    kernel : FusedKernel
    rows : int
    target : Target
        An NPU.
    wanted : Decision, optional
        Columns and channels of a tile are at most its own.
    """
    assert target.npu is not None
    blocks = ceil_div(kernel.c, target.npu.matrix.outputs)
    is_conv = isinstance(kernel.anchor, Conv)
    decision = Decision(
        "bands", MATRIX if is_conv else VECTOR, rows, kernel.w,
        min(blocks, _BLOCKS) if is_conv else blocks, inner_o=True, parallel=False,
    )  # fmt: skip
    narrowest = _least_blocks(kernel, target.npu) if is_conv else blocks
    if wanted is not None:
        tile_x, tile_o = min(wanted.tile_x, kernel.w), min(wanted.tile_o, blocks)
        decision = replace(decision, tile_x=tile_x, tile_o=tile_o if is_conv else blocks)
    while True:
        taken = footprint(kernel, decision, target)
        if taken is not None:
            return decision, taken
        if decision.tile_o > narrowest:
            decision = replace(decision, tile_o=ceil_div(decision.tile_o, 2))
        elif decision.tile_x > target.npu.matrix.pixels:
            decision = replace(decision, tile_x=ceil_div(decision.tile_x, 2))
        elif is_conv and decision.tile_o > 1:
            decision = replace(decision, tile_o=ceil_div(decision.tile_o, 2))
        else:
            return None


def _least_blocks(kernel: FusedKernel, npu: Npu) -> int:
    """Return the blocks of output channels of which a pixel is a whole burst of the DRAM."""
    least = 1
    for spec in (*kernel.inputs, *kernel.outputs):
        if spec.memory != "sram" and spec.c == kernel.c:
            channels = ceil_div(8 * npu.dram.burst_bytes, format_bits(format_of(spec)))
            least = max(least, ceil_div(channels, npu.matrix.outputs))
    return min(least, ceil_div(kernel.c, npu.matrix.outputs))

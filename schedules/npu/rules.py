"""Which tiles a kernel of an NPU gets before anything was tuned."""

from __future__ import annotations

from dataclasses import replace

from resq_tvm.errors import CompileError
from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.context import working_bytes
from resq_tvm.schedules.npu.emit import fits
from resq_tvm.schedules.spec import Conv, FusedKernel, phase_plane
from resq_tvm.targets.preset import Target

MATRIX, VECTOR = "matrix", "vector"  # methods
_TILES = 4  # of a plane at least, so that transfers overlap with work
_BLOCKS = 4  # of output channels at most


def decide_npu(kernel: FusedKernel, target: Target) -> Decision:
    """Return the largest tiles that fit: whole rows first, then columns, then channels.

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

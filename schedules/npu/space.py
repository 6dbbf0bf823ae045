"""What may be decided about the tiles of an NPU's kernel."""

from __future__ import annotations

from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.spec import Conv, FusedKernel, phase_plane
from resq_tvm.targets.npu.description import Npu


def npu_knobs(kernel: FusedKernel, npu: Npu) -> dict[str, tuple[int, ...]]:
    """Return field of `Decision` → values, for a convolution; nothing for other kernels.

    Parameters
    ----------
    kernel : FusedKernel
    npu : Npu
    """
    anchor = kernel.anchor
    if not isinstance(anchor, Conv):
        return {}
    rows, columns = phase_plane(kernel, anchor)
    blocks = ceil_div(kernel.c, npu.matrix.outputs)
    return {
        "tile_y": _parts(rows, 1, 24),
        "tile_x": _parts(columns, npu.matrix.pixels, 8),
        "tile_o": _parts(blocks, 1, 8),
        "inner_o": (0, 1) if blocks > 1 else (1,),
        "parallel": (0,),  # there are no threads
    }


def _parts(extent: int, least: int, most: int) -> tuple[int, ...]:
    """Return tile sizes that cut an extent into 1, 2, 3, … equal parts, and then powers of 2."""
    counts = [*range(1, most + 1), *(most << n for n in range(1, 8))]
    sizes = {ceil_div(extent, n) for n in counts}
    return tuple(sorted(s for s in sizes if s >= min(least, extent)))

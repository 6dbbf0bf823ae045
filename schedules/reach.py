"""Which input pixels an output tile depends on: the windows of the inputs' maps to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.spec import Conv, FloatConv, FusedKernel, Phase, Pool, TensorSpec


@dataclass(frozen=True)
class Window:
    """Rows and one run of columns of a map.

    Positions outside the map are moved inside: looking at more than the receptive field costs
    time, never correctness.
    """

    map: TensorSpec
    rows: tuple[Expr, ...]
    column: Expr
    width: int


def elementwise(kernel: FusedKernel, y: Expr, x: Expr, height: int, width: int) -> list[Window]:
    """Return the windows of the tensors that the epilogue loads at the tile's own pixels."""
    sparse = kernel.sparse
    assert sparse is not None
    loaded = dict.fromkeys(n.name for n in kernel.nodes if n.op == "load")
    windows = []
    for name in loaded:
        if name not in sparse.maps:
            continue
        seen = sparse.maps[name]
        if seen.h == 1 and seen.w == 1:
            windows.append(Window(seen, (0,), 0, 1))
        else:
            windows.append(Window(seen, tuple(y + i for i in range(height)), x, width))
    if sparse.gate_map is not None:
        windows.append(Window(sparse.gate_map, tuple(y + i for i in range(height)), x, width))
    return windows


def convolution(
    kernel: FusedKernel, phases: Sequence[Phase], height: int, y: Expr, x: Expr, width: int
) -> list[Window]:
    """Return the windows of a convolution's tile, those of its epilogue included.

    Parameters
    ----------
    kernel : FusedKernel
    phases : sequence of Phase
        Whose tile it is; several read the same input pixels.
    height, y, x, width
        The tile, in the phases' own rows and columns.
    """
    anchor, sparse = kernel.anchor, kernel.sparse
    assert isinstance(anchor, Conv | FloatConv) and sparse is not None
    seen = [sparse.maps[name] for name in anchor.inputs if name in sparse.maps]
    found = taps(seen, phases[0], anchor.in_stride, y, x, height, width)
    sy, sx = anchor.out_stride
    if (sy, sx) == (1, 1):
        return found + elementwise(kernel, y, x, height, width)
    for phase in phases:
        for i in range(height):
            row, column = (y + i) * sy + phase.oy, x * sx + phase.ox
            found += elementwise(kernel, row, column, 1, (width - 1) * sx + 1)
    return found


def pointwise(kernel: FusedKernel) -> bool:
    """Return whether every output pixel depends on nothing but the pixel in its own place."""
    anchor = kernel.anchor
    if not isinstance(anchor, Conv) or anchor.in_stride != (1, 1) or anchor.out_stride != (1, 1):
        return False
    return all((dy, dx) == (0, 0) for phase in anchor.phases for _, _, dy, dx in phase.taps)


def taps(
    seen: Sequence[TensorSpec],
    phase: Phase,
    in_stride: tuple[int, int],
    y: Expr,
    x: Expr,
    height: int,
    width: int,
) -> list[Window]:
    """Return the windows of a convolution's tile.

    Parameters
    ----------
    seen : sequence of TensorSpec
        Maps of the anchor's inputs.
    phase : Phase
        The taps.
    y, x, height, width
        The tile, in the phase's own rows and columns.
    """
    sy, sx = in_stride
    offsets = sorted({i * sy + dy for i in range(height) for _, _, dy, _ in phase.taps})
    runs = _merge((dx, dx + (width - 1) * sx + 1) for _, _, _, dx in phase.taps)
    rows = tuple(y * sy + offset for offset in offsets)
    return [Window(one, rows, x * sx + first, last - first) for one in seen for first, last in runs]


def pooled(seen: TensorSpec, pool: Pool, y: Expr, x: Expr, width: int) -> list[Window]:
    """Return the window of one row of a pooling's output."""
    (ky, kx), (sy, sx), (dy, dx) = pool.window, pool.stride, pool.dilation
    rows = tuple(y * sy + (t * dy - pool.padding[0]) for t in range(ky))
    return [Window(seen, rows, x * sx - pool.padding[1], (width - 1) * sx + (kx - 1) * dx + 1)]


def _merge(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(set(runs)):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged

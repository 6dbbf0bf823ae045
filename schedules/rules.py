"""Which tiling a kernel gets: an explicit, ordered list of rules.

A rule returns a `Decision`, or None for "not mine". The first decision counts; the last rule of
the list takes everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from resq_tvm.schedules.arm.schemes import choose, coarse
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.listing import RUN
from resq_tvm.schedules.npu.rules import decide_npu
from resq_tvm.schedules.reach import pointwise
from resq_tvm.schedules.spec import Conv, FusedKernel, Phase, phase_plane
from resq_tvm.targets.preset import Target

_SMALL_WEIGHT = 16 << 10  # bytes: half of the first cache level

# 16-lane accumulators of a tile: with more, LLVM spills some (found with benchmarks/kernels.py).
_ACCUMULATORS = {
    "avx512-vnni": 16, "avx2": 4, "generic": 4, "neon": 4, "neon-dot": 4, "neon-i8mm": 4,
}  # fmt: skip
_ARM_PIXELS = 4  # times 4 outputs (16 with sdot): 16 vectors of accumulators
# Outputs that take about as long as memory does to answer, with what epilogue and policy cost; and
# tiles ahead beyond which fetching no longer gets better.
_LATENCY, _MOST_AHEAD = 3000, 6
_STATE_AHEAD = 2  # tiles, of kernels that write state: 2 to 6 % of a keyframe (Intel; BlazePose)
# Depthwise tiles at most: the more pixels, the more of them without a change. On planes of few
# pixels most of them change.
_SPARSE_TILE, _SPARSE_TILE_OF_FEW, _FEW_PIXELS = (2, 2), (2, 4), 64
# Pixels of a plane whose tiles that changed are worked on by one thread, on x86 and on ARM: handing
# them out takes longer than the little that is left, and asking how many threads there are, and
# code that may run on any of them, takes a tenth of a small kernel.
_ONE_THREAD, _ONE_THREAD_ARM = 256, 16
_MANY_TAPS = 64  # the taps of a depthwise tile are unrolled

Rule = Callable[[FusedKernel, Target], Decision | None]


def npu(kernel: FusedKernel, target: Target) -> Decision | None:
    """Everything on an NPU: the largest tiles that fit its memories."""
    return None if target.npu is None else decide_npu(kernel, target)


def interleave(kernel: FusedKernel, target: Target) -> Decision | None:
    """Depthwise convolutions on VNNI: as many output rows as fill quads of input rows."""
    anchor = kernel.anchor
    if not isinstance(anchor, Conv) or not anchor.depthwise or target.isa != "avx512-vnni":
        return None
    taps = max((len(p.taps) for p in anchor.phases), default=0)
    if len(anchor.inputs) > 1 or taps > _MANY_TAPS:
        return None
    rows, columns = phase_plane(kernel, anchor)
    registers = _ACCUMULATORS[target.isa]
    most_y, most_x = (4, registers)
    if kernel.sparse is not None:
        few = rows * columns <= _FEW_PIXELS
        most_y, most_x = _SPARSE_TILE_OF_FEW if few else _SPARSE_TILE
    tiles = [
        (tile_y, tile_x)
        for tile_y in range(1, min(most_y, rows) + 1)
        for tile_x in range(1, min(most_x, registers // tile_y, columns) + 1)
    ]
    phase = max(anchor.phases, key=lambda p: len(p.taps))

    def plane(tile: tuple[int, int]) -> float:
        size = -(-rows // tile[0]) * -(-columns // tile[1])
        return size * _quad_cycles(anchor, phase, *tile) * _crowding(tile[0] * tile[1])

    tile_y, tile_x = min(tiles, key=plane)
    weights = kernel.c * taps * 2 * tile_y
    return Decision(
        "interleave",
        "quads",
        tile_y,
        tile_x,
        inner_o=weights <= _SMALL_WEIGHT,
        prefetch=_ahead(kernel, tile_y * tile_x),
    )


def _quad_cycles(anchor: Conv, phase: Phase, tile_y: int, tile_x: int) -> float:
    """Cycles of one tile: interleaving, dot products, epilogue."""
    stride_y, stride_x = anchor.in_stride
    dys = {t[2] for t in phase.taps}
    dxs = {t[3] for t in phase.taps}
    rows = sorted({r * stride_y + dy for r in range(tile_y) for dy in dys})
    quads = [set(rows[i : i + 4]) for i in range(0, len(rows), 4)]
    columns = {n * stride_x + dx for n in range(tile_x) for dx in dxs}
    dots = sum(
        any(r * stride_y + dy in quad for dy in dys) for r in range(tile_y) for quad in quads
    )
    interleaving = 4 * len(quads) * len(columns)
    return 10 + interleaving + dots * len(dxs) * tile_x + 10 * tile_y * tile_x


def _crowding(accumulators: int) -> float:
    """Beyond what hides the latency, accumulators mostly cost time to compile."""
    return 1 + 0.002 * max(0, accumulators - 8) + 0.02 * max(0, accumulators - 12)


def depthwise(kernel: FusedKernel, target: Target) -> Decision | None:
    """Depthwise convolutions elsewhere: several pixels of one vector of channels."""
    anchor = kernel.anchor
    if not isinstance(anchor, Conv) or not anchor.depthwise or len(anchor.inputs) > 1:
        return None
    if target.arm and max((len(p.taps) for p in anchor.phases), default=0) <= _MANY_TAPS:
        return Decision("depthwise", "narrow", tile_x=4)
    rows, columns = phase_plane(kernel, anchor)
    changing = kernel.sparse is None or rows * columns <= _FEW_PIXELS
    wide = target.isa == "avx512-vnni" or (target.isa == "avx2" and changing)
    return Decision("depthwise", "taps", tile_x=4 if wide else 2)


def arm(kernel: FusedKernel, target: Target) -> Decision | None:
    """Dense convolutions on ARM: the scheme that pays on the core, four pixels at a time."""
    anchor = kernel.anchor
    if not isinstance(anchor, Conv) or not target.arm:
        return None
    scheme, rule = choose(kernel, target)
    rows, columns = phase_plane(kernel, anchor)
    tile_x = min(_ARM_PIXELS, columns)
    tile_y = 1 if tile_x > 2 else min(rows, _ARM_PIXELS // tile_x)
    inner = anchor.weight.size <= _SMALL_WEIGHT
    few = coarse(kernel, target, scheme)
    return Decision(rule, scheme, tile_y, tile_x, inner_o=inner, coarse=few)


def dot(kernel: FusedKernel, target: Target) -> Decision | None:
    """Dense convolutions: the register tile with the least estimated time."""
    anchor = kernel.anchor
    if not isinstance(anchor, Conv):
        return None
    rows, columns = phase_plane(kernel, anchor)
    vectors = -(-kernel.c // 16)
    limit = _ACCUMULATORS[target.isa]
    best = None
    for tile_o in range(1, min(4, vectors) + 1):
        for tile_y in (1, 2, 4):
            if tile_y > rows:
                continue
            for tile_x in range(1, min(columns, limit) + 1):
                if tile_y * tile_x * tile_o > limit:
                    continue
                cost = _estimate(rows, columns, vectors, tile_y, tile_x, tile_o)
                if best is None or cost < best[0]:
                    best = (cost, tile_y, tile_x, tile_o)
    assert best is not None
    small = anchor.weight.size <= _SMALL_WEIGHT
    ahead = _ahead(kernel, best[1] * best[2])
    gather = _gathers(kernel, anchor, best[1] * best[2])
    return Decision("dot", "dot", *best[1:], inner_o=small, prefetch=ahead, gather=gather)


def _gathers(kernel: FusedKernel, anchor: Conv, pixels: int) -> bool:
    """Whether pixels are gathered: where neighbours are of no use to each other."""
    rows, columns = phase_plane(kernel, anchor)
    return kernel.sparse is not None and pointwise(kernel) and rows * columns > max(pixels, RUN)


def _ahead(kernel: FusedKernel, pixels: int) -> int:
    """Tiles to fetch ahead: where tiles are left out, the processor cannot know the next one.

    State was written two keyframes ago: a core waits for the lines that it writes to again.
    """
    if kernel.sparse is None:
        return _STATE_AHEAD if any(s.dtype == "float16" for s in kernel.outputs) else 0
    return min(max(_LATENCY // (pixels * kernel.c), 1), _MOST_AHEAD)


def _estimate(
    rows: int, columns: int, vectors: int, tile_y: int, tile_x: int, tile_o: int
) -> float:
    """Cycles per reduction step over the plane: a dot per cycle, latency 4, two loads per cycle."""
    pixels = tile_y * tile_x
    tiles = -(-rows // tile_y) * -(-columns // tile_x)

    def step(width: int) -> float:
        # Weights come from the second cache level at half the speed of the first. Cores with two
        # dot products per cycle want few loads for each.
        loads = pixels + 2 * width
        return max(pixels * width, 4.5, loads / 2) + 0.1 + 0.02 * loads

    full, rest = divmod(vectors, tile_o)
    return (
        _crowding(pixels * tile_o) * tiles * (full * step(tile_o) + (step(rest) if rest else 0.0))
    )


def lanes(kernel: FusedKernel, target: Target) -> Decision | None:
    """Everything else: vectors of channels, pixel by pixel."""
    return Decision("lanes", "lanes")


RULES: tuple[Rule, ...] = (npu, interleave, depthwise, arm, dot, lanes)


def decide(kernel: FusedKernel, target: Target) -> Decision:
    """Return the decision of the first rule that takes the kernel."""
    for rule in RULES:
        decision = rule(kernel, target)
        if decision is not None:
            few = _ONE_THREAD_ARM if target.arm else _ONE_THREAD
            alone = kernel.sparse is not None and kernel.h * kernel.w <= few
            return replace(decision, parallel=False) if alone else decision
    raise AssertionError("the last rule takes every kernel")

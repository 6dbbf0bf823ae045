"""Tiles that fit: smaller ones for smaller machines, and an error where none is small enough."""

from __future__ import annotations

import pytest

from resq_tvm.errors import CompileError
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.emit import fits, footprint
from resq_tvm.schedules.npu.rules import decide_bands, decide_npu
from resq_tvm.schedules.npu.single import ENTRY, single
from resq_tvm.schedules.spec import FusedKernel, GlobalMean, Node, Store, Walk
from resq_tvm.targets.npu.commands import Load, Matrix, Transfer, Vector
from tests.schedules.npu.harness import check, machine
from tests.schedules.npu.kernels import CODE, codes, conv_anchor, floats, residual_kernel


def layer(rng, h=16, w=24, c=32, out=40):
    anchor = conv_anchor(rng, (c,), out, bits=(8, 8))
    return residual_kernel(rng, anchor, (codes("x0", h, w, c),), h, w)


def walk(h, w, c):
    nodes = (Node("load", name="a"), Node("neg", (0,)))
    return FusedKernel(
        "walk", Walk(), h, w, c, (floats("a", h, w, c),), (floats("y", h, w, c),), nodes,
        (Store(1, "y"),), CODE,
    )  # fmt: skip


def area(decision, kernel):
    return min(decision.tile_y, kernel.h) * min(decision.tile_x, kernel.w) * decision.tile_o


def test_tiles_shrink_with_the_memory_and_stay_right(rng):
    kernel = layer(rng)
    areas = []
    for sram in (1 << 20, 1 << 17, 1 << 16, 1 << 15):
        target = machine(sram=sram, accumulators=1 << 18)
        decision = decide_npu(kernel, target)
        areas.append(area(decision, kernel))
        made = check(kernel, target, rng, decision=decision)
        _inside(made, target)
    assert areas == sorted(areas, reverse=True) and areas[0] > 4 * areas[-1]


def test_tiles_shrink_with_the_accumulators_and_stay_right(rng):
    kernel = layer(rng)
    areas = []
    for accumulators in (1 << 18, 10_000, 999, 256):
        target = machine(sram=1 << 20, accumulators=accumulators)
        decision = decide_npu(kernel, target)
        areas.append(area(decision, kernel))
        _inside(check(kernel, target, rng, decision=decision), target)
    assert areas == sorted(areas, reverse=True) and areas[0] > 4 * areas[-1]


def test_accumulators_are_handed_out_in_whole_bursts(rng):
    """31 pixels of 8 sums are 992 bytes, which take 1024."""
    anchor = conv_anchor(rng, (4,), 8)
    kernel = residual_kernel(rng, anchor, (codes("x0", 1, 31, 4),), 1, 31)
    whole = Decision("whole", "matrix", 1, 31, 1, parallel=False)
    for accumulators, there in ((1000, False), (1024, True)):
        target = machine(accumulators=accumulators)
        assert fits(kernel, whole, target) == there
        check(kernel, target, rng, decision=whole if there else None)


def _inside(made, target):
    """Check that tiles take the upper half of SRAM alone, and accumulators what there is."""
    npu = target.npu
    for command in made.stream.programs[ENTRY].commands:
        if isinstance(command, Transfer):
            assert npu.sram.bytes // 2 <= command.sram < npu.sram.bytes
        if isinstance(command, Matrix):
            end = command.accumulators + 4 * command.h * command.w * command.out
            assert end <= npu.matrix.accumulator_bytes


def test_where_the_smallest_tile_does_not_fit_kernel_and_machine_are_named(rng):
    kernel = layer(rng, c=600)
    target = machine(sram=8000)
    message = (
        r"kernel residual \(16 x 24 x 40\): its smallest tile does not fit npu-drawn "
        r"\(4000 bytes of SRAM for a kernel, 16384 of accumulators\); use a machine with more"
    )
    with pytest.raises(CompileError, match=message):
        decide_npu(kernel, target)
    # It is the weights of 8 outputs: 3 x 3 x 600 bytes each.
    assert decide_npu(kernel, machine(sram=1 << 18)).tile_o == 1


def test_a_mean_of_a_plane_that_does_not_fit_is_told():
    nodes = (Node("anchor"),)
    kernel = FusedKernel(
        "mean", GlobalMean("x"), 1, 1, 9, (floats("x", 64, 64, 9),), (floats("y", 1, 1, 9),),
        nodes, (Store(0, "y"),), CODE,
    )  # fmt: skip
    with pytest.raises(CompileError, match=r"kernel mean .* does not fit npu-drawn"):
        decide_npu(kernel, machine(sram=1 << 16))
    decide_npu(kernel, machine(sram=1 << 20))


def test_a_decision_that_does_not_fit_is_refused(rng):
    kernel, target = layer(rng), machine(sram=1 << 15)
    large = Decision("wish", "matrix", 16, 24, 5, parallel=False)
    assert not fits(kernel, large, target)
    with pytest.raises(CompileError, match=r"kernel residual: tile wish 16x24x5 takes \d+ bytes"):
        single(kernel, large, target)


def test_planes_without_products_are_cut_too(rng):
    kernel = walk(40, 50, 70)
    for sram in (1 << 17, 1 << 14, 1 << 11):
        target = machine(sram=sram)
        made = check(kernel, target, rng)
        loads = [c for c in made.stream.programs[ENTRY].commands if isinstance(c, Load)]
        assert all(c.nbytes <= sram // 4 for c in loads)  # two copies of input and output


def test_tiles_are_at_least_four_so_that_transfers_overlap_with_work(rng):
    for kernel in (layer(rng), walk(20, 20, 8)):
        made = single(kernel, decide_npu(kernel, machine(sram=1 << 22)), machine(sram=1 << 22))
        count = sum(isinstance(c, Vector) for c in made.stream.programs[ENTRY].commands)
        assert count >= 4


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
@pytest.mark.parametrize("accumulators", [5000, 1 << 14, 1 << 18])
def test_bands_have_the_rows_that_are_asked_for_and_are_right(rng, rows, accumulators):
    kernel, target = layer(rng), machine(sram=1 << 18, accumulators=accumulators)
    decision, taken = decide_bands(kernel, rows, target)
    assert decision.tile_y == rows and decision.inner_o
    assert taken == footprint(kernel, decision, target) and taken.kept > 0 < taken.passing
    check(kernel, target, rng, decision=decision)


def test_bands_need_room_for_all_weights(rng):
    kernel = layer(rng)
    weights = kernel.anchor.weight.size
    assert decide_bands(kernel, 1, machine(sram=2 * weights)) is None
    decision, taken = decide_bands(kernel, 1, machine(sram=8 * weights))
    assert weights <= taken.kept < 2 * weights
    split = Decision("t", "matrix", 1, decision.tile_x, decision.tile_o, inner_o=False)
    assert footprint(kernel, split, machine(sram=8 * weights)) is None


def test_a_walk_in_bands_keeps_nothing():
    decision, taken = decide_bands(walk(40, 30, 8), 3, machine(sram=1 << 16))
    assert decision.tile_y == 3 and taken.kept == 0 < taken.passing

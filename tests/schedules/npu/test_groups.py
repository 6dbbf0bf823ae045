"""Groups that are joined: the same sums, whole bytes, and never more passes of the array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.schedules import meaning
from resq_tvm.schedules.npu.groups import join_groups
from tests.schedules.npu.harness import machine
from tests.schedules.npu.kernels import codes, conv_anchor, sums_kernel


def grouped(rng, groups, inputs, outputs, parts=1):
    channels = (groups * inputs,) if parts == 1 else (1, groups * inputs - 1)
    anchor = conv_anchor(rng, channels, groups * outputs, groups=groups, bits=(4, 4))
    x = tuple(codes(f"x{i}", 4, 5, c, 4) for i, c in enumerate(channels))
    return sums_kernel(anchor, x, 4, 5)


def passes(kernel, unit):
    """Count, output tile by output tile, how often the array works on a pixel."""
    anchor = kernel.anchor
    out, height, width, inputs = anchor.weight.shape
    deep = -(-height * width * inputs // unit.depth)
    return anchor.groups * -(-(out // anchor.groups) // unit.outputs) * deep


@settings(max_examples=60, derandomize=True)
@given(
    groups=st.integers(1, 24),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    array=st.tuples(st.integers(1, 4), st.sampled_from([1, 6, 16]), st.sampled_from([1, 8, 32])),
    seed=st.integers(0, 99),
)
def test_joined_groups_have_the_same_sums(groups, inputs, outputs, array, seed):
    rng = np.random.default_rng(seed)
    kernel, unit = grouped(rng, groups, inputs, outputs), machine(array=array).npu.matrix
    joined = join_groups(kernel, unit, whole=False)
    given = meaning.random_inputs(kernel, rng)
    np.testing.assert_array_equal(meaning.run(joined, given)["y"], meaning.run(kernel, given)["y"])
    size = joined.anchor.weight.shape[0] // joined.anchor.groups
    assert joined.anchor.groups == 1 or size % 4 == 0
    if outputs % 4 == 0:  # else there was no choice
        assert passes(joined, unit) <= passes(kernel, unit)


def test_small_groups_fill_the_array_and_large_ones_stay_apart(rng):
    unit = machine(array=(4, 16, 16)).npu.matrix
    assert join_groups(grouped(rng, 32, 1, 1), unit, whole=False).anchor.groups == 2
    assert join_groups(grouped(rng, 2, 16, 16), unit, whole=False).anchor.groups == 2
    lone = grouped(rng, 1, 16, 16)
    assert join_groups(lone, unit, whole=False) is lone


@pytest.mark.parametrize("whole,parts", [(True, 1), (False, 2)])
def test_all_are_joined_for_whole_pixels_and_for_several_inputs(whole, parts, rng):
    kernel, unit = grouped(rng, 8, 2, 4, parts), machine().npu.matrix
    joined = join_groups(kernel, unit, whole)
    assert joined.anchor.groups == 1
    given = meaning.random_inputs(kernel, rng)
    np.testing.assert_array_equal(meaning.run(joined, given)["y"], meaning.run(kernel, given)["y"])


def test_taps_that_the_array_cannot_pack_leave_room_for_groups(rng):
    unit = machine(array=(4, 16, 27)).npu.matrix
    kernel = grouped(rng, 16, 3, 4)
    # Nine taps of three terms fill the depth, tap by tap they leave room for four groups.
    assert join_groups(kernel, unit, whole=False) is kernel
    unpacked = unit.model_copy(update={"packs_taps": False})
    assert join_groups(kernel, unpacked, whole=False).anchor.groups == 4

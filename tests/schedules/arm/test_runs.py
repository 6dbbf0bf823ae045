"""The reduction order and the proofs of narrow accumulators, without an emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.schedules.arm.depth import longest_window, total_bound
from resq_tvm.schedules.arm.depthwise import tap_groups
from resq_tvm.schedules.arm.planes import pack
from resq_tvm.schedules.arm.runs import CHUNK, reduction_of
from resq_tvm.schedules.meaning import run, to_physical
from resq_tvm.targets.preset import PRESETS
from tests.schedules.harness import accumulator_kernel
from tests.schedules.test_conv import conv_of

TARGET = PRESETS["cortex-a53"]

SHAPES = [
    ((3,), 5, (5, 6), (3, 3), 2, 1),
    ((16,), 4, (5, 6), (3, 3), 1, 1),
    ((24, 8), 6, (4, 5), (3, 3), 1, 1),
    ((12,), 3, (9, 9), (3, 3), 1, 4),
    ((40,), 7, (3, 4), (1, 1), 1, 1),
]


def case(shape, rng, most=127):
    channels, o, hw, k, stride, dilation = shape
    anchor, inputs, h, w = conv_of(TARGET, rng, channels, o, hw, k, stride, dilation)
    weight = rng.integers(-most, most + 1, anchor.weight.shape).astype(np.int8)
    anchor = replace(anchor, weight=weight, limits=(most, most))
    return accumulator_kernel(TARGET, anchor, inputs, h, w)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_runs_read_what_the_taps_read(shape, rng):
    kernel = case(shape, rng)
    anchor = kernel.anchor
    inputs = {
        s.name: rng.integers(-127, 128, (s.h, s.w, s.c)).astype(np.int32) for s in kernel.inputs
    }
    flat = {s.name: to_physical(s, inputs[s.name], 0).reshape(-1) for s in kernel.inputs}
    reduction = reduction_of(kernel, anchor.phases[0])
    total = np.zeros((kernel.h, kernel.w, kernel.c), np.int64)
    for part, weights in zip(reduction.runs, reduction.weights, strict=True):
        spec = kernel.tensor(part.input)
        _, _, width, channels = spec.shape
        sizes = [CHUNK] * part.chunks + list(part.tails)
        for y, x, a, b in np.ndindex(kernel.h, kernel.w, part.rows, part.columns):
            top = y * anchor.in_stride[0] + a * part.step_y + part.dy + spec.halo[0]
            left = x * anchor.in_stride[1] + b * part.step_x + part.dx + spec.halo[1]
            offset = 0
            for n, size in enumerate(sizes):
                row = n // part.stretch if part.chunks > part.stretch else 0
                start = (top + row * part.step_y) * width * channels + left * channels
                start += offset - row * part.stretch * CHUNK
                codes = flat[part.input][start : start + size].astype(np.int64)
                total[y, x] += weights[:, a, b, n, :size].astype(np.int64) @ codes
                assert not weights[:, a, b, n, size:].any()
                offset += size
    np.testing.assert_array_equal(total, run(kernel, inputs)["y"])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    most=st.sampled_from([1, 3, 7, 127]),
    capacity=st.sampled_from([7, 127, 32767]),
    lanes=st.sampled_from([8, 16]),
    seed=st.integers(0, 99),
)
def test_no_window_overflows_at_the_extremes(shape, most, capacity, lanes, seed):
    rng = np.random.default_rng(seed)
    kernel = case(shape, rng, most)
    reduction = reduction_of(kernel, kernel.anchor.phases[0])
    window = longest_window(reduction, most, capacity, lanes)
    worst = 0
    for weights in reduction.weights:
        # The worst activations have each weight's sign.
        products = np.abs(weights.astype(np.int64)) * most
        products = products.reshape(*products.shape[:-1], CHUNK // lanes, lanes).sum(axis=-2)
        worst = max(worst, int(products.max()))
        if window is None or window.level == "all":
            continue
        if window.level == "row":
            assert products.sum(axis=(2, 3)).max() <= capacity
        elif window.level == "run":
            assert products.sum(axis=3).max() <= capacity
        else:
            for first in range(0, products.shape[3], window.chunks):
                part = products[:, :, :, first : first + window.chunks]
                assert part.sum(axis=3).max() <= capacity
    if window is None:
        assert worst > capacity
    elif window.level == "all":
        assert total_bound(reduction, most, lanes) == window.largest <= capacity
    else:
        assert total_bound(reduction, most, lanes) > capacity


def test_windows_are_as_long_as_the_weights_allow(rng):
    kernel = case(SHAPES[1], rng)
    anchor = kernel.anchor
    sparse = np.zeros_like(anchor.weight)
    sparse[:, 1, 1, 3] = 1  # one product of a lane: 3 · 1 fits anything
    thin = replace(kernel, anchor=replace(anchor, weight=sparse))
    window = longest_window(reduction_of(thin, anchor.phases[0]), 3, 7, 16)
    assert window is not None and (window.level, window.largest) == ("all", 3)
    full = replace(kernel, anchor=replace(anchor, weight=np.full_like(anchor.weight, 3)))
    window = longest_window(reduction_of(full, anchor.phases[0]), 3, 127, 16)
    # Nine chunks of 3 · 3 fit an int8 lane.
    assert window is not None and (window.level, window.largest) == ("all", 81)
    assert longest_window(reduction_of(full, anchor.phases[0]), 3, 8, 16) is None


def test_taps_of_depthwise_convolutions_are_summed_while_they_fit():
    taps = np.full((9, 4), 127, np.int8)
    assert tap_groups(taps, 127) == [2, 2, 2, 2, 1]
    taps[:, :] = 7
    assert tap_groups(taps, 7) == [9]
    taps[0] = 127
    assert sum(tap_groups(taps, 127)) == 9 and tap_groups(taps, 127)[0] > 2


def test_planes_tell_the_sign():
    codes = np.array([[0, 1, -1, 0, 0, 0, 0, -1]], np.int8)
    assert pack(codes, positive=True).tolist() == [[0b10000100, 0b00000010]]
    assert pack(codes, positive=False).tolist() == [[0b10000100, 0b10000110]]

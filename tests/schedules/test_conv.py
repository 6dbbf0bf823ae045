from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import Conv, Phase
from resq_tvm.targets.preset import Target
from tests.schedules.harness import (
    TARGETS,
    accumulator_kernel,
    check,
    code_tensor,
    conv_phase,
    halo_for,
    residual_kernel,
    target_or_skip,
    two_code_kernel,
)


def conv_of(
    target: Target,
    rng: np.random.Generator,
    channels: tuple[int, ...],
    o: int,
    hw: tuple[int, int],
    k: tuple[int, int] = (3, 3),
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
):
    """Return (anchor, inputs, h, w) of a convolution with "same" padding."""
    pad = (dilation * (k[0] - 1) // 2, dilation * (k[1] - 1) // 2)
    weight = rng.integers(-127, 128, (o, *k, sum(channels) // groups)).astype(np.int8)
    names = tuple(f"x{i}" for i in range(len(channels)))
    anchor = Conv(
        names, weight, (conv_phase(k, (dilation, dilation), pad),), (stride, stride), (1, 1), groups
    )
    h, w = -(-hw[0] // stride), -(-hw[1] // stride)
    halo = halo_for(anchor, *hw, h, w)
    inputs = tuple(
        code_tensor(target, n, *hw, c, halo) for n, c in zip(names, channels, strict=True)
    )
    return anchor, inputs, h, w


SHAPES = [
    # channels, outputs, (h, w), kernel, stride, dilation
    ((3,), 16, (9, 14), (3, 3), 2, 1),
    ((16,), 16, (7, 9), (3, 3), 1, 1),
    ((64,), 64, (5, 31), (3, 3), 1, 1),
    ((12,), 25, (9, 7), (3, 3), 1, 4),
    ((25,), 19, (7, 9), (1, 1), 1, 1),
    ((32,), 128, (4, 8), (3, 3), 1, 1),
    ((19, 3), 28, (6, 9), (3, 3), 2, 1),
    ((16, 25, 12), 40, (5, 7), (1, 1), 1, 1),
    ((8,), 72, (1, 1), (1, 1), 1, 1),
    ((5,), 6, (9, 9), (5, 3), 1, 2),
]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
def test_accumulators_are_exact(name, shape, rng):
    target = target_or_skip(name)
    channels, o, hw, k, stride, dilation = shape
    anchor, inputs, h, w = conv_of(target, rng, channels, o, hw, k, stride, dilation)
    check(accumulator_kernel(target, anchor, inputs, h, w), target, rng)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_residual_epilogue_is_exact(name, shape, rng):
    target = target_or_skip(name)
    channels, o, hw, k, stride, dilation = shape
    anchor, inputs, h, w = conv_of(target, rng, channels, o, hw, k, stride, dilation)
    check(residual_kernel(target, anchor, inputs, h, w, rng), target, rng)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("shape", SHAPES[1::2], ids=str)
@pytest.mark.parametrize("inner", [False, True])
def test_inputs_with_two_codes(name, shape, inner, rng):
    target = target_or_skip(name)
    channels, o, hw, k, stride, dilation = shape
    anchor, inputs, h, w = conv_of(target, rng, channels, o, hw, k, stride, dilation)
    kernel = two_code_kernel(target, anchor, inputs, h, w, rng)
    check(kernel, target, rng, decision=replace(decide(kernel, target), inner_o=inner))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("value", [-127, 127])
def test_extreme_codes_do_not_saturate(name, value, rng):
    target = target_or_skip(name)
    anchor, inputs, h, w = conv_of(target, rng, (20,), 17, (5, 6))
    anchor.weight[:] = np.where(rng.random(anchor.weight.shape) < 0.9, 127, -127)
    kernel = accumulator_kernel(target, anchor, inputs, h, w)
    x = np.full((5, 6, 20), value, np.int32)
    check(kernel, target, rng, {"x0": x})


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("value", [-127, 127])
@pytest.mark.parametrize("k", [3, 4, 5])
def test_extreme_codes_do_not_overflow_depthwise(name, value, k, rng):
    target = target_or_skip(name)
    anchor, inputs, h, w = conv_of(target, rng, (20,), 20, (5, 9), (k, k), groups=20)
    anchor.weight[:] = np.where(rng.random(anchor.weight.shape) < 0.9, 127, -127)
    kernel = accumulator_kernel(target, anchor, inputs, h, w)
    check(kernel, target, rng, {"x0": np.full((5, 9, 20), value, np.int32)})


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("groups,channels,o", [(2, 16, 32), (3, 12, 9), (4, 128, 64)])
def test_grouped(name, groups, channels, o, rng):
    target = target_or_skip(name)
    anchor, inputs, h, w = conv_of(target, rng, (channels,), o, (6, 7), groups=groups)
    check(residual_kernel(target, anchor, inputs, h, w, rng), target, rng)
    check(two_code_kernel(target, anchor, inputs, h, w, rng), target, rng)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("k,stride,pad", [(3, 2, 1), (2, 2, 0), (4, 2, 1), (3, 3, 0), (2, 3, 0)])
def test_transposed(name, k, stride, pad, rng):
    target = target_or_skip(name)
    hw, c, o = (5, 7), 12, 19
    h, w = ((n - 1) * stride - 2 * pad + k for n in hw)
    phases = tuple(
        Phase(
            oy,
            ox,
            tuple(
                (ky, kx, (oy + pad - ky) // stride, (ox + pad - kx) // stride)
                for ky in range(k)
                for kx in range(k)
                if (oy + pad - ky) % stride == 0 and (ox + pad - kx) % stride == 0
            ),
        )
        for oy in range(stride)
        for ox in range(stride)
    )
    weight = rng.integers(-127, 128, (o, k, k, c)).astype(np.int8)
    anchor = Conv(("x0",), weight, phases, (1, 1), (stride, stride))
    inputs = (code_tensor(target, "x0", *hw, c, halo_for(anchor, *hw, h, w)),)
    check(residual_kernel(target, anchor, inputs, h, w, rng), target, rng)
    check(two_code_kernel(target, anchor, inputs, h, w, rng), target, rng)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "c,hw,k,stride,dilation",
    [
        (16, (7, 9), 3, 1, 1),
        (25, (9, 31), 3, 2, 1),
        (3, (8, 7), 5, 1, 1),
        (48, (9, 9), 5, 2, 1),
        (32, (7, 12), 3, 1, 2),
        (64, (1, 5), 3, 1, 1),
        (16, (10, 10), 2, 2, 1),
        (24, (8, 8), 2, 2, 1),
        (8, (6, 7), 3, 1, 1),
    ],
)
def test_depthwise(name, c, hw, k, stride, dilation, rng):
    target = target_or_skip(name)
    anchor, inputs, h, w = conv_of(target, rng, (c,), c, hw, (k, k), stride, dilation, c)
    check(accumulator_kernel(target, anchor, inputs, h, w, external=True), target, rng)
    check(residual_kernel(target, anchor, inputs, h, w, rng), target, rng)
    check(two_code_kernel(target, anchor, inputs, h, w, rng), target, rng)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=5, derandomize=True)
@given(data=st.data())
def test_any_convolution_and_tile(name, data):
    target = target_or_skip(name)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    channels = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    k = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    hw = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 33)))
    stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    o = data.draw(st.integers(1, 70))
    tile = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)))
    decision = Decision("drawn", "dot", *tile, inner_o=data.draw(st.booleans()))
    anchor, inputs, h, w = conv_of(target, rng, channels, o, hw, k, stride, dilation)
    kernel = residual_kernel(target, anchor, inputs, h, w, rng)
    check(kernel, target, rng, decision=decision)


@pytest.mark.parametrize("name", TARGETS)
def test_external_outputs_have_no_padding_channels(name, rng):
    target = target_or_skip(name)
    for o in (3, 19, 70):
        anchor, inputs, h, w = conv_of(target, rng, (28,), o, (7, 9))
        check(accumulator_kernel(target, anchor, inputs, h, w, external=True), target, rng)

"""Convolutions on NPUs against their meaning, bit for bit, in the orders of many machines."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from resq_tvm.schedules.npu.emit import fits
from tests.schedules.npu.harness import check, has_room, machine, machines
from tests.schedules.npu.kernels import (
    codes,
    conv_anchor,
    decisions,
    floats,
    limit,
    residual_kernel,
    sums_kernel,
    transposed_anchor,
)

BITS = (2, 3, 4, 8)
MEMORIES = ("", "sram")


@pytest.mark.parametrize("bits", list(product(BITS, BITS)), ids=str)
def test_every_pair_of_bits(bits, rng):
    target = machine()
    anchor = conv_anchor(rng, (13,), 11, bits=bits)
    x = codes("x0", 7, 9, 13, bits[1])
    check(residual_kernel(rng, anchor, (x,), 7, 9, bits=bits[1]), target, rng)


@pytest.mark.parametrize("bits", [(2, 2), (3, 3), (4, 8), (8, 8)], ids=str)
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_codes_and_weights(bits, sign, rng):
    target = machine()
    anchor = conv_anchor(rng, (70,), 9, bits=bits)
    anchor.weight[:] = limit(bits[0])
    anchor.weight[::2] *= -1
    kernel = sums_kernel(anchor, (codes("x0", 5, 6, 70, bits[1]),), 5, 6)
    x = np.full((5, 6, 70), sign * limit(bits[1]))
    check(kernel, target, rng, inputs={"x0": x})


@settings(max_examples=25, derandomize=True)
@given(data=st.data())
def test_any_convolution_tile_and_machine(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    target = draw(machines())
    h, w = draw(st.tuples(st.integers(1, 17), st.integers(1, 23)))
    taps = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    origin = tuple(-draw(st.integers(0, d * k)) for d, k in zip(dilation, taps, strict=True))
    out_h, out_w = (
        draw(st.integers(1, -(-(n + 2) // s))) for n, s in zip((h, w), stride, strict=True)
    )
    bits = draw(st.tuples(st.sampled_from(BITS), st.sampled_from(BITS)))
    channels = tuple(draw(st.lists(st.integers(1, 35), min_size=1, max_size=3)))
    out = draw(st.integers(1, 70))
    anchor = conv_anchor(
        rng, channels, out, taps=taps, stride=stride, dilation=dilation, origin=origin, bits=bits
    )
    inputs = tuple(
        codes(f"x{i}", h, w, c, bits[1], draw(st.sampled_from(MEMORIES)))
        for i, c in enumerate(channels)
    )
    kernel = _residual(draw, rng, anchor, inputs, out_h, out_w)
    decision = decisions(draw, out_h, out_w, 3)
    assume(has_room(kernel, target))
    check(kernel, target, rng, decision=decision if fits(kernel, decision, target) else None)


def _residual(draw, rng, anchor, inputs, h, w):
    """Return a residual step with a drawn shortcut, drawn bits and drawn memories."""
    c = anchor.weight.shape[0]
    shape = draw(st.sampled_from([(h, w, c), (1, 1, c), (1, 1, 1)]))
    state = floats(
        "u", *shape, draw(st.sampled_from(["float16", "float32"])), draw(st.sampled_from(MEMORIES))
    )
    memories = draw(st.tuples(st.sampled_from(MEMORIES), st.sampled_from(MEMORIES)))
    return residual_kernel(
        rng, anchor, inputs, h, w, bits=draw(st.sampled_from(BITS)), shortcut=state,
        memories=memories,
    )  # fmt: skip


@settings(max_examples=15, derandomize=True)
@given(data=st.data())
def test_any_transposed_convolution(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    target = draw(machines())
    h, w = draw(st.tuples(st.integers(1, 8), st.integers(1, 9)))
    taps = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pad = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    sizes = [
        (n - 1) * s - 2 * p + k + draw(st.integers(0, s - 1))
        for n, s, p, k in zip((h, w), stride, pad, taps, strict=True)
    ]
    assume(min(sizes) > 0)
    bits = draw(st.tuples(st.sampled_from(BITS), st.sampled_from(BITS)))
    c, out = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    anchor = transposed_anchor(rng, c, out, taps=taps, stride=stride, pad=pad, bits=bits)
    x = codes("x0", h, w, c, bits[1], draw(st.sampled_from(MEMORIES)))
    kernel = _residual(draw, rng, anchor, (x,), *sizes)
    assume(has_room(kernel, target))
    decision = decisions(draw, *sizes, 2)
    check(kernel, target, rng, decision=decision if fits(kernel, decision, target) else None)


@pytest.mark.parametrize("taps,stride,pad", [(3, 2, 1), (2, 2, 0), (4, 2, 1), (3, 3, 0), (1, 3, 0)])
def test_transposed(taps, stride, pad, rng):
    h, w = ((n - 1) * stride - 2 * pad + taps for n in (5, 7))
    anchor = transposed_anchor(
        rng, 12, 19, taps=(taps,) * 2, stride=(stride,) * 2, pad=(pad,) * 2, bits=(8, 4)
    )
    check(residual_kernel(rng, anchor, (codes("x0", 5, 7, 12, 4),), h, w), machine(), rng)


@settings(max_examples=20, derandomize=True)
@given(data=st.data())
def test_any_groups(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    target = draw(machines())
    h, w = draw(st.tuples(st.integers(1, 9), st.integers(1, 11)))
    groups = draw(st.integers(2, 20))
    depthwise = draw(st.booleans())
    inputs, outputs = (1, 1) if depthwise else draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.integers(1, 2))
    bits = draw(st.tuples(st.sampled_from(BITS), st.sampled_from(BITS)))
    anchor = conv_anchor(
        rng, (groups * inputs,), groups * outputs, taps=draw(st.sampled_from([(1, 1), (3, 2)])),
        stride=(stride, stride), groups=groups, bits=bits,
    )  # fmt: skip
    x = codes("x0", h, w, groups * inputs, bits[1], draw(st.sampled_from(MEMORIES)))
    out_h, out_w = -(-h // stride), -(-w // stride)
    kernel = _residual(draw, rng, anchor, (x,), out_h, out_w)
    assume(has_room(kernel, target))
    decision = decisions(draw, out_h, out_w, 2)
    check(kernel, target, rng, decision=decision if fits(kernel, decision, target) else None)


@pytest.mark.parametrize("has_unit", [True, False])
@pytest.mark.parametrize("bits", [(2, 2), (4, 4), (8, 8)], ids=str)
@pytest.mark.parametrize("c,hw,k,stride", [(25, (9, 13), 3, 2), (3, (6, 5), 5, 1)])
def test_depthwise(c, hw, k, stride, bits, has_unit, rng):
    anchor = conv_anchor(
        rng, (c,), c, taps=(k, k), stride=(stride, stride), groups=c, bits=bits,
        origin=(-(k // 2), -(k // 2)),
    )  # fmt: skip
    h, w = (-(-n // stride) for n in hw)
    x = codes("x0", *hw, c, bits[1])
    check(residual_kernel(rng, anchor, (x,), h, w), machine(depthwise=has_unit), rng)


def test_a_depthwise_convolution_of_joined_inputs(rng):
    anchor = conv_anchor(rng, (5, 8), 13, groups=13, bits=(4, 4))
    inputs = codes("x0", 6, 7, 5, 4), codes("x1", 6, 7, 8, 4)
    check(residual_kernel(rng, anchor, inputs, 6, 7), machine(), rng)

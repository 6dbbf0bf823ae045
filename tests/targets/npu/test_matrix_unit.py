from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.errors import ArtifactError
from resq_tvm.schedules import meaning
from resq_tvm.schedules.spec import Conv, Node, Phase, Store
from resq_tvm.targets.npu.codes import code_range
from resq_tvm.targets.npu.commands import Matrix, Operand
from tests.targets.npu.machines import Bench, kernel_of, plane_of, tensor


def convolution(x, weight, stride, dilation, pad, groups=1):
    """Return the whole output's accumulators, as `schedules.meaning` has them."""
    o, kh, kw, _ = weight.shape
    taps = tuple(
        (y, x, y * dilation[0] - pad[0], x * dilation[1] - pad[1])
        for y in range(kh)
        for x in range(kw)
    )
    h, w = (-(-n // s) for n, s in zip(x.shape, stride, strict=False))
    anchor = Conv(("x",), weight, (Phase(0, 0, taps),), stride, (1, 1), groups)
    kernel = kernel_of(
        anchor,
        (tensor("x", *x.shape, "int8"),),
        (tensor("y", h, w, o, "int32"),),
        (Node("anchor"),),
        (Store(0, "y"),),
    )
    return meaning.run(kernel, {"x": x.astype(np.int32)})["y"]


def draw_codes(rng, bits, shape):
    least, most = code_range(bits)
    return rng.integers(least, most + 1, shape, np.int8)


def command_for(bench, operand, weights, bits, out, taps, **changes):
    """Return a matrix command with everything plain but for ``changes``."""
    settings = {
        "source": plane_of(operand),
        "weights": weights.address,
        "weight_bits": bits,
        "precision": (8, 8),
        "h": operand.h,
        "w": operand.w,
        "out": out,
        "origin": (0, 0),
        "stride": (1, 1),
        "taps": taps,
        "dilation": (1, 1),
        "depthwise": False,
        "accumulators": 0,
    }
    return Matrix(**(settings | changes))


def accumulators(bench, command):
    return bench.get(
        Operand(
            "acc", "i32", command.accumulators, command.h, command.w, command.out,
            4 * command.w * command.out, 4 * command.out,
        )
    )  # fmt: skip


def pairs(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


@settings(max_examples=60)
@given(
    bits=st.tuples(*[st.sampled_from([2, 4, 8])] * 2),
    size=pairs(3, 11),
    channels=st.integers(1, 9),
    out=st.integers(1, 9),
    taps=pairs(1, 3),
    stride=pairs(1, 3),
    dilation=pairs(-2, 2),
    pad=pairs(-2, 4),
    depthwise=st.booleans(),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_any_tile_of_a_convolution_has_its_accumulators(
    bits, size, channels, out, taps, stride, dilation, pad, depthwise, seed, data
):
    rng = np.random.default_rng(seed)
    out = channels if depthwise else out
    x = draw_codes(rng, bits[1], (*size, channels))
    weight = draw_codes(rng, bits[0], (out, *taps, 1 if depthwise else channels))
    expected = convolution(x, weight, stride, dilation, pad, channels if depthwise else 1)

    # The tile, and which part of the input it is given (at least what it reads).
    y0 = data.draw(st.integers(0, expected.shape[0] - 1))
    x0 = data.draw(st.integers(0, expected.shape[1] - 1))
    h = data.draw(st.integers(1, expected.shape[0] - y0))
    w = data.draw(st.integers(1, expected.shape[1] - x0))
    backwards = [min(0, (k - 1) * d) for k, d in zip(taps, dilation, strict=True)]
    top, left = (
        min(max(0, first * s - p + back), n - 1)
        for first, s, p, back, n in zip((y0, x0), stride, pad, backwards, size, strict=True)
    )

    bench = Bench()
    operand = bench.put(x[top:, left:], f"c{bits[1]}")
    if depthwise:
        laid_out = weight[..., 0].transpose(1, 2, 0).reshape(math.prod(taps), 1, out)
    else:
        laid_out = weight.reshape(out, 1, -1)
    weights = bench.put(laid_out, f"c{bits[0]}")
    command = command_for(
        bench, operand, weights, bits[0], out, taps,
        h=h, w=w, stride=stride, dilation=dilation, depthwise=depthwise, accumulators=20,
        origin=(y0 * stride[0] - pad[0] - top, x0 * stride[1] - pad[1] - left),
    )  # fmt: skip
    bench.run(command)
    np.testing.assert_array_equal(accumulators(bench, command), expected[y0 : y0 + h, x0 : x0 + w])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_channels_split_over_commands_add_up(bits, rng):
    x = draw_codes(rng, bits, (5, 6, 7))
    weight = draw_codes(rng, 8, (3, 3, 3, 7))
    bench = Bench()
    operand = bench.put(x, f"c{bits}")
    commands = []
    for first, end in ((0, 3), (3, 7)):  # 3 codes of 2 or 4 bits end inside a byte
        part = np.ascontiguousarray(weight[..., first:end]).reshape(3, 1, -1)
        commands.append(
            command_for(
                bench, operand, bench.put(part, "c8"), 8, 3, (3, 3),
                source=plane_of(operand, first, end - first), origin=(-1, -1),
                accumulate=first > 0,
            )
        )  # fmt: skip
    bench.run(*commands)
    expected = convolution(x, weight, (1, 1), (1, 1), (1, 1))
    np.testing.assert_array_equal(accumulators(bench, commands[1]), expected)


def test_sums_beyond_float32_are_exact():
    # Odd sums of 2^24 and more: float32 would round them.
    channels = 1501
    x = np.full((1, 2, channels), 127, np.int8)
    weight = np.full((2, 1, 1, channels), 127, np.int8)
    bench = Bench()
    operand = bench.put(x, "c8")
    weights = bench.put(weight.reshape(2, 1, -1), "c8")
    command = command_for(bench, operand, weights, 8, 2, (1, 1))
    bench.run(command)
    assert (accumulators(bench, command) == 127 * 127 * channels).all()
    assert 127 * 127 * channels > 1 << 24


def test_weights_that_change_in_place_are_seen(rng):
    bench = Bench()
    operand = bench.put(draw_codes(rng, 8, (2, 2, 3)), "c8")
    weights = bench.put(draw_codes(rng, 8, (4, 1, 3)), "c8")
    command = command_for(bench, operand, weights, 8, 4, (1, 1))
    bench.run(command)
    first = accumulators(bench, command)
    bench.machine.sram[weights.address] += 1
    bench.machine.run("keyframe")
    assert (accumulators(bench, command)[..., 0] != first[..., 0]).any()
    np.testing.assert_array_equal(accumulators(bench, command)[..., 1:], first[..., 1:])


def test_a_tile_wholly_in_the_padding_is_zero(rng):
    bench = Bench()
    operand = bench.put(draw_codes(rng, 8, (2, 2, 3)), "c8")
    weights = bench.put(draw_codes(rng, 8, (4, 1, 3)), "c8")
    for origin in ((-9, 0), (0, 5)):
        command = command_for(bench, operand, weights, 8, 4, (1, 1), origin=origin)
        bench.run(command)
        assert not accumulators(bench, command).any()


@pytest.mark.parametrize("depthwise", [False, True])
def test_without_taps_the_sums_are_zero(depthwise, rng):
    bench = Bench()
    operand = bench.put(draw_codes(rng, 8, (2, 2, 4)), "c8")
    command = command_for(bench, operand, operand, 8, 4, (0, 0), depthwise=depthwise)
    bench.run(command)
    assert not accumulators(bench, command).any()


def test_blocks_are_counted_by_bits(rng):
    bench = Bench()
    operand = bench.put(draw_codes(rng, 8, (2, 8, 3)), "c8")
    bits = np.zeros((2, 8, 1), np.uint8)
    bits[0, 3], bits[1, 6], bits[1, 7] = 4, 4, 8
    weights = bench.put(draw_codes(rng, 8, (4, 1, 3)), "c8")
    plane = plane_of(bench.put(bits, "u8"))
    plain = command_for(bench, operand, weights, 8, 4, (1, 1))
    mapped = command_for(bench, operand, weights, 8, 4, (1, 1), bits_map=plane)
    executed = bench.run(plain, mapped)
    assert bench.npu.matrix.pixels == 4
    assert executed.blocks == {1: {0: 2, 4: 1, 8: 1}}


@pytest.mark.parametrize("depthwise", [False, True])
def test_pixels_of_no_bits_are_zero(depthwise, rng):
    codes = draw_codes(rng, 8, (5, 6, 4))
    bits = rng.choice([0, 4, 8], (5, 6, 1)).astype(np.uint8)
    results = []
    for shown in (codes, np.where(bits != 0, codes, 0)):
        bench = Bench()
        operand = bench.put(shown, "c8")
        shape = (3, 3, 4) if depthwise else (4, 9, 4)
        weights = bench.put(draw_codes(np.random.default_rng(1), 8, shape), "c8")
        plane = plane_of(bench.put(bits, "u8"))
        command = command_for(
            bench, operand, weights, 8, 4, (3, 3), depthwise=depthwise, origin=(-1, -1),
            bits_map=plane,
        )  # fmt: skip
        bench.run(command)
        results.append(accumulators(bench, command))
    np.testing.assert_array_equal(*results)
    assert results[0].any()


def test_wrong_commands_are_named(rng):
    bench = Bench()
    operand = bench.put(draw_codes(rng, 8, (2, 2, 3)), "c8")
    weights = bench.put(draw_codes(rng, 8, (4, 1, 3)), "c8")
    good = command_for(bench, operand, weights, 8, 4, (1, 1))
    end = bench.npu.matrix.accumulator_bytes
    wrong = [
        (dict(accumulators=end - 4), r"accumulator bytes .* lie outside its 65536"),
        (dict(weights=bench.npu.sram.bytes - 3), r"SRAM bytes .* lie outside its 262144"),
        (dict(weights=-1), r"SRAM bytes -1 to"),
        (dict(depthwise=True), r"3 input channels for 4 outputs"),
        (dict(bits_map=plane_of(bench.put(np.zeros((1, 2, 1)), "u8"))), r"bits map"),
    ]
    for changes, message in wrong:
        bad = replace(good, kernel=1, **changes)
        with pytest.raises(ArtifactError, match=message) as caught:
            bench.run(good, bad)
        assert "program 'keyframe', command 1 (Matrix of kernel 'second')" in str(caught.value)

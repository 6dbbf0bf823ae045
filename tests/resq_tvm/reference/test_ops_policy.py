"""The policy and the gate against plain loops over integers."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from resq_tvm.passes.policy import Gate
from resq_tvm.reference.ops_policy import changed_pixels, choose_bits

POOLS = st.lists(st.sampled_from([0, 2, 3, 4, 5, 6, 7, 8]), min_size=2, max_size=4, unique=True)


def rounded(code: int, bits: int, shift: int) -> int:
    """Round half to even to a multiple of 2**shift, in integers."""
    if bits == 0:
        return 0
    step, limit = 2**shift, 2 ** (bits - 1) - 1
    quotient, rest = divmod(code, step)
    if 2 * rest > step or (2 * rest == step and quotient % 2):
        quotient += 1
    return max(-limit, min(limit, quotient)) * step


def policy(
    pixel: list[int], pool: list[int], shifts: list[int], threshold: float
) -> tuple[list[int], int]:
    """Choose for one pixel, by the text of the paper."""
    candidates = [
        [rounded(c, b, s) for c in pixel] for b, s in zip(pool[:-1], shifts[:-1], strict=True)
    ]
    candidates.append(pixel)  # the finest codes stand for the residual itself
    errors = [
        np.float32(sqrt(sum((c - q) ** 2 for c, q in zip(pixel, candidate, strict=True))))
        for candidate in candidates
    ]
    chosen = len(pool) - 1
    for i in range(len(pool) - 1):
        if np.float32(errors[i] - errors[i + 1]) < np.float32(threshold):
            chosen = i
            break
    result = candidates[chosen]
    return result, pool[chosen] if any(result) else 0


@st.composite
def cases(draw: Any) -> tuple[list[list[int]], list[int], list[int], float]:
    pool = sorted(draw(POOLS))
    shifts = [draw(st.integers(0, 8)) for _ in pool[:-1]] + [0]
    limit = 2 ** (pool[-1] - 1) - 1
    code = st.one_of(st.integers(-limit, limit), st.integers(-1, 1), st.just(0))
    channels = draw(st.integers(1, 5))
    pixel = st.one_of(st.just([0] * channels), st.lists(code, min_size=channels, max_size=channels))
    pixels = draw(st.lists(pixel, min_size=1, max_size=8))
    # Whole thresholds meet errors of single codes exactly: equality is not enough for fewer bits.
    threshold = draw(st.one_of(st.integers(0, 20).map(float), st.floats(0, 200, width=32)))
    return pixels, pool, shifts, threshold


@given(case=cases(), int8=st.booleans())
def test_policy_follows_the_equations(
    case: tuple[list[list[int]], list[int], list[int], float], int8: bool
) -> None:
    pixels, pool, shifts, threshold = case
    codes = torch.tensor(pixels, dtype=torch.int8 if int8 else torch.float32)
    before = codes.clone()
    got, bits = choose_bits(codes, pool, shifts, threshold)
    want = [policy(p, pool, shifts, threshold) for p in pixels]
    assert got.tolist() == [w[0] for w in want]
    assert bits.tolist() == [w[1] for w in want]
    assert torch.equal(codes, before)


def test_an_error_of_just_the_threshold_is_too_much() -> None:
    codes = torch.tensor([[3, 4]])
    for threshold, expected in ((5.0, 8), (5.000001, 0)):
        assert choose_bits(codes, [0, 8], [0, 0], threshold)[1].tolist() == [expected]


def test_without_0_bits_in_the_pool_a_pixel_of_zeros_still_has_none() -> None:
    codes = torch.tensor([[0, 0], [3, 0], [16, 0], [127, 1]])
    got, bits = choose_bits(codes, [4, 8], [4, 0], 4.0)
    assert bits.tolist() == [0, 0, 4, 8]
    assert got.tolist() == [[0, 0], [0, 0], [16, 0], [127, 1]]


def test_many_channels_are_summed_exactly() -> None:
    codes = torch.full((1, 2048), 127)
    codes[0, 0] = 126
    exact = np.float32(sqrt(2047 * 127**2 + 126**2))
    above = float(np.nextafter(exact, np.float32(np.inf)))
    assert choose_bits(codes, [0, 8], [0, 0], float(exact))[1].tolist() == [8]
    assert choose_bits(codes, [0, 8], [0, 0], above)[1].tolist() == [0]


def changed_by_loops(codes: np.ndarray, threshold: float, block: int, reach: int) -> np.ndarray:
    height, width, _ = codes.shape
    rows, columns = -(-height // block), -(-width // block)
    hot = np.zeros((rows, columns), bool)
    for y in range(rows):
        for x in range(columns):
            part = codes[y * block : (y + 1) * block, x * block : (x + 1) * block]
            hot[y, x] = sum(int(v) ** 2 for v in part.ravel()) > threshold
    out = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            by, bx = y // block, x // block
            near = hot[max(0, by - reach) : by + reach + 1, max(0, bx - reach) : bx + reach + 1]
            out[y, x] = near.any()
    return out


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    channels=st.integers(1, 4),
    block=st.sampled_from([1, 2, 3, 8]),
    reach=st.sampled_from([0, 1, 2]),
    threshold=st.sampled_from([0.0, 1.0, 40.0, 127.0**2, 50000.0]),
)
def test_gate_follows_a_plain_loop(
    seed: int, height: int, width: int, channels: int, block: int, reach: int, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    # Quarters of a step, few pixels, some beyond the clamp: exact in float32, halves included.
    quarters = rng.integers(-40, 41, (height, width, channels))
    quarters[rng.random((height, width)) < 0.9] = 0
    quarters[rng.random((height, width)) < 0.01] = 1000
    key = rng.integers(-8, 9, (1, height, width, channels)).astype(np.float32)
    x = key + quarters.astype(np.float32) / 32
    codes = np.clip(np.rint(quarters / 4), -127, 127)
    got = changed_pixels(
        torch.from_numpy(x), torch.from_numpy(key), Gate(8.0, threshold, block, reach)
    )
    want = changed_by_loops(codes, threshold, block, reach)
    np.testing.assert_array_equal(got.numpy()[0, :, :, 0], want)

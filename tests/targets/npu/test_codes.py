from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resq_tvm.targets.npu.codes import code_bytes, code_range, pack, unpack


@given(
    bits=st.sampled_from([2, 4, 8]),
    pixels=st.integers(1, 4),
    count=st.integers(1, 21),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_codes_come_back_from_any_place_on(bits, pixels, count, seed, data):
    least, most = code_range(bits)
    codes = np.random.default_rng(seed).integers(least, most + 1, (pixels, count), np.int8)
    packed = pack(codes, bits)
    assert packed.shape == (pixels, code_bytes(count, bits))
    first = data.draw(st.integers(0, count - 1))
    length = data.draw(st.integers(1, count - first))
    np.testing.assert_array_equal(
        unpack(packed, bits, length, first), codes[:, first : first + length]
    )


@pytest.mark.parametrize(
    "bits,codes,expected",
    [
        (4, [1, -1, 7], [0xF1, 0x07]),
        (2, [1, -1, -2, 0, 1], [0b00_10_11_01, 0b01]),
        (8, [-1, 5], [0xFF, 5]),
    ],
)
def test_first_code_lies_in_the_lowest_bits_and_the_rest_is_zero(bits, codes, expected):
    assert pack(np.array(codes, np.int32), bits).tolist() == expected


def test_packing_takes_views_that_are_not_contiguous():
    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    np.testing.assert_array_equal(unpack(pack(codes.T, 4), 4, 4), codes.T)
    np.testing.assert_array_equal(unpack(pack(codes[:, ::2], 8), 8, 2), codes[:, ::2])

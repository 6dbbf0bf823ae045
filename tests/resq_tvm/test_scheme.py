"""Schemes with pools of bits and with activations of two codes: grammar and errors."""

from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.errors import SchemeError
from resq_tvm.scheme import Bits, PrecisionPlan, Scheme, code_limit, split


@pytest.mark.parametrize(
    ("text", "pool"),
    [
        ("W8A{0,4,8}", (0, 4, 8)),
        ("W8A{4,8}", (4, 8)),
        ("w4a{ 0, 3 }", (0, 3)),
        ("W2A{0,2}", (0, 2)),
    ],
)
def test_pool(text: str, pool: tuple[int, ...]) -> None:
    bits = Bits.parse(text)
    assert (bits.pool, bits.activation) == (pool, pool[-1])
    assert Bits.parse(str(bits)) == bits


def test_scheme_with_a_pool() -> None:
    scheme = Scheme.parse(" W8A8 -> W8A{0,4,8} ")
    assert str(scheme) == "W8A8->W8A{0,4,8}"
    assert scheme.dynamic
    assert scheme.key == Bits(8, 8)
    assert scheme.residual == Bits(8, 8, (0, 4, 8))
    assert not Scheme.parse("W8A8->W8A8").dynamic and not Scheme.parse("W8A4").dynamic


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("W8A8->W8A{8}", "malformed pool"),
        ("W8A8->W8A{}", "malformed pool"),
        ("W8A8->W8A{8,4}", "malformed pool"),
        ("W8A8->W8A{4,4}", "malformed pool"),
        ("W8A8->W8A{0,four}", "malformed pool"),
        ("W8A8->W8A{-2,4}", "-2 activation bits"),
        ("W8A8->W8A{0,1}", "1 activation bits"),
        ("W8A8->W8A{0,9}", "9 activation bits"),
        ("W8A8->W{0,8}A8", "not of the form"),
        ("W8A8->W8A{0,8", "not of the form"),
        ("W8A{0,8}->W8A8", "pool of bits is for residual frames"),
        ("W8A{0,8}", "pool of bits is for residual frames"),
        ("W8A16->W8A{0,16}", "16 activation bits; use 2 to 8 bits$"),
        ("W8A16->W8A16", "more than 8 activation bits are for keyframes; .*W8A16->W8A8"),
        ("W8A9->W8A8", "9 activation bits; use 2 to 8 bits, or 10 to 16 on keyframes"),
        ("W8A17", "17 activation bits"),
        ("W16A16", "16 weight bits; use 2 to 8 bits$"),
    ],
)
def test_malformed_pools(text: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message) as caught:
        Scheme.parse(text)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_overrides_mix_pools_and_fixed_bits() -> None:
    plan = PrecisionPlan(
        Scheme.parse("W8A8->W8A{0,4,8}"), {"stem": "W8A8->W8A8", "b*": "W8A8->W4A{4,8}"}
    )
    assert plan.resolve(["stem", "body", "head"], frozenset()) == {
        "stem": "W8A8->W8A8",
        "body": "W8A8->W4A{4,8}",
        "head": "W8A8->W8A{0,4,8}",
    }


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_keyframes_may_have_two_codes(bits: int, rng: np.random.Generator) -> None:
    scheme = Scheme.parse(f"W8A{bits}->W8A8")
    assert scheme.key == Bits(8, bits) and str(scheme) == f"W8A{bits}->W8A8"
    scale = 3.0 / code_limit(bits)
    (coarse_bits, coarse), (fine_bits, fine) = split(bits, scale)
    assert (coarse_bits, fine_bits) == (8, bits - 8)
    x = rng.uniform(-3, 3, 1000)
    first = np.clip(np.rint(x / coarse), -127, 127)
    rest = np.rint((x - first * coarse) / fine)
    assert np.abs(rest).max() == code_limit(fine_bits)
    assert np.abs(first * coarse + rest * fine - x).max() <= 0.501 * fine


@pytest.mark.parametrize("bits", [2, 8])
def test_one_code_stays_as_it_is(bits: int) -> None:
    assert split(bits, 0.1) == ((bits, 0.1),)

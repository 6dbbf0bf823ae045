"""Schemes with pools of bits: grammar and errors."""

from __future__ import annotations

import pytest

from resq_tvm.errors import SchemeError
from resq_tvm.scheme import Bits, PrecisionPlan, Scheme


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

"""Budgets as users write them."""

from __future__ import annotations

import pytest

from resq_tvm.errors import ConfigError
from resq_tvm.quantize.budget import Budget


@pytest.mark.parametrize(
    ("text", "kind", "amount", "unit"),
    [
        ("0.5 mIoU", "points", 0.5, "100 - mIoU"),
        ("0.2px", "points", 0.2, "px"),
        (".3 % pixels", "points", 0.3, "% pixels"),
        ("2 % output", "points", 2.0, "% output"),
        ("1 %", "relative", 0.01, ""),
        ("90 % recovery", "recovery", 0.9, ""),
        ("40 % work", "work", 0.4, ""),
        ("40% work", "work", 0.4, ""),
        ("5 ms", "cost", 5.0, "ms"),
    ],
)
def test_texts(text: str, kind: str, amount: float, unit: str) -> None:
    budget = Budget.parse(text)
    assert (budget.kind, budget.unit) == (kind, unit)
    assert budget.amount == pytest.approx(amount)
    assert budget.limits_cost == (kind in ("work", "cost"))


@pytest.mark.parametrize(
    "text", ["", "5", "px", "-1 px", "1 2 px", "3 miles", "0 % work", "0 ms", "101 % recovery"]
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ConfigError, match="budget") as caught:
        Budget.parse(text)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


def test_limits() -> None:
    assert Budget.parse("0.5 mIoU").error_limit(30.0, 29.0, 40.0) == 30.5
    assert Budget.parse("10 %").error_limit(30.0, 29.0, 40.0) == pytest.approx(33.0)
    assert Budget.parse("90 % recovery").error_limit(30.0, 29.0, 40.0) == pytest.approx(31.0)
    assert Budget.parse("40 % work").cost_limit(20.0) == pytest.approx(8.0)
    assert Budget.parse("5 ms").cost_limit(20.0) == 5.0


@pytest.mark.parametrize(("error", "frame", "hold"), [(9.0, 9.0, 11.0), (13.0, 9.0, 12.0)])
def test_recovery_needs_something_that_moves(error: float, frame: float, hold: float) -> None:
    with pytest.raises(
        ConfigError, match=f"holding the keyframe's output has an error of {hold:g}"
    ):
        Budget.parse("90 % recovery").error_limit(error, frame, hold)


def test_points_need_their_unit() -> None:
    Budget.parse("0.2 px").check_unit("px")
    Budget.parse("1 %").check_unit("100 - mIoU")
    Budget.parse("0.2 px").check_unit("")
    with pytest.raises(ConfigError, match=r"0\.2 px does not fit an error in 100 - mIoU"):
        Budget.parse("0.2 px").check_unit("100 - mIoU")

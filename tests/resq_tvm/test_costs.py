"""What the cost model learns, without a clock."""

from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.costs import SHARES, CostModel


def taught(rounds: int = 30) -> CostModel:
    """Return a model that saw a machine of 8, 6 and 1 + 10 * share ms."""
    costs = CostModel()
    for n in range(rounds):
        costs.saw_keyframe(8.0)
        costs.saw_frame(6.0)
        for share in np.linspace(0, 1, 9):
            costs.saw_residual(float(share), 1 + 10 * float(share))
        costs.saw_probe(0.2)
        assert costs.knows_frame is (n > 0)
    return costs


def test_everything_is_learned() -> None:
    costs = taught()
    assert costs.keyframe == pytest.approx(8, rel=0.01)
    assert costs.frame == pytest.approx(6, rel=0.02)
    assert costs.probe == pytest.approx(0.2)
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        assert costs.residual(share) == pytest.approx(1 + 10 * share, rel=0.15, abs=0.4)


def test_before_residuals_are_seen_they_are_guessed_from_the_keyframe() -> None:
    costs = CostModel()
    costs.saw_keyframe(30.0)
    costs.saw_keyframe(10.0)  # the first run warmed up
    assert costs.keyframe == 10
    assert costs.residual(0) < 2 < 6 < costs.residual(1)


def test_the_curve_rises_whatever_was_measured() -> None:
    costs = CostModel()
    costs.saw_keyframe(10.0)
    rng = np.random.default_rng(0)
    for share, ms in rng.uniform(0, 1, (200, 2)):
        costs.saw_residual(float(share), float(ms) * 20)
        curve = [costs.residual(s) for s in SHARES]
        assert curve == sorted(curve)


def test_a_slow_frame_tells_about_larger_shares_too() -> None:
    costs = CostModel()
    costs.saw_keyframe(10.0)
    for _ in range(10):
        costs.saw_residual(0.15, 14.0)
    assert costs.residual(0.15) == pytest.approx(14, rel=0.1)
    assert costs.residual(0.9) >= costs.residual(0.5) >= 0.99 * costs.residual(0.2)


def test_what_was_slow_is_forgotten() -> None:
    costs = CostModel()
    costs.saw_keyframe(10.0)
    before = costs.residual(0.1)
    for _ in range(10):
        costs.saw_residual(0.1, 30.0)
    assert costs.residual(0.1) > 2 * before
    for _ in range(1500):
        costs.saw_frame(8.0)
    assert costs.residual(0.1) < 1.1 * before


def test_one_outlier_does_not_count_in_full() -> None:
    costs = taught()
    costs.saw_keyframe(1000.0)
    assert costs.keyframe < 8 * 1.3
    costs.saw_residual(0.5, 1000.0)
    assert costs.residual(0.5) < 6 * 1.6


def test_frames_tell_how_fast_the_machine_is_now() -> None:
    costs = taught()
    for _ in range(20):
        costs.saw_frame(12.0)
    assert costs.keyframe == pytest.approx(16, rel=0.05)

"""F, H, e and the recovery on sequences whose errors are known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from resq_tvm.errors import ConfigError
from resq_tvm.evaluate.judge import hold, judge, predict, recovery


def distance(predictions: Sequence[float], frames: Sequence[int]) -> float:
    """Mean distance to the truth, which is the frame's number."""
    return sum(abs(predictions[n] - n) for n in frames) / len(frames)


def test_recovery_by_hand() -> None:
    assert recovery(1.0, 3.0, 1.5) == pytest.approx(0.75)
    assert recovery(1.0, 3.0, 4.0) == pytest.approx(-0.5)


def test_recovery_does_not_count_where_nothing_moves() -> None:
    assert recovery(1.0, 1.24, 1.0) is None
    assert recovery(1.0, 1.25, 1.0) == pytest.approx(1.0)
    assert recovery(0.0, 0.0, 0.0) is None


def test_holding_repeats_the_frame_prediction_of_the_keyframe() -> None:
    frame = [n + 0.1 for n in range(8)]
    scheme = [n + 0.5 for n in range(8)]
    judged = judge(frame, scheme, 4, distance)
    assert judged.residual.frames == 6 and judged.all.frames == 8
    assert judged.residual.frame == pytest.approx(0.1)
    # Held 0.1 on frames 1, 2, 3 and 4.1 on frames 5, 6, 7: errors 0.9, 1.9, 2.9.
    assert judged.residual.hold == pytest.approx(1.9)
    assert judged.residual.scheme == pytest.approx(0.5)
    assert judged.residual.recovery == pytest.approx((1.9 - 0.5) / (1.9 - 0.1))
    assert judged.all.hold == pytest.approx((2 * 0.1 + 6 * 1.9) / 8)
    assert judged.to_dict()["residual"]["counts"] is True


def test_only_counted_frames_count_but_keyframes_stay_where_they_are() -> None:
    frame = [float(n) for n in range(8)]
    judged = judge(frame, frame, 4, distance, counted=[3, 4, 5])
    assert judged.residual.frames == 2
    assert judged.residual.hold == pytest.approx((3 + 1) / 2)


def test_keyframes_may_lie_anywhere() -> None:
    frame = [float(n) for n in range(6)]
    judged = judge(frame, [n + 0.5 for n in frame], [0, 1, 4], distance)
    assert (judged.period, judged.keyframes) == (None, 3)
    assert judged.residual.frames == 3
    assert judged.residual.hold == pytest.approx((1 + 2 + 1) / 3)
    assert hold(frame, [0, 1, 4]) == [0, 1, 1, 1, 4, 4]
    assert judge(frame, frame, 4, distance).to_dict()["keyframes"] == 2
    with pytest.raises(ConfigError, match="frame 0 is not among the keyframes"):
        judge(frame, frame, [1, 4], distance)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="4 frame predictions beside 3"):
        judge([0.0] * 4, [0.0] * 3, 2, distance)
    with pytest.raises(ConfigError, match="period 1"):
        judge([0.0] * 4, [0.0] * 4, 1, distance)
    with pytest.raises(ConfigError, match="frame 9 counts but the clip has 4"):
        judge([0.0] * 4, [0.0] * 4, 2, distance, counted=[1, 9])
    with pytest.raises(ConfigError, match="none of the 2 counted"):
        judge([0.0] * 4, [0.0] * 4, 2, distance, counted=[0, 2])


def test_predict_starts_the_stream_anew() -> None:
    class Counter:
        count = 5

        def reset(self) -> None:
            self.count = 0

        def __call__(self, frame: int) -> int:
            self.count += 1
            return frame + self.count

    assert predict(Counter(), [10, 20], str) == ["11", "22"]

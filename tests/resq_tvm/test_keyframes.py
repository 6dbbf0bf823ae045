"""The rules for keyframes on streams of numbers: shares that changed, and fixed costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from resq_tvm.errors import ConfigError
from resq_tvm.keyframes import LONGEST_REST, Decision, KeyframePolicy, KeyframeSchedule
from tests.dynamic import FixedCosts

Scene = Iterable[float]  # a number per frame: what changed between two is their distance


class Stream:
    """Frames that are numbers; the share that changed between two is their distance, at most 1."""

    def __init__(
        self,
        policy: KeyframePolicy,
        limit: int = 8,
        costs: FixedCosts | None = None,
        changed: Callable[[float, float], float] = lambda a, b: min(abs(a - b), 1),
        **parts: bool,
    ) -> None:
        self.costs = costs or FixedCosts()
        all_parts = {"can_probe": True, "can_rest": True, "can_peek": True, **parts}
        self.schedule = KeyframeSchedule(policy, limit, self.costs, **all_parts)
        self.changed = changed
        self.key = self.noted = 0.0
        self.reasons: list[str] = []
        self.ms = 0.0

    def play(self, scene: Scene) -> str:
        """Return a letter per frame: K, r, f or =."""
        return "".join(self.step(frame) for frame in scene)

    def step(self, frame: float) -> str:
        schedule, costs = self.schedule, self.costs
        decision, share = schedule.start(), None
        if decision == "latest":
            share = self.changed(frame, self.noted)
            decision = schedule.after_latest(share)
        if decision == "peek":
            share = self.changed(frame, self.noted)
            decision = schedule.after_peek(share)
        if decision == "probe":
            share = self.changed(frame, self.key)
            decision = schedule.after_probe(share)
        assert isinstance(decision, Decision)
        if schedule.keeps(decision.kind):
            self.noted = frame
        ms = {"keyframe": costs.keyframe, "frame": costs.frame, "repeat": 0.0}.get(decision.kind)
        ms = costs.residual(share or 0) if ms is None else ms
        looked = costs.probe if share is not None else 0.0
        self.ms += ms + looked
        schedule.note(decision.kind, ms, share, looked)
        if decision.kind == "keyframe":
            self.key = frame
        self.reasons.append(decision.reason or "")
        return {"keyframe": "K", "residual": "r", "frame": "f", "repeat": "="}[decision.kind]


STILL = [0.0] * 200
MOVING = [float(n) for n in range(200)]


def test_period() -> None:
    stream = Stream(KeyframePolicy(), limit=3)
    assert stream.play(STILL[:8]) == "KrrKrrKr"
    assert stream.reasons == ["first", "", "", "period", "", "", "period", ""]


def test_forced_and_lost() -> None:
    stream = Stream(KeyframePolicy(), limit=3)
    stream.schedule.force("lost")
    stream.play(STILL[:2])
    stream.schedule.force("forced")
    stream.play(STILL[:3])
    stream.schedule.force("lost")
    stream.play(STILL[:1])
    assert stream.reasons == ["first", "", "forced", "", "", "lost"]


def test_artifacts_without_residuals_or_probe_just_count() -> None:
    alone = Stream(KeyframePolicy(), has_residual=False)
    assert alone.play(MOVING[:3]) == "KKK" and set(alone.reasons) == {"stateless"}
    dense = Stream(KeyframePolicy(), 3, can_probe=False, can_rest=False, can_peek=False)
    assert dense.play(MOVING[:7]) == "KrrKrrK"


def test_a_moving_camera_costs_hardly_more_than_frames_alone() -> None:
    for policy in (KeyframePolicy(), KeyframePolicy("adaptive")):
        stream = Stream(policy, 8)
        played = stream.play(MOVING)
        assert played == "K" + "f" * 199
        assert stream.reasons[1:] == ["cost"] * 199
        assert stream.ms < 1.02 * 200 * stream.costs.frame


def test_rests_double_up_to_the_longest() -> None:
    stream = Stream(KeyframePolicy(), can_peek=False)
    played = stream.play(MOVING[:120])
    rests = [len(part) for part in played.strip("K").split("K")]
    assert rests[:5] == [2, 4, 8, 16, LONGEST_REST] and LONGEST_REST == 16
    assert stream.reasons[3] == "resume"
    # Even the tries with whole keyframes stay within the promise.
    late = stream.play(MOVING)
    cost = late.count("K") * stream.costs.keyframe + late.count("f") * stream.costs.frame
    assert cost + late.count("K") * stream.costs.probe < 1.05 * len(late) * stream.costs.frame


def test_residuals_come_back_when_the_scene_calms() -> None:
    stream = Stream(KeyframePolicy(), 8)
    stream.play(MOVING[:40])
    played = stream.play([40.0] * 60)
    first = played.index("K")
    assert first <= LONGEST_REST + 1
    assert stream.reasons[40 + first] == "resume"
    assert set(played[first:]) == {"K", "r"}
    assert stream.reasons[-60 + first + 8] == "period"


def test_residuals_that_save_less_than_their_keyframe_costs_stop() -> None:
    # A residual frame saves 0.1 of 5 ms: seven of them do not pay the keyframe's 2 ms.
    stream = Stream(KeyframePolicy(), 8, FixedCosts(full=4.8), lambda a, b: 1.0)
    played = stream.play(STILL)
    assert played.startswith("Krrrrrrrff")
    assert stream.ms < 1.02 * len(played) * stream.costs.frame


def test_without_frames_alone_the_guard_takes_keyframes() -> None:
    stream = Stream(KeyframePolicy(), can_rest=False, can_peek=False)
    assert stream.play(MOVING[:6]) == "KKKKKK"
    assert stream.reasons[1:] == ["cost"] * 5


def test_without_the_guard_everything_is_a_residual() -> None:
    assert Stream(KeyframePolicy(guard=False), 4).play(MOVING[:9]) == "KrrrKrrrK"


def test_the_cost_of_frames_alone_is_measured_first() -> None:
    costs = FixedCosts(knows_frame=False)
    stream = Stream(KeyframePolicy(), costs=costs)
    assert stream.play(STILL[:3]) == "Kff"
    costs.knows_frame = True
    assert stream.play(STILL[:2]) == "rr"
    assert stream.reasons == ["first", "measure", "measure", "", ""]


def cut(at: int, length: int) -> list[float]:
    return [0.0] * at + [5.0] * (length - at)


def test_adaptive_keyframes_follow_cuts() -> None:
    stream = Stream(KeyframePolicy("adaptive"), 32)
    assert stream.play(cut(20, 40)) == "K" + "r" * 19 + "K" + "r" * 19
    assert stream.reasons[20] == "scene"


def test_adaptive_keyframes_come_at_the_latest_at_max_distance() -> None:
    stream = Stream(KeyframePolicy("adaptive", max_distance=5), 5)
    assert stream.play(STILL[:11]) == "KrrrrKrrrrK"
    assert stream.reasons[5] == "max_distance"


def test_adaptive_keyframes_wait_for_min_distance() -> None:
    policy = KeyframePolicy("adaptive", min_distance=6)
    stream = Stream(policy, 32)
    played = stream.play(cut(2, 20))
    assert stream.reasons[2] == "cost" and played[2] == "f"
    assert "K" not in played[1:6] and "K" in played[6:10]


def test_a_lasting_change_is_renewed_once() -> None:
    stream = Stream(KeyframePolicy("adaptive"), 32)
    played = stream.play([0.0] * 10 + [0.2] * 20)
    assert played.count("K") == 2 and "K" in played[10:12]
    assert "scene" in stream.reasons


def test_steady_movement_is_not_renewed_again_and_again() -> None:
    # The same share changes right after a keyframe as long after it: nothing is gained.
    stream = Stream(KeyframePolicy("adaptive"), 16, changed=lambda a, b: 0.3)
    played = stream.play(STILL[:160])
    assert played == ("K" + "r" * 15) * 10


def test_drift_is_renewed_where_the_average_is_lowest() -> None:
    # A frame n after its keyframe costs 1 + 0.36 n beside the keyframe's 7.
    stream = Stream(KeyframePolicy("adaptive"), 32)
    played = stream.play(0.04 * n for n in range(120))
    length = len(played.split("K")[3]) + 1

    def average(frames: int) -> float:
        residuals = [1 + 9 * 0.04 * n + stream.costs.probe for n in range(1, frames)]
        return (stream.costs.keyframe + sum(residuals)) / frames

    best = min(range(2, 32), key=average)
    assert average(length) < 1.03 * average(best)
    assert set(stream.reasons) == {"first", "scene", ""}


def test_policies_are_checked() -> None:
    with pytest.raises(ConfigError, match="keyframes 'sometimes'"):
        KeyframePolicy("sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="min distance 0"):
        KeyframePolicy(min_distance=0)
    with pytest.raises(ConfigError, match="needs keyframes 'adaptive'"):
        KeyframePolicy(max_distance=4)
    with pytest.raises(ConfigError, match="max distance 2 is below min distance 3"):
        KeyframePolicy("adaptive", 3, 2)
    assert KeyframePolicy("adaptive").limit(8) == 32
    assert KeyframePolicy().limit(8) == 8


def test_still_frames_repeat_until_the_period_ends() -> None:
    for guard in (False, True):
        stream = Stream(KeyframePolicy(guard=guard, repeat=0.0), 4)
        assert stream.play(STILL[:10]) == "K===" + ("f===f=" if guard else "K===K=")
        assert stream.reasons[1:4] == ["repeat"] * 3


def test_a_frame_repeats_the_one_computed_last() -> None:
    # Each step is small, but they add up: every fourth frame is computed.
    stream = Stream(KeyframePolicy(guard=False, repeat=0.1), 32)
    assert stream.play(0.03 * n for n in range(13)) == "K===r===r===r"
    assert stream.play([5.0, 5.05]) == "r="


def test_repeats_do_not_make_keyframes_pay() -> None:
    # Two frames alike, then all is new: a keyframe would be wasted on the one frame it serves.
    stream = Stream(KeyframePolicy(repeat=0.1), 8)
    played = stream.play(float(n // 2) for n in range(40))
    assert played == "K=" + "f=" * 19
    assert stream.ms < 1.1 * 20 * stream.costs.frame


def test_groups_of_few_computed_frames_end_sooner() -> None:
    # Residuals are cheaper than frames on their own, but every period has only three computed ones.
    stream = Stream(KeyframePolicy(repeat=0.25), 8)
    played = stream.play(0.36 * (n // 3) for n in range(120))
    assert stream.costs.residual(0.36) < stream.costs.frame
    assert played == "K==r==" + "f==" * 38
    every = Stream(KeyframePolicy(), 8).play(0.03 * n for n in range(16))
    assert every == "KrrrrrrrKrrrrrrr"


def test_residuals_come_back_beside_repeats() -> None:
    stream = Stream(KeyframePolicy(repeat=0.01), 8)
    stream.play(MOVING[:30])
    played = stream.play([30 + 0.05 * (n % 2) for n in range(60)])
    assert "Krrrrrrr" in played


def test_the_share_to_repeat_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"repeat 1\.5 is out of range; give a share, 0 to 1"):
        KeyframePolicy(repeat=1.5)

"""The C++ rules for keyframes and its cost model decide and learn as Python's, number by number."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from resq_tvm.costs import CostModel
from resq_tvm.keyframes import Decision, KeyframePolicy, KeyframeSchedule
from tests.resq_tvm.edge.harness import call

PERIOD = 8
COSTS = {"keyframe": 7.0, "frame": 5.0, "repeat": 0.0}
PROBE = 0.1
POLICIES = {
    "period": KeyframePolicy(guard=False),
    "guard": KeyframePolicy(),
    "adaptive": KeyframePolicy("adaptive"),
    "adaptive without the guard": KeyframePolicy("adaptive", guard=False),
    "distances": KeyframePolicy("adaptive", min_distance=5, max_distance=11),
    "repeat": KeyframePolicy(repeat=0.02),
    "repeat, adaptive": KeyframePolicy("adaptive", repeat=0.02),
}
ABILITIES = {
    "all": {"can_probe": True, "can_rest": True, "can_peek": True},
    "no peek": {"can_probe": True, "can_rest": True, "can_peek": False},
    "no frame": {"can_probe": True, "can_rest": False, "can_peek": False},
    "none": {"can_probe": False, "can_rest": False, "can_peek": False},
}


def stream(seed: int, length: int = 400) -> tuple[list[float], list[float]]:
    """Return frames, and how many times the usual each takes; negative after a lost frame.

    Calm stretches, drifts, cuts and restless ones follow each other; the machine gets slower now
    and then.
    """
    rng = np.random.default_rng(seed)
    frames, speeds = [], []
    place, pace = 0.0, 1.0
    while len(frames) < length:
        step, spread = rng.choice([0, 0.01, 0.2]), rng.choice([0, 0.02, 0.6])
        for _ in range(rng.integers(5, 60)):
            place += step
            frames.append(float(place + rng.uniform(-spread, spread)))
            pace = rng.uniform(0.5, 4) if rng.random() < 0.03 else pace
            lost = -1 if rng.random() < 0.02 else 1
            speeds.append(lost * pace * float(rng.uniform(0.9, 1.2)))
        place += rng.choice([0, 3])
    return frames, speeds


def in_python(
    policy: KeyframePolicy, abilities: dict[str, bool], full: float, given: list[tuple[float, ...]]
) -> list[str]:
    """Return what `rules` prints: kind, reason, and what the cost model has learned."""
    costs = CostModel()
    schedule = KeyframeSchedule(policy, policy.limit(PERIOD), costs, **abilities)
    key = noted = 0.0
    lines = []
    for frame, drift in given:
        if drift < 0:
            schedule.force("lost")
        speed = abs(drift)
        share = None
        step = schedule.start()
        if step == "latest":
            share = min(abs(frame - noted), 1)
            step = schedule.after_latest(share)
        if step == "peek":
            share = min(abs(frame - noted), 1)
            step = schedule.after_peek(share)
        if step == "probe":
            share = min(abs(frame - key), 1)
            step = schedule.after_probe(share)
        assert isinstance(step, Decision)
        if schedule.keeps(step.kind):
            noted = frame
        if step.kind == "keyframe":
            key = frame
        ms = COSTS.get(step.kind, full * (share or 0) + 1)
        schedule.note(step.kind, ms * speed, share, PROBE * speed)
        told = (
            costs.keyframe,
            costs.frame,
            costs.probe,
            costs.residual(0.3 if share is None else share),
        )
        lines.append(f"{step.kind} {step.reason or ''} " + " ".join(f"{ms:.17g}" for ms in told))
    return lines


@pytest.mark.parametrize("abilities", ABILITIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_decisions_and_costs_are_those_of_python(
    policy: str, abilities: str, runtime: Path
) -> None:
    if "repeat" in policy and not ABILITIES[abilities]["can_peek"]:
        pytest.skip("sessions refuse it")
    chosen = POLICIES[policy]
    options = {
        "period": PERIOD, "adaptive": int(chosen.mode == "adaptive"), "guard": int(chosen.guard),
        "min_distance": chosen.min_distance, "max_distance": chosen.max_distance or 0,
        **{name: int(can) for name, can in ABILITIES[abilities].items()},
    }  # fmt: skip
    if chosen.repeat is not None:
        options["repeat"] = chosen.repeat
    kinds = set()
    for seed, full in product(range(3), (2.5, 3.0, 5.0, 9.0, 20.0)):
        given = list(zip(*stream(seed), strict=True))
        words = [str(word) for pair in {**options, "full": full}.items() for word in pair]
        text = "\n".join(f"{frame!r} {drift!r}" for frame, drift in given)
        found = call([runtime / "bin" / "rules", *words], text.encode()).stdout.decode()
        want = in_python(chosen, ABILITIES[abilities], full, given)
        assert found.splitlines() == want
        kinds |= {line.split()[0] for line in want}
    guarded = chosen.guard and ABILITIES[abilities]["can_rest"]
    assert ("frame" in kinds, "repeat" in kinds) == (guarded, chosen.repeat is not None)

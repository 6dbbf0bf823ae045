"""Guard, adaptive keyframes and repeated outputs in the C++ runtime: Python's, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from resq_tvm import compiler
from resq_tvm.artifact import Artifact
from resq_tvm.errors import ConfigError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.quantize.qnet import QuantizedNetwork
from tests.dynamic import FixedCosts, dynamic, small_network
from tests.graphs import random_network
from tests.resq_tvm import tiny_artifact
from tests.resq_tvm.edge.harness import (
    Frame,
    Played,
    bytes_of,
    call,
    clip,
    in_python,
    resq_run,
)
from tests.resq_tvm.test_dynamic_session import calm, corners, moving, scene

PERIOD = 4
COSTS = FixedCosts()
OWN = ("--costs", f"keyframe={COSTS.keyframe},frame={COSTS.frame},probe={COSTS.probe},"
       f"residual@0={COSTS.residual(0)},residual@1={COSTS.residual(1)}")  # fmt: skip


@pytest.fixture(scope="module")
def network() -> QuantizedNetwork:
    return dynamic(small_network(), period=PERIOD)


@pytest.fixture(scope="module")
def artifact(network: QuantizedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return compiler.compile(network, output=tmp_path_factory.mktemp("policies") / "net.resq")


def options(policy: KeyframePolicy) -> list[object]:
    words: list[object] = ["--keyframes", policy.mode, "--min-distance", policy.min_distance]
    if policy.max_distance is not None:
        words += ["--max-distance", policy.max_distance]
    if policy.repeat is not None:
        words += ["--repeat", policy.repeat]
    return words if policy.guard else [*words, "--no-guard"]


def play(
    runtime: Path, artifact: Artifact, frames: list[Frame], policy: KeyframePolicy, period: int
) -> Played:
    """Play frames in both worlds, which must agree; return what both made of them."""
    want = in_python(artifact, frames, period, policy=policy, costs=COSTS)
    program = [runtime / "bin" / "resq-run"]
    words = ["--period", period, *options(policy), *OWN]
    found = resq_run(program, artifact.path, frames, *words)
    assert found.frames == want.frames
    assert found.outputs == want.outputs
    return found


def letters(played: Played) -> str:
    return "".join("=" if kind == "repeat" else kind[0] for kind, _, _ in played.frames)


def test_the_guard(artifact: Artifact, runtime: Path) -> None:
    frames = [*calm(6), *moving(24), *calm(24)]
    played = play(runtime, artifact, frames, KeyframePolicy(), PERIOD)
    assert letters(played).startswith("krrrkr")
    assert letters(played)[6:30].count("f") >= 22
    assert "krrrkrrr" in letters(played)[30:]
    assert {reason for _, reason, _ in played.frames} == {"first", "", "period", "cost", "resume"}


def test_adaptive_keyframes(artifact: Artifact, runtime: Path) -> None:
    frames = [*calm(8), *[scene(1)] * 6]
    played = play(runtime, artifact, frames, KeyframePolicy("adaptive"), PERIOD)
    assert letters(played) == "krrrrrrrkrrrrr" and played.frames[8][1] == "scene"
    policy = KeyframePolicy("adaptive", min_distance=3, max_distance=5)
    played = play(runtime, artifact, frames, policy, PERIOD)
    assert "max_distance" in {reason for _, reason, _ in played.frames}


@pytest.mark.parametrize("state_dtype", ["float16", "float32"])
def test_repeats_between_residual_frames(
    network: QuantizedNetwork, state_dtype: str, runtime: Path, tmp_path: Path
) -> None:
    artifact = compiler.compile(network, output=tmp_path / "n.resq", state_dtype=state_dtype)
    policy = KeyframePolicy(guard=False, repeat=0.0)
    frames = [*corners("0112203310"), *moving(2)]
    assert letters(play(runtime, artifact, frames, policy, 12)) == "kr=r=rr=rrrr"


@pytest.mark.parametrize("state_dtype", ["float16", "float32"])
def test_repeats_between_frames_on_their_own(
    network: QuantizedNetwork, state_dtype: str, runtime: Path, tmp_path: Path
) -> None:
    artifact = compiler.compile(network, output=tmp_path / "n.resq", state_dtype=state_dtype)
    frames = [*(frame for frame in moving(8) for _ in range(2)), *calm(20)]
    played = play(runtime, artifact, frames, KeyframePolicy(repeat=0.0), PERIOD)
    assert letters(played).startswith("k=" + "f=" * 7) and "resume" in str(played.frames)


def test_an_artifact_without_a_frame_program(
    network: QuantizedNetwork, runtime: Path, tmp_path: Path
) -> None:
    artifact = compiler.compile(network, output=tmp_path / "n.resq", frame_program=False)
    played = play(runtime, artifact, calm(2) + moving(3), KeyframePolicy(), PERIOD)
    assert letters(played) == "krkkk"


def test_several_outputs_that_residual_frames_write_in_place(runtime: Path, tmp_path: Path) -> None:
    artifact = compiler.compile(dynamic(random_network(9)), output=tmp_path / "n.resq")
    frames = [frame for frame in clip(artifact.manifest.inputs[0].shape, 8) for _ in range(2)]
    for policy in (KeyframePolicy(repeat=0.05), KeyframePolicy("adaptive", repeat=0.05)):
        assert "=" in letters(play(runtime, artifact, frames, policy, PERIOD))


def test_costs_are_learned_from_frames(artifact: Artifact, runtime: Path) -> None:
    words = [runtime / "bin" / "resq-run", artifact.path, "--threads", 1, "--times"]
    told = call(words, bytes_of(calm(6))).stderr.decode().splitlines()
    assert ['"reason": "measure"' in line for line in told] == [n in (1, 2) for n in range(6)]


def test_static_schemes_are_refused_with_the_words_of_python(runtime: Path, tmp_path: Path) -> None:
    static = tiny_artifact.write(tmp_path / "n.resq")
    for policy in (KeyframePolicy("adaptive"), KeyframePolicy(repeat=0.1)):
        with pytest.raises(ConfigError) as caught:
            in_python(static, [], PERIOD, policy=policy)
        words = [runtime / "bin" / "resq-run", static.path, *options(policy)]
        told = call(words, code=1).stderr.decode()
        assert told == f"resq-run: error: {caught.value}\n"

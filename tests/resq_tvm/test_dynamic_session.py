"""Sessions of a scheme that chooses bits: three programs, one answer per frame."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from resq_tvm import compiler
from resq_tvm.artifact import Artifact
from resq_tvm.breakeven import SHARES, changed_frame, crossing, measure_break_even
from resq_tvm.cli import main
from resq_tvm.compiler import lower_network
from resq_tvm.errors import ConfigError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.passes.partition import Partition
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.reference.executor import Executor
from resq_tvm.schedules.choice import Chosen, by_rules
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.session import Session
from resq_tvm.targets.preset import get_target
from tests.dynamic import SIDE, FixedCosts, dynamic, qnet, small_network
from tests.graphs import annotated
from tests.resq_tvm import tiny_artifact

Frame = NDArray[np.float32]
PERIOD = 4


@pytest.fixture(scope="module")
def network() -> QuantizedNetwork:
    return dynamic(small_network(), period=PERIOD)


@pytest.fixture(scope="module")
def artifact(network: QuantizedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("dynamic") / "net.resq"
    return compiler.compile(network, output=folder)


class Reference:
    """The network's programs in PyTorch; which one runs is said from outside."""

    def __init__(self, network: QuantizedNetwork, state_dtype: str = "float16") -> None:
        programs = Partition(state_dtype)(network.module)
        self.keyframe = Executor(programs["keyframe"], watch=())
        self.residual = Executor(programs["residual"], watch=())
        alone = annotated(small_network(), "W8A8")
        self.frame = Executor(Partition("float32")(alone)["keyframe"], watch=())
        self.state: Any = None

    def __call__(self, program: str, frame: Frame) -> Frame:
        x = torch.from_numpy(frame)
        with torch.no_grad():
            if program == "keyframe":
                outputs, self.state = self.keyframe(x)
            elif program == "frame":
                outputs, _ = self.frame(x)
            else:
                outputs, _ = self.residual(x, *self.state)
        return np.asarray(outputs[0].numpy())


def still() -> Frame:
    return np.random.default_rng(1).standard_normal((1, SIDE, SIDE, 3)).astype(np.float32)


def scene(seed: int) -> Frame:
    return np.random.default_rng(seed + 10).standard_normal((1, SIDE, SIDE, 3)).astype(np.float32)


def calm(count: int) -> list[Frame]:
    """A picture in whose corner something happens."""
    frames = []
    for n in range(count):
        frame = still()
        frame[:, :4, : 2 + n % 3] += np.float32(0.5)
        frames.append(frame)
    return frames


def moving(count: int) -> list[Frame]:
    return [scene(n) for n in range(count)]


def play(session: Session, reference: Reference, frames: list[Frame]) -> str:
    """Run frames, hold every output against the reference, return a letter per frame."""
    letters = ""
    y = frames[0]
    for frame in frames:
        before, y = y, session(frame)
        assert session.last is not None
        if session.last.kind == "repeat":
            np.testing.assert_array_equal(y, before)
            letters += "="
            continue
        want = reference(session.last.kind, frame)
        # float32 sums of another order may round a code otherwise, once in a while.
        off = np.abs(y - want) > 1e-4 * np.abs(want).max()
        assert off.mean() < 0.001, (session.last, off.mean())
        letters += session.last.kind[0]
    return letters


def corners(text: str) -> list[Frame]:
    """A still picture; a digit is the corner in which something is."""
    frames = []
    for letter in text:
        frame = still()
        y, x = divmod(int(letter), 2)
        frame[:, 20 * y : 20 * y + 6, 20 * x : 20 * x + 6] += np.float32(0.5)
        frames.append(frame)
    return frames


def test_every_program_answers_as_the_reference(
    artifact: Artifact, network: QuantizedNetwork
) -> None:
    session = Session(artifact, threads=1, costs=FixedCosts())
    letters = play(session, Reference(network), [*calm(6), *moving(24), *calm(24)])
    assert letters.startswith("krrrkr")
    assert letters[6:30].count("f") >= 22
    assert "krrrkrrr" in letters[30:]


def test_reasons_shares_and_predictions(artifact: Artifact) -> None:
    costs = FixedCosts()
    session = Session(artifact, threads=1, costs=costs)
    seen = []
    for n, frame in enumerate(calm(3) + moving(4)):
        session(frame)
        last = session.last
        assert last is not None and last.index == n
        if last.reason is None:
            assert last.changed is not None and 0 < last.changed < 0.1
            assert last.predicted_ms == costs.probe + costs.residual(last.changed)
        seen.append(last.reason)
    assert seen == ["first", None, None, "cost", "cost", "cost", "cost"]
    session.force_keyframe()
    session(still())
    assert session.last is not None and session.last.reason == "forced"
    session.skip()
    session(still())
    assert session.last.reason == "lost"
    session.reset()
    session(still())
    assert session.last.reason == "first"


def test_plain_frames_do_not_touch_what_residuals_need(
    artifact: Artifact, network: QuantizedNetwork
) -> None:
    costs = FixedCosts(knows_frame=False)
    reference = Reference(network)
    session = Session(artifact, threads=1, period=8, costs=costs)
    assert play(session, reference, calm(1) + moving(2)) == "kff"
    costs.knows_frame = True
    assert play(session, reference, calm(3)[1:]) == "rr"


def test_adaptive_keyframe_at_a_cut(artifact: Artifact, network: QuantizedNetwork) -> None:
    session = Session(artifact, threads=1, costs=FixedCosts(), keyframes="adaptive")
    after = [scene(1)] * 6
    assert play(session, Reference(network), [*calm(8), *after]) == "krrrrrrrkrrrrr"
    session.reset()
    reasons = []
    for frame in [*calm(8), *after]:
        session(frame)
        assert session.last is not None
        reasons.append(session.last.reason)
    assert [r for r in reasons if r] == ["first", "scene"]


def test_without_the_guard_the_period_alone_decides(
    artifact: Artifact, network: QuantizedNetwork
) -> None:
    session = Session(artifact, threads=1, keyframes=KeyframePolicy(guard=False))
    assert play(session, Reference(network), moving(9)) == "krrrkrrrk"


@pytest.mark.parametrize("state_dtype", ["float16", "float32"])
def test_repeats_between_residual_frames(
    artifact: Artifact, network: QuantizedNetwork, state_dtype: str
) -> None:
    """Comparing with the frame computed last does not disturb what residual frames keep."""
    if state_dtype == "float32":
        artifact = compiler.compile(network, state_dtype=state_dtype)
    policy = KeyframePolicy(guard=False, repeat=0.0)
    session = Session(artifact, threads=1, period=12, keyframes=policy)
    reference = Reference(network, state_dtype)
    frames = [*corners("0112203310"), *moving(2)]
    assert play(session, reference, frames) == "kr=r=rr=rrrr"
    session.reset()
    shares = []
    for frame in frames[:4]:
        session(frame)
        assert session.last is not None
        shares.append(session.last.changed)
    assert shares[0] is None and shares[2] == 0 and session.last.kind == "residual"


def test_repeats_between_frames_on_their_own(artifact: Artifact, network: QuantizedNetwork) -> None:
    policy = KeyframePolicy(repeat=0.0)
    session = Session(artifact, threads=1, costs=FixedCosts(), keyframes=policy, copy=False)
    twice = [frame for frame in moving(8) for _ in range(2)]
    assert play(session, Reference(network), twice) == "k=" + "f=" * 7
    session.skip()
    assert play(session, Reference(network), twice[:2]) == "k="


def test_repeating_needs_to_know_what_changed(tmp_path: Path) -> None:
    static = tiny_artifact.write(tmp_path / "n.resq")
    with pytest.raises(ConfigError, match="repeating outputs needs a scheme that chooses bits"):
        Session(static, keyframes=KeyframePolicy(repeat=0.1))


def test_costs_are_learned_from_frames(artifact: Artifact) -> None:
    session = Session(artifact, threads=1)
    for frame in calm(12):
        session(frame)
        assert session.last is not None and session.last.ms > 0
    assert 0 < session.costs.keyframe < 1000
    assert session.costs.knows_frame


def test_the_frame_program_is_frame_quantization(artifact: Artifact) -> None:
    plain = qnet(annotated(small_network(), "W8A8"), "W8A8")
    alone = Session(compiler.compile(plain), threads=1)
    session = Session(artifact, threads=1, costs=FixedCosts(knows_frame=False))
    session(still())
    for frame in moving(3):
        np.testing.assert_array_equal(session(frame), alone(frame))
        assert session.last is not None and session.last.kind == "frame"


def test_frame_program_with_parameters_of_its_own() -> None:
    """Where its kernels are packed otherwise, all programs take the longer parameter tuple."""
    target = get_target()
    usual = by_rules(target)

    def decide(kernel: FusedKernel) -> Chosen:
        chosen = usual(kernel)
        if chosen.decision.method != "dot" or "state" in kernel.name:
            return chosen
        other = 2 if chosen.decision.tile_o == 1 else 1  # what the target's rules did not choose
        return replace(chosen, decision=replace(chosen.decision, tile_o=other))

    wide = dynamic(small_network(channels=24), period=PERIOD)
    lowered, names = lower_network(wide, target, decide=decide)
    assert names is not None
    assert any(name.startswith("frame.") for name in lowered.params)
    functions = {gv.name_hint: f for gv, f in lowered.module.functions_items()}
    for program in ("keyframe", "probe", "residual"):
        assert len(functions[program].params[-1].ty.fields) == len(lowered.params)
    assert len(functions["frame"].params[-1].ty.fields) == len(names)


def test_artifact_without_a_frame_program(network: QuantizedNetwork) -> None:
    artifact = compiler.compile(network, frame_program=False)
    assert artifact.manifest.frame_params is None
    session = Session(artifact, threads=1, costs=FixedCosts())
    assert play(session, Reference(network), calm(2) + moving(3)) == "krkkk"
    measured = measure_break_even(artifact, still(), threads=1, rounds=1)
    assert measured.frame_ms is None and measured.points[0].to_frame is None


def test_break_even(artifact: Artifact) -> None:
    measured = measure_break_even(artifact, still(), threads=1, rounds=2)
    points = measured.points
    assert [p.share for p in points] == list(SHARES)
    assert points[0].changed == points[0].tiles == 0
    assert points[-1].changed == points[-1].tiles == 1
    assert 0 < points[1].changed <= points[2].changed < points[3].changed == 1
    assert 0 < points[1].tiles <= points[2].tiles <= 1
    assert measured.frame_ms is not None
    for point in points:
        assert point.to_keyframe == pytest.approx(point.ms / measured.keyframe_ms)
        assert point.to_frame == pytest.approx(point.ms / measured.frame_ms)


def test_break_even_by_hand() -> None:
    assert crossing([0.0, 0.5, 1.0], [1.0, 3.0, 5.0], 4.0) == pytest.approx(0.75)
    assert crossing([0.0, 1.0], [2.0, 3.0], 1.0) == 0
    assert crossing([0.0, 1.0], [2.0, 3.0], 3.0) is None
    frame = np.zeros((1, 20, 20, 1), np.float32)
    assert np.count_nonzero(changed_frame(frame, 0.25)) == 100
    np.testing.assert_array_equal(changed_frame(frame, 0), frame)


def test_break_even_needs_a_dynamic_scheme(tmp_path: Path) -> None:
    static = tiny_artifact.write(tmp_path / "n.resq")
    with pytest.raises(ConfigError, match="W8A8->W8A4 computes every pixel"):
        measure_break_even(static, np.zeros(tiny_artifact.SHAPE, np.float32))


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_bench_prints_the_break_even(
    artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(artifact.path), "--threads", "1", "--repeats", "2", "--no-profile"]
    assert call(*arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["break_even"]["points"]) == len(SHARES)
    assert call(*arguments) == 0
    assert "break-even" in capsys.readouterr().out


def test_run_counts_reasons(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(artifact.path), "--input", "random", "--frames", "0:8", "--no-guard"]
    assert call(*arguments, "-o", str(tmp_path / "o"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["reasons"] == {"first": 1, "period": 1}
    assert call(*arguments, "--keyframes", "adaptive", "-o", str(tmp_path / "p")) == 0
    assert "  first" in capsys.readouterr().out
    assert call(*arguments, "--repeat", "1", "-o", str(tmp_path / "q"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["reasons"] == {"first": 1, "repeat": 6, "period": 1}

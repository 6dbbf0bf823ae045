"""Whole sessions on an emulated board: decisions are Python's, cycles those of each frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resq_tvm import compiler
from resq_tvm.costs import FixedCosts
from resq_tvm.errors import ConfigError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.simulated_stream import (
    RESIDUALS_PAY,
    SimulatedStream,
    costs_word,
    learn_costs,
    play_residuals,
    simulate_stream,
)
from tests.dynamic import dynamic, small_network
from tests.resq_tvm.edge.harness import bytes_of, in_python
from tests.resq_tvm.test_dynamic_session import calm, moving
from tests.tools import board_tools

PERIOD = 4
COSTS = FixedCosts(7.0, 5.0, 0.1, ((0.0, 1.0), (0.5, 3.0), (1.0, 10.0)))


def test_fixed_costs_are_lines_between_points() -> None:
    costs = FixedCosts(7, 5, 0.1, ((0.2, 1.0), (0.6, 3.0)))
    shares = (0.0, 0.2, 0.3, 0.6, 1.0)
    assert [costs.residual(s) for s in shares] == pytest.approx([1, 1, 1.5, 3, 3])
    costs.saw_residual(0.3, 100)
    costs.saw_keyframe(100)
    assert costs.residual(0.3) == pytest.approx(1.5) and costs.keyframe == 7
    assert costs.knows_frame


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((), "residual frames have none"),
        (((0.0, -1.0),), "a time is no number of milliseconds"),
        (((0.0, float("nan")),), "a time is no number of milliseconds"),
        (((0.5, 1.0), (0.5, 2.0)), "shares of residual frames must rise"),
        (((0.5, 1.0), (1.5, 2.0)), "shares of residual frames must rise"),
    ],
)
def test_fixed_costs_are_checked(points: tuple[tuple[float, float], ...], message: str) -> None:
    with pytest.raises(ConfigError, match=f"fixed costs: {message}"):
        FixedCosts(7, 5, 0.1, points)


def test_costs_as_an_option_of_the_runtime() -> None:
    word = "keyframe=7.0,frame=5.0,probe=0.1,residual@0.0=1.0,residual@0.5=3.0,residual@1.0=10.0"
    assert costs_word(COSTS) == word


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    board_tools()
    folder = tmp_path_factory.mktemp("stream") / "n.resq"
    compiler.compile(dynamic(small_network(), period=PERIOD), "cortex-a72", output=folder)
    return folder


def letters(stream: SimulatedStream) -> str:
    return "".join("=" if frame.kind == "repeat" else frame.kind[0] for frame in stream.frames)


@pytest.mark.slow
@pytest.mark.aarch64
class TestEmulated:
    def test_decisions_are_those_of_python(self, artifact: Path, tmp_path: Path) -> None:
        here = compiler.compile(
            dynamic(small_network(), period=PERIOD), output=tmp_path / "here.resq"
        )
        frames = [*(frame for frame in moving(5) for _ in range(2)), *calm(12)]
        policy = KeyframePolicy(repeat=0.0)
        want = in_python(here, frames, PERIOD, policy=policy, costs=COSTS)
        stream = simulate_stream(artifact, frames, COSTS, policy=policy)
        found = [(f.kind, f.reason or "", n) for n, f in enumerate(stream.frames)]
        assert found == want.frames and set(letters(stream)) == set("kfr=")
        x = np.frombuffer(want.outputs, np.float32)
        y = np.frombuffer(b"".join(bytes_of(o) for o in stream.outputs), np.float32)
        off = np.abs(x - y) > 1e-4 * np.abs(x).max()
        assert x.shape == y.shape and off.mean() < 0.001

    def test_frames_take_what_their_programs_take(self, artifact: Path) -> None:
        frames = [*(frame for frame in moving(5) for _ in range(2)), *calm(12)]
        stream = simulate_stream(artifact, frames, COSTS, policy=KeyframePolicy(repeat=0.0))
        for frame in stream.frames:
            looked = frame.changed is not None
            assert (frame.looks > 0) == looked
            # A repeat only hands over what is there.
            assert (frame.program < 2000) == (frame.kind == "repeat"), frame
            assert frame.cycles == frame.program + frame.looks + frame.note
        assert sum(stream.kinds.values()) == len(frames)
        mean = sum(frame.cycles for frame in stream.frames) / len(frames)
        assert stream.cycles == pytest.approx(mean)
        assert stream.ms(stream.core.clock_hz) == 1000
        notes = {frame.kind: frame.note > 0 for frame in stream.frames}
        assert notes["frame"] and not notes["repeat"]

    def test_a_boards_costs(self, artifact: Path) -> None:
        frames = [*calm(3), *moving(2), *calm(3)]
        always = play_residuals(artifact, frames, period=8)
        assert letters(always) == "krrrrrrr"
        costs = learn_costs(always, artifact, frames[:4])
        assert costs.keyframe > costs.frame > costs.probe > 0
        assert costs.residual(0.01) < costs.residual(1.0)
        expected = [f for f in always.frames if f.kind == "residual" and f.changed == 1]
        assert costs.residual(1.0) == pytest.approx(
            always.ms(sum(f.program for f in expected) / len(expected)), rel=0.05
        )
        assert always.cycles_of("frame") is None
        with pytest.raises(ConfigError, match="2 frames tell no costs"):
            learn_costs(always, artifact, frames[:2])

    def test_no_frame_on_its_own_no_costs(self, tmp_path: Path) -> None:
        board_tools()
        network = dynamic(small_network(), period=PERIOD)
        folder = tmp_path / "n.resq"
        compiler.compile(network, "cortex-a72", output=folder, frame_program=False)
        always = simulate_stream(folder, calm(3), RESIDUALS_PAY)
        with pytest.raises(ConfigError, match="computes no frame on its own"):
            learn_costs(always, folder, calm(3))

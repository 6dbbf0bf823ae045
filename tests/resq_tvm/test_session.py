"""Sessions decide keyframe or residual, carry state, and survive bad frames."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from resq_tvm.artifact import Artifact
from resq_tvm.device import available_cpus
from resq_tvm.errors import ArtifactError, ClipError, ConfigError, FrameError
from resq_tvm.session import Session
from tests.resq_tvm.tiny_artifact import SHAPE, expect_key, expect_residual, write


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write(tmp_path_factory.mktemp("session") / "net.resq")


@pytest.fixture
def frames(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal(SHAPE).astype(np.float32) for _ in range(8)]


def test_period_and_values(artifact: Artifact, frames: list[np.ndarray]) -> None:
    session = Session(artifact)
    kinds = []
    for i, frame in enumerate(frames):
        y = session(frame)
        key = frames[i // 3 * 3]
        expected = expect_key(frame) if i % 3 == 0 else expect_residual(frame, key)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-5)
        assert session.last is not None and session.last.index == i and session.last.ms > 0
        kinds.append(session.last.kind[0])
    assert "".join(kinds) == "krrkrrkr"


def test_period_can_be_changed(artifact: Artifact, frames: list[np.ndarray]) -> None:
    session = Session(artifact, period=1)
    for frame in frames[:3]:
        np.testing.assert_allclose(session(frame), expect_key(frame), rtol=1e-6, atol=1e-5)
    with pytest.raises(ConfigError, match="period 0"):
        Session(artifact, period=0)


def test_state_does_not_alias_the_callers_frame(
    artifact: Artifact, frames: list[np.ndarray]
) -> None:
    session = Session(artifact)
    buffer = frames[0].copy()
    session(buffer)
    for frame in frames[1:3]:
        buffer[...] = frame
        y = session(buffer)
        np.testing.assert_allclose(y, expect_residual(frame, frames[0]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("copy", [True, False])
def test_outputs_outlive_later_calls(
    artifact: Artifact, frames: list[np.ndarray], copy: bool
) -> None:
    session = Session(artifact, copy=copy)
    outputs = [session(frame) for frame in frames]
    assert outputs[0].flags.writeable is copy
    np.testing.assert_allclose(outputs[0], expect_key(frames[0]), rtol=1e-6, atol=1e-5)
    if copy:
        outputs[0].fill(7)
    np.testing.assert_allclose(
        outputs[1], expect_residual(frames[1], frames[0]), rtol=1e-6, atol=1e-5
    )


def test_writing_into_an_output_does_not_reach_the_state(
    artifact: Artifact, frames: list[np.ndarray]
) -> None:
    session = Session(artifact)
    session(frames[0]).fill(1e9)
    np.testing.assert_allclose(
        session(frames[1]), expect_residual(frames[1], frames[0]), rtol=1e-6, atol=1e-5
    )


def test_reset_and_forced_keyframe(artifact: Artifact, frames: list[np.ndarray]) -> None:
    session = Session(artifact)
    session(frames[0])
    session.force_keyframe()
    np.testing.assert_allclose(session(frames[1]), expect_key(frames[1]), rtol=1e-6, atol=1e-5)
    session(frames[2])
    session(frames[3])
    assert session.last is not None and session.last.kind == "residual"  # the period restarted
    session.reset()
    session(frames[4])
    assert session.last is not None
    assert (session.last.kind, session.last.index) == ("keyframe", 0)


def bad_frames() -> dict[str, tuple[object, str]]:
    nan = np.zeros(SHAPE, np.float32)
    nan[0, 1, 2, 3] = np.nan
    inf = np.zeros(SHAPE, np.float32)
    inf[0, 0, 0, 0] = np.inf
    return {
        "shape": (np.zeros((1, 6, 5, 3), np.float32), "has shape 1x6x5x3; the network takes"),
        "dtype": (np.zeros(SHAPE), "has dtype float64; give float32"),
        "nan": (nan, "NaN or infinity"),
        "inf": (inf, "NaN or infinity"),
        "kind": ([1.0], "is a list"),
        "count": ((np.zeros(SHAPE, np.float32),) * 2, "has 2 arrays"),
    }


@pytest.mark.parametrize("name", bad_frames())
def test_bad_frame_leaves_the_session_as_it_was(
    artifact: Artifact, frames: list[np.ndarray], name: str
) -> None:
    bad, message = bad_frames()[name]
    session = Session(artifact)
    session(frames[0])
    before = session.last
    with pytest.raises(FrameError, match=message):
        session(bad)  # type: ignore[arg-type]
    assert session.last is before
    np.testing.assert_allclose(
        session(frames[1]), expect_residual(frames[1], frames[0]), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("bad", [None, np.full(SHAPE, np.nan, np.float32)])
def test_skipped_frame_forces_a_keyframe(
    artifact: Artifact, frames: list[np.ndarray], bad: object
) -> None:
    session = Session(artifact)
    stream = [frames[0], bad, *frames[2:6]]
    seen = []
    for y in session.run(stream, on_broken="skip"):  # type: ignore[arg-type]
        assert session.last is not None
        seen.append((session.last.index, session.last.kind[0]))
        if session.last.index == 2:
            np.testing.assert_allclose(y, expect_key(frames[2]), rtol=1e-6, atol=1e-5)
    assert seen == [(0, "k"), (2, "k"), (3, "r"), (4, "r"), (5, "k")]


def test_dropped_frame_raises_by_default(artifact: Artifact, frames: list[np.ndarray]) -> None:
    stream = Session(artifact).run([frames[0], None, frames[1]])
    next(stream)
    with pytest.raises(FrameError, match="frame 1 was dropped"):
        next(stream)


@pytest.mark.parametrize("on_broken", ["raise", "skip"])
def test_source_that_breaks(artifact: Artifact, frames: list[np.ndarray], on_broken: str) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from frames[:2]
        raise ClipError("clip 'x' breaks after frame 1")

    session = Session(artifact)
    stream = session.run(source(), on_broken=on_broken)  # type: ignore[arg-type]
    assert next(stream) is not None and next(stream) is not None
    with pytest.raises(ClipError if on_broken == "raise" else StopIteration):
        next(stream)


def test_streams_are_independent(artifact: Artifact, frames: list[np.ndarray]) -> None:
    a, b = Session(artifact), Session(artifact)
    a(frames[0])
    b(frames[1])
    np.testing.assert_allclose(
        a(frames[2]), expect_residual(frames[2], frames[0]), rtol=1e-6, atol=1e-5
    )
    np.testing.assert_allclose(
        b(frames[3]), expect_residual(frames[3], frames[1]), rtol=1e-6, atol=1e-5
    )


def test_sessions_in_threads(artifact: Artifact, frames: list[np.ndarray]) -> None:
    failures: list[str] = []

    def work(offset: int) -> None:
        session = Session(artifact, threads=1)
        key = frames[offset]
        for step in range(200):
            frame = frames[(offset + step) % 8]
            key = frame if step % 3 == 0 else key
            wanted = expect_key(frame) if step % 3 == 0 else expect_residual(frame, key)
            if not np.allclose(session(frame), wanted, rtol=1e-5, atol=1e-4):
                failures.append(f"thread {offset}, step {step}")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def test_frame_quantized_artifacts_have_no_state(tmp_path: Path, frames: list[np.ndarray]) -> None:
    session = Session(write(tmp_path / "frame.resq", scheme="W8A8", state=[]))
    for frame in frames[:4]:
        np.testing.assert_allclose(session(frame), expect_key(frame), rtol=1e-6, atol=1e-5)
        assert session.last is not None and session.last.kind == "keyframe"


def test_threads_out_of_range(artifact: Artifact) -> None:
    with pytest.raises(ConfigError, match="threads 0"):
        Session(artifact, threads=0)
    with pytest.raises(ConfigError, match=f"allows 1 to {available_cpus()}"):
        Session(artifact, threads=available_cpus() + 1)


def test_artifact_without_programs_to_observe_still_runs(
    artifact: Artifact, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(artifact)
    monkeypatch.setattr("resq_tvm.passes.executable.OBSERVED", "_of_a_later_version")
    with pytest.raises(ArtifactError, match="compile it anew"), session.observed():
        pass
    session(frames[0])
    assert session.last is not None and session.last.kind == "keyframe"


def test_memory_moves_after_the_first_two_states(
    artifact: Artifact, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    monkeypatch.setattr(
        "resq_tvm.session.LargePages.gather", lambda _self, tensors: moved.append(len(tensors))
    )
    session, usual = Session(artifact, large_pages=True), Session(artifact)
    counts = []
    for frame in frames:
        np.testing.assert_array_equal(session(frame), usual(frame))
        counts.append(len(moved))
    # Residual frames of this artifact hand out new state, too.
    assert counts == [1] + [2] * 7 and min(moved) > 1

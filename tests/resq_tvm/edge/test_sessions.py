"""What the C++ runtime computes is what Python's session computes, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resq_tvm.artifact import Artifact, write_artifact
from resq_tvm.device import available_cpus
from resq_tvm.errors import FrameError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.processing.config import InputConfig, ProcessingConfig
from resq_tvm.processing.preprocess import Preprocessor
from resq_tvm.processing.presets import PRESETS
from resq_tvm.session import Session
from tests.resq_tvm import tiny_artifact
from tests.resq_tvm.edge.harness import (
    KINDS,
    bytes_of,
    call,
    clip,
    in_python,
    resq_run,
    write,
)

PERIOD = 4


@pytest.fixture(scope="module", params=KINDS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write(request.param, tmp_path_factory.mktemp("net") / f"{request.param}.resq")


def shape(artifact: Artifact) -> tuple[int, ...]:
    return artifact.manifest.inputs[0].shape


def test_outputs_and_decisions_are_those_of_python(artifact: Artifact, runtime: Path) -> None:
    frames = clip(shape(artifact), 2 * PERIOD + 2)
    want = in_python(artifact, frames, PERIOD)
    found = resq_run([runtime / "bin" / "resq-run"], artifact.path, frames, "--period", PERIOD)
    assert found == want


def test_threads_change_nothing(artifact: Artifact, runtime: Path) -> None:
    if available_cpus() < 2:
        pytest.skip("this machine has one CPU")
    frames = clip(shape(artifact), PERIOD + 2)
    program = [runtime / "bin" / "resq-run"]
    alone, together = (
        resq_run(program, artifact.path, frames, "--threads", n).outputs for n in (1, 2)
    )
    assert alone == together


def test_streams_in_threads_do_not_meet(artifact: Artifact, runtime: Path, tmp_path: Path) -> None:
    words: list[object] = [runtime / "bin" / "streams", artifact.path]
    wants = []
    for n in range(3):
        frames = clip(shape(artifact), 12, seed=n)
        (tmp_path / f"{n}.in").write_bytes(bytes_of(frames))
        words += [tmp_path / f"{n}.in", tmp_path / f"{n}.out", n + 2]
        wants.append(in_python(artifact, frames, n + 2).outputs)
    call(words)
    assert [(tmp_path / f"{n}.out").read_bytes() for n in range(3)] == wants


SCRIPT = "run run nan run short skip run run force run run reset skip run run nan skip run".split()


def test_lost_and_forced_frames_are_treated_as_in_python(
    artifact: Artifact, runtime: Path, tmp_path: Path
) -> None:
    frames = clip(shape(artifact), len(SCRIPT), seed=5)
    (tmp_path / "in").write_bytes(bytes_of(frames))
    words = [runtime / "bin" / "script", artifact.path, tmp_path / "in", tmp_path / "out", 7]
    told = call([*words, *SCRIPT]).stdout.decode().splitlines()
    session = Session(artifact, period=7, threads=1, keyframes=KeyframePolicy(guard=False))
    outputs, source = b"", iter(frames)
    for word in SCRIPT:
        if word == "force":
            session.force_keyframe()
        elif word == "skip":
            session.skip()
        elif word == "reset":
            session.reset()
        elif word == "run":
            outputs += bytes_of(session(next(source)))
            last = session.last
            assert last is not None
            assert told.pop(0) == f"{last.kind} {last.reason or ''} {last.index}"
        else:
            broken = next(source).copy()
            if word == "nan":
                broken.reshape(-1)[broken.size // 2] = np.nan
            with pytest.raises(FrameError) as caught:
                session(broken if word == "nan" else broken[:, 1:])
            start = f"FrameError frame {session.position}, input {artifact.manifest.inputs[0].name}"
            line = told.pop(0)
            assert line.startswith(start)
            assert ("NaN" in line) == ("NaN" in str(caught.value))
    assert told == []
    assert (tmp_path / "out").read_bytes() == outputs


def test_thresholds_are_scaled(runtime: Path, tmp_path: Path) -> None:
    artifact = write("dynamic", tmp_path / "net.resq")
    frames = clip(shape(artifact), 6)
    wants = [in_python(artifact, frames, PERIOD, scale).outputs for scale in (1.0, 50.0)]
    program = [runtime / "bin" / "resq-run"]
    usual = resq_run(program, artifact.path, frames).outputs
    scaled = resq_run(program, artifact.path, frames, "--threshold-scale", 50).outputs
    assert [usual, scaled] == wants and usual != scaled


@pytest.mark.parametrize("preset", ["espnet_camvid", "imagenet_seg"])
def test_pictures_are_prepared_as_in_python(preset: str, runtime: Path, tmp_path: Path) -> None:
    processing = PRESETS[preset]
    artifact = write_artifact(
        tiny_artifact.compiled(), tmp_path / "net.resq", processing=processing
    )
    info = artifact.manifest.inputs[0]
    prepare = Preprocessor(processing.input, info.shape, info.layout)
    rng = np.random.default_rng(1)
    size = (prepare.height, prepare.width, 3)
    pictures = [rng.integers(0, 256, size, dtype=np.uint8) for _ in range(5)]
    want = in_python(artifact, [prepare(p) for p in pictures], 3)
    program = [runtime / "bin" / "resq-run"]
    assert resq_run(program, artifact.path, pictures, "--rgb", "--period", 3) == want


def test_what_pictures_cannot_be_prepared_is_said(runtime: Path, tmp_path: Path) -> None:
    program = runtime / "bin" / "resq-run"
    tiny_artifact.write(tmp_path / "plain.resq")
    done = call([program, tmp_path / "plain.resq", "--rgb"], code=1)
    assert b"has no processing; give float32 frames" in done.stderr
    cropping = ProcessingConfig(input=InputConfig(crop=(0, 0, 6, 5)))
    write_artifact(tiny_artifact.compiled(), tmp_path / "crop.resq", processing=cropping)
    done = call([program, tmp_path / "crop.resq", "--rgb"], code=1)
    assert b"crops its frames, which this runtime does not" in done.stderr


def test_the_networks_have_what_the_tests_are_about(artifact: Artifact, request: Any) -> None:
    manifest = artifact.manifest
    kind = request.node.callspec.params["artifact"]
    assert manifest.has_residual == (kind != "frame")
    assert (manifest.inputs[0].layout == "NCHW") == (kind == "planes")
    assert (manifest.options.get("residual") == "recurrent") == (kind == "recurrent")
    assert bool(manifest.workspace) == (kind in ("dynamic", "outputs"))
    if kind == "outputs":
        assert len(manifest.outputs) == 3
        assert any(entry.refresh and entry.fill for entry in manifest.workspace)

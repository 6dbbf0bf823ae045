"""Artifacts for NPUs are whole or absent, and what contradicts itself is not run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resq_tvm.artifact import Artifact
from resq_tvm.bench import benchmark
from resq_tvm.errors import ArtifactError, ConfigError, TargetError
from resq_tvm.manifest import Manifest
from resq_tvm.session import Session
from resq_tvm.targets.npu.commands import Stream
from resq_tvm.targets.npu.description import read_npu
from tests.resq_tvm import tiny_artifact
from tests.resq_tvm.npu import tiny_npu

FILES = ["npu.json", "params.safetensors", "program.npu"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_npu.write(tmp_path / "n.resq", host=True).path


def frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = tiny_artifact.SHAPE
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]


def test_files_of_an_artifact(tmp_path: Path) -> None:
    plain = tiny_npu.write(tmp_path / "n.resq")
    assert set(plain.manifest.files) == {*FILES, "kernels.json"}
    assert plain.manifest.is_npu and plain.runs_here and plain.library is None
    assert plain.program is not None and plain.program.npu == tiny_npu.TARGET.npu
    assert read_npu(plain.path / "npu.json") == tiny_npu.TARGET.npu
    hosted = tiny_npu.write(tmp_path / "h.resq", host=True)
    assert set(hosted.manifest.files) == {*FILES, "kernels.json", "library.so"}
    assert not tiny_artifact.write(tmp_path / "x86.resq").manifest.is_npu


@pytest.mark.parametrize("memory", ["dram", "sram"])
@pytest.mark.parametrize("host", [False, True])
def test_sessions_run_it_as_any_other(tmp_path: Path, host: bool, memory: str) -> None:
    session = Session(tiny_npu.write(tmp_path / "n.resq", host, memory), period=3)
    shown = frames(5)
    sign = np.float32(-1 if host else 1)
    for n, frame in enumerate(shown):
        key = shown[n - n % 3]
        expected = tiny_artifact.expect_residual(frame, key)
        if n % 3 == 0:
            expected = tiny_artifact.expect_key(frame)
        np.testing.assert_array_equal(session(frame), sign * expected)
        assert session.last is not None
        assert session.last.kind == ("residual" if n % 3 else "keyframe")


def test_sessions_do_not_share_memory(tmp_path: Path) -> None:
    artifact = tiny_npu.write(tmp_path / "n.resq", memory="sram")
    one, other = Session(artifact, period=4), Session(artifact, period=4)
    a, b, c, d = frames(4)
    one(a), other(b)
    np.testing.assert_array_equal(one(c), tiny_artifact.expect_residual(c, a))
    np.testing.assert_array_equal(other(d), tiny_artifact.expect_residual(d, b))


@pytest.mark.parametrize("name", [*FILES, "library.so"])
def test_altered_file(folder: Path, name: str) -> None:
    contents = bytearray((folder / name).read_bytes())
    contents[len(contents) // 2] ^= 1
    (folder / name).unlink()
    (folder / name).write_bytes(contents)
    with pytest.raises(ArtifactError, match=f"{name} does not match its SHA-256"):
        Artifact.load(folder)


@pytest.mark.parametrize("name", [*FILES, "library.so"])
def test_truncated_file(folder: Path, name: str) -> None:
    contents = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(contents[: len(contents) // 2])
    with pytest.raises(ArtifactError, match=f"{name} has .* bytes, the manifest says"):
        Artifact.load(folder)


@pytest.mark.parametrize("name", [*FILES, "library.so"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        Artifact.load(folder)


def test_a_manifest_without_the_commands(folder: Path) -> None:
    forget(folder, "program.npu")
    (folder / "library.so").unlink()
    with pytest.raises(ArtifactError, match=r"library\.so is missing"):
        Artifact.load(folder)


def forget(folder: Path, name: str) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    del document["files"][name]
    path.write_text(json.dumps(document))


def swap(folder: Path, name: str, contents: bytes) -> None:
    """Put other contents into an artifact, with a hash that fits."""
    (folder / name).write_bytes(contents)
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["files"][name] = {
        "bytes": len(contents),
        "sha256": hashlib.sha256(contents).hexdigest(),
    }
    path.write_text(json.dumps(document))


def test_host_calls_without_a_library(folder: Path) -> None:
    forget(folder, "library.so")
    with pytest.raises(ArtifactError, match=r"program keyframe calls negate .* absent"):
        Artifact.load(folder)


def test_commands_of_another_machine(folder: Path, tmp_path: Path) -> None:
    npu = tiny_npu.TARGET.npu
    assert npu is not None
    other = npu.model_copy(update={"name": "npu-other"})
    swap(folder, "npu.json", other.model_dump_json().encode())
    with pytest.raises(ArtifactError, match=r"is for npu-micro, npu.json describes npu-other"):
        Artifact.load(folder)


def test_a_description_of_nothing(folder: Path) -> None:
    swap(folder, "npu.json", b"{}")
    with pytest.raises(ArtifactError, match=r"npu\.json.* name is wrong: Field required"):
        Artifact.load(folder)


def _changed(stream: Stream, **changes: Any) -> Stream:
    program = replace(stream.programs["keyframe"], **changes)
    return replace(stream, programs={**stream.programs, "keyframe": program})


STREAM = tiny_npu.stream()
OUTSIDE = tiny_npu.place("x", 1 << 20)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (replace(STREAM, programs={"keyframe": STREAM.programs["keyframe"]}), "program residual"),
        (replace(STREAM, params={"other": 0}), "parameter other that is not there"),
        (replace(STREAM, params={"bias": 6140}), "parameter bias outside"),
        (_changed(STREAM, inputs=()), r"inputs of \[\] elements, the manifest has \[90\]"),
        (_changed(STREAM, outputs=(tiny_npu.place("y", 0),) * 2), "outputs of"),
        (_changed(STREAM, state=()), "state tensors of"),
        (_changed(STREAM, inputs=(OUTSIDE,)), "tensor x outside"),
    ],
)
def test_commands_that_do_not_fit_the_manifest(
    tmp_path: Path, stream: Stream, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        tiny_npu.write(tmp_path / "n.resq", made=stream)


def test_times_of_the_simulator_are_not_sold_as_the_machines(folder: Path) -> None:
    with pytest.raises(TargetError, match="npu-micro is simulated and cannot be measured"):
        benchmark(folder)
    session = Session(folder)
    with pytest.raises(ConfigError, match="cannot be timed one by one"), session.observed():
        pass
    assert Manifest.read(folder).is_npu

"""The C interface, from a C99 program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from resq_tvm.artifact import Artifact
from resq_tvm.edge.build import compile_program
from resq_tvm.keyframes import KeyframePolicy
from tests.resq_tvm.edge.harness import (
    SOURCES,
    Frame,
    bytes_of,
    call,
    clip,
    in_python,
    write,
)
from tests.tools import need


@pytest.fixture(scope="module")
def client(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("gcc")
    built = tmp_path_factory.mktemp("client") / "client.o"
    strict = ("-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror")
    command = ["gcc", *strict, f"-I{runtime / 'include'}", "-c", str(SOURCES / "client.c")]
    subprocess.run([*command, "-o", str(built)], check=True)
    parts = [built, runtime / "resq_c.o", runtime / "resq.o"]
    return compile_program(runtime, parts, runtime / "bin" / "client")


def play(
    client: Path, artifact: Artifact, frames: list[Frame], folder: Path, repeat: float | None
) -> None:
    """Play frames in C, which must give what Python gives."""
    (folder / "in").write_bytes(bytes_of(frames))
    share = "-" if repeat is None else repeat
    command = [client, artifact.path, folder / "in", folder / "out", 3, share]
    told = call(command).stdout.decode().splitlines()
    want = in_python(artifact, frames, 3, policy=KeyframePolicy(guard=False, repeat=repeat))
    assert (folder / "out").read_bytes() == want.outputs
    assert [tuple(line.split(" ")[:3]) for line in told] == [
        (kind, reason, str(index)) for kind, reason, index in want.frames
    ]
    looked = [float(line.split(" ")[3]) >= 0 for line in told]
    # The rule that repeats looks; behind it, without the guard, nobody does but for a keyframe.
    assert looked == [
        repeat is not None and kind != "residual" and reason != "first"
        for kind, reason, _ in want.frames
    ]


def test_a_c_program_runs_an_artifact(client: Path, tmp_path: Path) -> None:
    artifact = write("pairwise", tmp_path / "net.resq")
    play(client, artifact, clip(artifact.manifest.inputs[0].shape, 7), tmp_path, None)


def test_a_c_program_repeats_outputs(client: Path, tmp_path: Path) -> None:
    artifact = write("dynamic", tmp_path / "net.resq")
    frames = [frame for frame in clip(artifact.manifest.inputs[0].shape, 4) for _ in range(2)]
    play(client, artifact, frames, tmp_path, 0.0)

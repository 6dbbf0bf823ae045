"""The C interface, from a C99 program."""

from __future__ import annotations

import subprocess
from pathlib import Path

from resq_tvm.edge.build import compile_program
from tests.resq_tvm.edge.harness import SOURCES, bytes_of, call, clip, in_python, write
from tests.tools import need


def test_a_c_program_runs_an_artifact(runtime: Path, tmp_path: Path) -> None:
    need("gcc")
    strict = ("-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror")
    command = ["gcc", *strict, f"-I{runtime / 'include'}", "-c", str(SOURCES / "client.c")]
    subprocess.run([*command, "-o", str(tmp_path / "client.o")], check=True)
    parts = [tmp_path / "client.o", runtime / "resq_c.o", runtime / "resq.o"]
    program = compile_program(runtime, parts, runtime / "bin" / "client")

    artifact = write("pairwise", tmp_path / "net.resq")
    frames = clip(artifact.manifest.inputs[0].shape, 7)
    (tmp_path / "in").write_bytes(bytes_of(frames))
    told = call([program, artifact.path, tmp_path / "in", tmp_path / "out", 3]).stdout.decode()
    want = in_python(artifact, frames, 3)
    assert (tmp_path / "out").read_bytes() == want.outputs
    assert told.splitlines() == [
        f"{int(kind == 'keyframe')} {reason} {index}" for kind, reason, index in want.frames
    ]

"""The folder that is copied to a board: what is in it, and who can build it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from resq_tvm.cli import main
from resq_tvm.edge.build import NATIVE, compile_program, write_runtime
from resq_tvm.errors import CompileError, OutputError, TargetError
from resq_tvm.manifest import Versions
from tests.resq_tvm import tiny_artifact
from tests.resq_tvm.edge.harness import bytes_of, call, clip
from tests.test_packaging import ROOT
from tests.tools import need


def test_the_command_writes_all_that_a_build_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["edge", str(tmp_path / "rt"), "--json"])
    assert left.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["files"]) == {"lib/libtvm_runtime.so", "lib/libtvm_ffi.so"}
    rt = tmp_path / "rt"
    for path in NATIVE.rglob("*"):
        if path.is_file():
            assert (rt / path.relative_to(NATIVE)).read_bytes() == path.read_bytes()
    versions = (rt / "include" / "resq_versions.h").read_text()
    assert f'"{Versions.installed().tvm}"' in versions
    assert (rt / "third_party" / "include" / "dlpack" / "dlpack.h").is_file()
    assert "Apache License" in (rt / "third_party" / "LICENSE").read_text()
    assert not (rt / "bin").exists()


def test_markers_need_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["edge", str(tmp_path / "rt"), "--markers"])
    assert left.value.code == 1
    assert "--markers needs --build" in capsys.readouterr().err


@pytest.mark.slow
def test_cmake_builds_it(tmp_path: Path) -> None:
    need("g++")
    if not (shutil.which("cmake") and shutil.which("make")):
        pytest.skip("cmake or make is not installed; the plain commands are tested all the same")
    folder = write_runtime(tmp_path / "rt")
    options = ("-G", "Unix Makefiles", "-DCMAKE_BUILD_TYPE=Debug")
    call(["cmake", "-S", folder, "-B", folder / "build", *options])
    call(["cmake", "--build", folder / "build"])
    moved = tmp_path / "elsewhere"
    folder.rename(moved)  # programs find their libraries beside them
    artifact = tiny_artifact.write(tmp_path / "net.resq")
    frames = bytes_of(clip(tiny_artifact.SHAPE, 2))
    assert len(call([moved / "bin" / "resq-run", artifact.path], frames).stdout) == len(frames)
    assert call([moved / "bin" / "resq-board-server", "--help"]).stdout.startswith(b"usage")


def test_folders_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(OutputError, match="is a folder without include/resq_versions"):
        write_runtime(tmp_path)


def test_unknown_and_impossible_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TargetError, match="'riscv64' is unknown; use aarch64 or x86_64"):
        write_runtime(tmp_path / "rt", "riscv64")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(TargetError, match="for x86_64 cannot be made on aarch64; make it there"):
        write_runtime(tmp_path / "rt", "x86_64")
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TargetError, match="'no-such-compiler' is absent; install g\\+\\+"):
        write_runtime(tmp_path / "rt", programs=("resq-run",))
    assert list(tmp_path.iterdir()) == []


def test_what_the_compiler_says(tmp_path: Path) -> None:
    need("g++")
    (tmp_path / "bad.cc").write_text("int main() { return none; }\n")
    with pytest.raises(CompileError, match=r"cannot make bad: .*none.* was not declared"):
        compile_program(tmp_path, [tmp_path / "bad.cc"], tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_the_readmes_commands_build_it(tmp_path: Path) -> None:
    """The plain command lines of the folder's README, as they stand there."""
    need("g++", "bash")
    folder = write_runtime(tmp_path / "rt")
    text = (folder / "README.md").read_text()
    commands = text.split("```sh\n")[2].split("```")[0].replace("-O2", "-O0")
    script = tmp_path / "build.sh"
    script.write_text("set -eu\n" + commands)
    call(["bash", "-c", 'cd "$1" && . "$2"', "build", folder, script])
    shutil.rmtree(folder / "src")
    assert os.access(folder / "bin" / "resq-run", os.X_OK)
    assert call([folder / "bin" / "resq-run", "--help"]).stdout.startswith(b"usage")


@pytest.mark.parametrize(("language", "compiler"), [("cpp", "g++"), ("c", "gcc")])
def test_the_guides_examples_compile(language: str, compiler: str, tmp_path: Path) -> None:
    need(compiler)
    guide = (ROOT / "docs" / "deploy.md").read_text()
    example = tmp_path / f"example.{language}"
    example.write_text(guide.split(f"```{language}\n")[1].split("```")[0])
    strict = ("-Wall", "-Wextra", "-Werror", "-fsyntax-only")
    call([compiler, *strict, f"-I{NATIVE / 'include'}", example])


@pytest.mark.slow
def test_the_guides_command_builds_its_example(tmp_path: Path) -> None:
    need("g++", "bash")
    guide = (ROOT / "docs" / "deploy.md").read_text()
    (tmp_path / "main.cc").write_text(guide.split("```cpp\n")[1].split("```")[0])
    folder = write_runtime(tmp_path / "runtime")
    (folder / "bin").mkdir()
    blocks = [block.split("```")[0] for block in guide.split("```sh\n")[1:]]
    (command,) = (block for block in blocks if block.startswith("g++"))
    call(["bash", "-c", f'cd "$1" && {command.replace("-O2", "-O0")}', "build", tmp_path])
    told = call([folder / "bin" / "main"], code=1).stderr
    assert told == b"artifact 'net.resq' does not exist; compile it first\n"

"""Artifacts for ARM boards on a machine of another architecture: made, shown, and not run."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resq_tvm import doctor
from resq_tvm.artifact import Artifact
from resq_tvm.artifact_files import verify_files
from resq_tvm.cli import main
from resq_tvm.errors import ArtifactError, TargetError
from resq_tvm.latency import layer_cost
from resq_tvm.targets import boardkit
from tests.resq_tvm.edge.harness import static, write
from tests.tools import need

pytestmark = [
    pytest.mark.aarch64,
    pytest.mark.skipif(platform.machine() == "aarch64", reason="boards' artifacts run here"),
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("aarch64-linux-gnu-g++")
    return write("pairwise", tmp_path_factory.mktemp("foreign") / "net.resq", "cortex-a72").path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    return run


def test_inspect_shows_it(call: Any, artifact: Path) -> None:
    code, out, err = call("inspect", artifact, "--json")
    assert code == 0, err
    shown = json.loads(out)
    assert (shown["runs_here"], shown["target"]["name"]) == (False, "cortex-a72")
    assert shown["kernels"] and shown["scheme"] == "W8A8->W4A4"
    assert "no, it is for another architecture" in call("inspect", artifact)[1]


def test_inspect_still_finds_damage(call: Any, tmp_path: Path) -> None:
    need("aarch64-linux-gnu-g++")
    folder = write("pairwise", tmp_path / "net.resq", "cortex-a53").path
    library = folder / "library.so"
    contents = bytearray(library.read_bytes())
    contents[len(contents) // 2] ^= 1
    library.write_bytes(contents)
    with pytest.raises(ArtifactError, match="does not match its SHA-256"):
        verify_files(folder)
    code, _, err = call("inspect", folder)
    assert code == 1 and "does not match its SHA-256" in err


@pytest.mark.parametrize("verb", ["run", "evaluate"])
def test_verbs_that_run_refuse_it_in_one_line(
    verb: str, call: Any, artifact: Path, tmp_path: Path
) -> None:
    words = {
        "run": ("--input", "random", "-o", tmp_path / "out"),
        "evaluate": ("--frame", artifact, "--input", tmp_path, "--labels", tmp_path),
    }[verb]
    (tmp_path / "0.png").write_bytes(b"")
    code, _, err = call(verb, artifact, *words, "--json")
    error = json.loads(err)["error"]
    assert code == 1 and error["type"] == "TargetError"
    assert (
        "target cortex-a72, which is another architecture's; run it on a board"
        in (error["message"])
    )
    with pytest.raises(TargetError, match="another architecture's"):
        Artifact.load(artifact)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--threads", 2), "threads 2: the emulated board has one core"),
        (("--warmup", 3), "warmup 3: simulated frames need none"),
    ],
)
def test_bench_refuses_what_an_emulated_board_has_not(
    words: tuple[object, ...], told: str, call: Any, artifact: Path
) -> None:
    code, _, err = call("bench", artifact, *words)
    assert code == 1 and told in err


def test_bench_without_an_emulator_names_the_package(
    call: Any, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = call("bench", artifact)
    assert code == 1
    assert "qemu-aarch64 is not installed; install the Debian package qemu-user" in err


@pytest.mark.slow
def test_compile_tells_that_it_was_not_loaded(call: Any, tmp_path: Path) -> None:
    need("aarch64-linux-gnu-g++")
    words = ("compile", "zoo:tiny_seg", "--calibration", "random", "--calibration-frames", 2,
             "--target", "cortex-a72", "-o", tmp_path / "net.resq")  # fmt: skip
    code, out, err = call(*words)
    assert code == 0, err
    assert "is for another architecture, so it was not loaded here" in err
    assert "cortex-a72" in out
    assert verify_files(tmp_path / "net.resq").target.name == "cortex-a72"


def test_compile_refuses_before_calibration(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("compile", "zoo:absent", "--target", "cortex-a72", "-o", tmp_path / "net.resq")
    code, _, err = call(*words, "--scheme", "W8A8->W8A{0,8}", "--budget", "3 ms")
    assert code == 1 and "target cortex-a72's kernels cannot be timed here" in err
    monkeypatch.setenv("RESQ_TVM_CXX_AARCH64", "no-such-compiler")
    code, _, err = call(*words)
    assert code == 1 and "no C++ cross compiler for aarch64" in err


def test_kernels_of_another_architecture_are_not_timed() -> None:
    with pytest.raises(TargetError, match="'cortex-a53' is another architecture's"):
        layer_cost(static("W8A8->W8A8"), "cortex-a53")


def test_doctor_takes_a_missing_board_toolchain_for_sound(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESQ_TVM_CXX_AARCH64", "no-such-compiler")
    monkeypatch.setenv("RESQ_TVM_CACHE", str(tmp_path))
    checks = {check.name: check for check in doctor.examine()}
    for name in ("ARM cross compiler", "board libraries"):
        check = checks[name]
        assert (check.ok, check.optional, check.fine, check.detail) == (
            False, True, True, "absent",
        )  # fmt: skip
        assert check.hint
    assert "RESQ_TVM_CXX_AARCH64" in checks["ARM cross compiler"].hint
    monkeypatch.setattr(doctor, "examine", lambda: [checks["ARM cross compiler"]])
    code, out, _ = call("doctor", "--json")
    assert code == 0 and json.loads(out)["ok"]


def test_doctor_finds_an_installed_board_toolchain(tmp_path: Path) -> None:
    need("aarch64-linux-gnu-g++")
    found = next(c for c in doctor.examine() if c.name == "ARM cross compiler")
    assert found.ok and found.detail.endswith("g++")
    assert not boardkit.has_board_libraries(tmp_path)

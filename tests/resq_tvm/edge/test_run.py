"""The program resq-run: options, exit codes, broken input and output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resq_tvm import tiny_artifact
from tests.resq_tvm.edge.harness import bytes_of, call, clip

FRAME_BYTES = 4 * 3 * 6 * 5
_COSTS = "keyframe=7,frame=5,probe=0.1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_artifact.write(tmp_path / "net.resq").path


@pytest.fixture
def program(runtime: Path) -> Path:
    return runtime / "bin" / "resq-run"


def test_help(program: Path) -> None:
    assert call([program, "--help"]).stdout.startswith(b"usage: resq-run ARTIFACT")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name an artifact"),
        (["a", "b"], "the argument b is one too many"),
        (["a", "--what"], "the option --what is unknown"),
        (["a", "--period"], "--period needs a value"),
        (["a", "--period", "0"], "--period 0 is not a count; use 1 or more"),
        (["a", "--frames", "3x"], "--frames 3x is not a count; use 1 or more"),
        (["a", "--threshold-scale", "x"], "--threshold-scale x is not a number"),
        (["a", "--max-distance", "0"], "--max-distance 0 is not a count; use 1 or more"),
        (["a", "--repeat", "some"], "--repeat some is not a number"),
        (["a", "--costs", "keyframe=7,frame"], "--costs has frame without '='"),
        (["a", "--costs", "keyframe=7,frame=x"], "--costs frame x is not a number"),
        (["a", "--costs", "keyframe=7,probe=1,residual@0=1"], "--costs needs frame"),
        (
            ["a", "--costs", "keyframe=7,keyframe=8"],
            "--costs has keyframe once too often or unknown; use keyframe, frame, probe, "
            "residual@SHARE",
        ),
    ],
)
def test_wrong_usage(program: Path, words: list[str], message: str) -> None:
    told = call([program, *words], code=2).stderr.decode()
    assert told == f"resq-run: error: {message}; see resq-run --help\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "10000"], "threads 10000 is out of range"),
        (["--keyframes", "often"], "keyframes 'often' are unknown; use period or adaptive"),
        (["--keyframes", "adaptive"], "adaptive keyframes need a scheme that chooses bits, this"),
        (["--max-distance", "9"], "a max distance needs keyframes 'adaptive'; use period instead"),
        (
            ["--keyframes", "adaptive", "--min-distance", "3", "--max-distance", "2"],
            "max distance 2 is below min distance 3",
        ),
        (["--repeat", "1.5"], "repeat 1.5 is out of range; give a share, 0 to 1"),
        (["--repeat", "nan"], "repeat nan is out of range"),
        (["--costs", f"{_COSTS}"], "fixed costs: residual frames have none; give a share and a"),
        (["--costs", f"{_COSTS},residual@0.5=-1"], "fixed costs: a time is no number of milli"),
        (["--costs", f"{_COSTS},residual@1=1,residual@0=2"], "fixed costs: shares of residual fra"),
        (["--threshold-scale", "-1"], "threshold scale -1.0"),
        (["--output", "/nowhere/file"], "output '/nowhere/file' cannot be written (No such file"),
    ],
)
def test_refused_options(program: Path, folder: Path, words: list[str], message: str) -> None:
    told = call([program, folder, *words], code=1).stderr.decode()
    assert told.startswith(f"resq-run: error: {message}") and told.count("\n") == 1


def test_frames_limits_and_no_frame_is_fine(program: Path, folder: Path) -> None:
    given = bytes_of(clip(tiny_artifact.SHAPE, 5))
    assert len(call([program, folder, "--frames", 2], given).stdout) == 2 * FRAME_BYTES
    assert call([program, folder]).stdout == b""


def test_input_that_ends_inside_a_frame(program: Path, folder: Path, tmp_path: Path) -> None:
    given = bytes_of(clip(tiny_artifact.SHAPE, 3))[:-7]
    done = call([program, folder, "--output", tmp_path / "out"], given, code=1)
    assert b"standard input ends inside frame 2: 353 of 360 bytes" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["net.resq"]  # nothing half-written


def test_output_file(program: Path, folder: Path, tmp_path: Path) -> None:
    given = bytes_of(clip(tiny_artifact.SHAPE, 3))
    want = call([program, folder], given).stdout
    assert call([program, folder, "--output", tmp_path / "out"], given).stdout == b""
    assert (tmp_path / "out").read_bytes() == want
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.resq", "out"]
    assert len(want) == 3 * FRAME_BYTES


def test_output_that_cannot_be_written(program: Path, folder: Path) -> None:
    given = bytes_of(clip(tiny_artifact.SHAPE, 3))
    done = call([program, folder, "--output", "/dev/full"], given, code=1)
    assert b"output '/dev/full' cannot be written (No space left" in done.stderr

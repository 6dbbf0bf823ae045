"""The command line: results, errors in one line, exit codes, interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resq_tvm.cli import main
from tests.resq_tvm import tiny_artifact

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cli") / "net.resq"
    tiny_artifact.write(folder)
    return str(folder)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; return exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    return run


def program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "resq_tvm.cli", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_help_is_immediate() -> None:
    program("--help").wait()  # compiles bytecode
    start = time.perf_counter()
    process = program("--help")
    out, _ = process.communicate()
    assert process.returncode == 0
    for verb in ("demo", "compile", "run", "bench", "bops", "inspect", "doctor"):
        assert verb in out
    assert time.perf_counter() - start < 1.0  # 0.5 s on an idle machine


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys, resq_tvm.cli\n"
        "heavy = {'tvm', 'torch', 'numpy', 'pydantic', 'av', 'cv2'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_writes_predictions(call: Any, artifact: str, tmp_path: Path) -> None:
    out_path = tmp_path / "sub" / "out"
    code, out, err = call(
        "run", artifact, "--input", "random", "--frames", "0:7", "-o", out_path, "--json"
    )
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["frames"], summary["keyframes"], summary["lost"]) == (7, 3, 0)
    assert summary["output"] == f"{out_path}.npz" and summary["overlay"] is None
    assert summary["arguments"]["period"] == 3
    assert summary["reasons"] == {"first": 1, "period": 2}
    with np.load(summary["output"]) as archive:
        assert archive["output_0"].shape == (7, 3, 6, 5)
        assert archive["is_keyframe"].tolist() == [True, False, False] * 2 + [True]
        assert archive["reason"].tolist() == ["first", "", "", "period", "", "", "period"]
        assert archive["frame_index"].tolist() == list(range(7))
    assert [p.name for p in out_path.parent.iterdir()] == ["out.npz"]


def test_run_refuses_adaptive_keyframes_without_a_probe(
    call: Any, artifact: str, tmp_path: Path
) -> None:
    arguments = ("run", artifact, "--input", "random", "-o", tmp_path / "o", "--keyframes")
    code, _, err = call(*arguments, "adaptive")
    assert code != 0 and "need a scheme that chooses bits" in err
    code, _, err = call(*arguments, "period", "--max-distance", 5)
    assert code != 0 and "needs keyframes 'adaptive'" in err


def test_run_speaks_to_people_too(call: Any, artifact: str, tmp_path: Path) -> None:
    code, out, err = call(
        "run", artifact, "--input", "random", "--frames", "4", "-o", tmp_path / "o"
    )
    assert code == 0
    assert "keyframes" in out and "input=random" in err


def test_run_reads_raw_frames(artifact: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "resq_tvm.cli", "run", artifact, "--input", "-", "--raw-shape",
         "6x5x3", "--on-broken", "skip", "-o", str(tmp_path / "o"), "--json"],
        cwd=ROOT, input=bytes(6 * 5 * 3 * 4 + 10), capture_output=True, check=True,
    )  # fmt: skip
    summary = json.loads(process.stdout)
    assert (summary["frames"], summary["lost"]) == (4, 1)


def test_bench(call: Any, artifact: str) -> None:
    code, out, err = call("bench", artifact, "--repeats", 3, "--threads", 1, "--json")
    assert code == 0, err
    result = json.loads(out)
    for program_name in ("keyframe_ms", "residual_ms"):
        times = result[program_name]
        assert 0 < times["p10"] <= times["median"] <= times["p90"]
    key, res = result["keyframe_ms"]["median"], result["residual_ms"]["median"]
    assert result["amortized_ms"] == pytest.approx((key + 2 * res) / 3)
    assert result["state_bytes"] == 720 and result["device"]["threads"] == 1
    assert {k["program"] for k in result["kernels"]} == {"keyframe", "residual"}
    assert set(result) >= {"bops_amortized", "layers"}
    assert call("bench", artifact, "--repeats", 3, "--no-profile")[0] == 0


def test_inspect(call: Any, artifact: str) -> None:
    code, out, _ = call("inspect", artifact, "--json")
    assert code == 0 and json.loads(out)["scheme"] == "W8A8->W8A4"
    assert json.loads(out)["workspace_bytes"] == 0
    code, out, _ = call("inspect", artifact)
    assert code == 0 and "library.so" in out
    assert re.search(r"programs +keyframe residual *\n", out)
    assert re.search(r"workspace bytes +0 *\n", out)


def test_doctor(call: Any) -> None:
    code, out, _ = call("doctor", "--json")
    result = json.loads(out)
    assert code == (0 if result["ok"] else 1)
    names = {check["name"] for check in result["checks"]}
    assert names >= {"apache-tvm-ffi", "target auto", "C++ compiler", "video codecs", "tvm"}
    assert all(check["hint"] for check in result["checks"] if not check["ok"])


FAILURES = {
    "missing artifact": (["inspect", "absent.resq"], 1, "ArtifactError", "does not exist"),
    "missing clip": (
        ["run", "ARTIFACT", "--input", "absent.mp4", "-o", "OUT"], 1, "ClipError", "does not exist",
    ),
    "bad range": (
        ["run", "ARTIFACT", "--input", "random", "--frames", "9:3", "-o", "OUT"],
        1, "ConfigError", "frame range",
    ),
    "bad period": (
        ["run", "ARTIFACT", "--input", "random", "--period", "0", "-o", "OUT"],
        1, "ConfigError", "period 0",
    ),
    "too many threads": (["bench", "ARTIFACT", "--threads", "999"], 1, "ConfigError", "threads"),
    "unwritable output": (
        ["run", "ARTIFACT", "--input", "random", "-o", "/proc/nowhere/out"],
        1, "OutputError", "cannot be written",
    ),
    "unknown verb": (["fly"], 2, "UsageError", "fly"),
    "missing option": (["run", "ARTIFACT"], 2, "MissingParameter", "--input"),
    "bad scheme": (
        ["compile", "zoo:tiny_seg", "--calibration", "random", "--scheme", "W9A8", "-o", "OUT"],
        1, "SchemeError", "9 weight bits",
    ),
    "half a scheme": (
        ["compile", "zoo:tiny_seg", "--calibration", "random", "--scheme", "W8A8->", "-o", "OUT"],
        1, "SchemeError", "malformed",
    ),
    "zero bits": (
        ["bops", "zoo:tiny_seg", "--scheme", "W0A4"], 1, "SchemeError", "0 weight bits",
    ),
    "bits between one code and two": (
        ["bops", "zoo:tiny_seg", "--scheme", "W8A9"], 1, "SchemeError", "or 10 to 16 on keyframes",
    ),
    "an unknown rounding": (
        ["calibrate", "zoo:tiny_seg", "--calibration", "random", "--rounding", "up", "-o", "OUT"],
        1, "ConfigError", "rounding 'up' is unknown; use gptq or nearest",
    ),
    "unknown target": (
        ["compile", "zoo:tiny_seg", "--calibration", "random", "--target", "pdp11", "-o", "OUT"],
        1, "TargetError", "pdp11",
    ),
    "a budget without a pool": (
        ["compile", "zoo:tiny_seg", "--calibration", "random", "--budget", "1 %", "-o", "OUT"],
        1, "ConfigError", "use a pool of bits",
    ),
    "a time to calibrate": (
        ["calibrate", "zoo:tiny_seg", "--calibration", "random", "--scheme", "W8A8->W8A{0,8}",
         "--budget", "5 ms", "-o", "OUT"], 1, "ConfigError", "give it to 'compile'",
    ),
    "a tile budget without a pool": (
        ["compile", "zoo:tiny_seg", "--calibration", "random", "--tile-budget", "0.5", "-o", "OUT"],
        1, "ConfigError", "a tile budget needs a scheme with a pool of bits",
    ),
    "a tile budget out of range": (
        ["compile", "zoo:tiny_seg", "--calibration", "random", "--scheme", "W8A8->W8A{0,8}",
         "--tile-budget", "2", "-o", "OUT"], 1, "ConfigError", "tile budget 2.0 is out of range",
    ),
    "no calibration": (
        ["compile", "zoo:tiny_seg", "-o", "OUT"], 1, "ConfigError", "--calibration",
    ),
    "bad override": (
        ["bops", "zoo:tiny_seg", "--override", "conv"], 1, "ConfigError", "PATTERN=SCHEME",
    ),
    "bad shape": (
        ["bops", "zoo:tiny_seg", "--input-shape", "1x-3"], 1, "ConfigError", "input shape",
    ),
    "output is no artifact": (
        ["compile", "zoo:tiny_seg", "--calibration", "random", "-o", "FULL"],
        1, "OutputError", r"without manifest.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_failures(call: Any, artifact: str, tmp_path: Path, name: str) -> None:
    words, wanted, kind, message = FAILURES[name]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    places = {"ARTIFACT": artifact, "OUT": tmp_path / "out", "FULL": tmp_path / "full"}
    arguments = [places.get(word, word) for word in words]
    code, out, err = call(*arguments, "--json")
    assert (code, out) == (wanted, "")
    error = json.loads(err)["error"]
    assert message in error["message"]
    assert error["type"] == kind or wanted == 2  # typer's own classes differ between versions
    code, _, err = call(*arguments)
    assert code == wanted
    assert err.splitlines()[-1].startswith("resq-tvm: error: ") and message in err
    assert not (tmp_path / "out").exists()


def test_damaged_artifact(call: Any, tmp_path: Path) -> None:
    folder = tmp_path / "n.resq"
    tiny_artifact.write(folder)
    (folder / "library.so").unlink()  # the file may be mapped into this process
    (folder / "library.so").touch()
    code, _, err = call("run", folder, "--input", "random", "-o", tmp_path / "o", "--json")
    assert code == 1 and json.loads(err)["error"]["type"] == "ArtifactError"


def test_interruption_leaves_nothing(artifact: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = program(
        "run", artifact, "--input", "random", "--frames", "0:10000000",
        "-o", str(tmp_path / "o"), env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    while "run: frame" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "resq-tvm: error: interrupted; no output was written"
    assert list(tmp_path.iterdir()) == []


def test_closed_pipe_is_quiet(artifact: str) -> None:
    process = program("inspect", artifact)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.wait(timeout=60)
    assert "Traceback" not in process.stderr.read()

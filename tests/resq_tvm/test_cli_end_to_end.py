"""From a model to predictions by the command line alone, on the small network of the zoo."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data import data_path

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def resq(*arguments: object, code: int = 0) -> Any:
    """Run the command line in a process of its own and return its JSON document."""
    done = subprocess.run(
        [sys.executable, "-m", "resq_tvm.cli", *map(str, arguments), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return json.loads(done.stderr if code else done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold ``net.resq`` (W8A8->W8A4) and ``frame.resq`` (W8A8), compiled from one model."""
    path = tmp_path_factory.mktemp("end-to-end")
    (path / "segmentation.json").write_text(
        json.dumps({"input": {"scale": 1 / 255}, "task": {"task": "segmentation"}})
    )
    common = ("--calibration", "random", "--calibration-frames", 8, "--period", 3,
              "--processing", path / "segmentation.json")  # fmt: skip
    result = resq(
        "compile", "zoo:tiny_seg", *common, "--scheme", "W8A8->W8A4", "--dump", path / "dump",
        "-o", path / "net.resq",
    )  # fmt: skip
    assert result["scheme"] == "W8A8->W8A4" and result["state_bytes"] > 0
    assert result["arguments"]["target"].startswith("x86-")
    assert all(len(list((path / "dump" / part).glob("*.py"))) >= 2 for part in ("load", "compile"))
    resq("calibrate", "zoo:tiny_seg", *common, "--scheme", "W8A8", "-o", path / "frame.qnet")
    resq("compile", path / "frame.qnet", "--processing", path / "segmentation.json", "-o",
         path / "frame.resq")  # fmt: skip
    return path


def test_run(folder: Path) -> None:
    summary = resq("run", folder / "net.resq", "--input", "random", "-o", folder / "predictions")
    assert (summary["frames"], summary["keyframes"]) == (32, 11)
    with np.load(summary["output"]) as archive:
        scores = archive["output_0"]
    assert scores.shape[0] == 32 and np.isfinite(scores).all()
    assert Path(summary["overlay"]).stat().st_size > 1000


def test_bench(folder: Path) -> None:
    result = resq("bench", folder / "net.resq", "--threads", 1, "--repeats", 5)
    assert result["bops_keyframe"] == 2 * result["bops_residual"]
    assert {kernel["program"] for kernel in result["kernels"]} == {"keyframe", "residual"}
    profiled = sum(k["ms"] for k in result["kernels"] if k["program"] == "keyframe")
    assert 0 < profiled < 3 * result["keyframe_ms"]["p90"]
    assert len(result["layers"]) == 8


def test_bops_and_inspect_agree(folder: Path) -> None:
    counted = resq("bops", "zoo:tiny_seg", "--scheme", "W8A8->W8A4", "--period", 3)
    stored = resq("inspect", folder / "net.resq")
    assert counted["bops_amortized"] == stored["bops"]["bops_amortized"]
    assert [la["name"] for la in counted["layers"]] == [la["name"] for la in stored["layers"]]


def test_evaluate(folder: Path) -> None:
    command = (
        "evaluate", folder / "net.resq", "--frame", folder / "frame.resq", "--input",
        data_path("clips/carphone_pristine.mp4"), "--frames", "0:9", "--model", "zoo:tiny_seg",
    )  # fmt: skip
    result = resq(*command)
    assert (result["period"], result["residual"]["frames"], result["unit"]) == (3, 6, "% pixels")
    assert 0 <= result["residual"]["frame"] < 20
    # Its guard has nothing to look at: frames are the same, but keyframes are counted.
    guarded = resq(*command, "--guard")
    assert guarded["residual"] == result["residual"]
    assert (guarded["period"], guarded["keyframes"]) == (None, 3)


def test_evaluate_judges_repeats_against_holding(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "dynamic.resq"
    resq(
        "compile", "zoo:tiny_seg", "--calibration", "random", "--calibration-frames", 8,
        "--processing", folder / "segmentation.json", "--scheme", "W8A8->W8A{0,8}",
        "--period", 3, "--no-frame-program", "-o", made,
    )  # fmt: skip
    command = (
        "evaluate", made, "--frame", folder / "frame.resq", "--input",
        data_path("clips/carphone_pristine.mp4"), "--frames", "0:9", "--model", "zoo:tiny_seg",
    )  # fmt: skip
    result = resq(*command, "--repeat", 1)
    assert (result["period"], result["residual"]["frames"]) == (3, 6)
    # Whatever changed, keyframes are repeated: that is holding them.
    residual, computed = result["residual"], resq(*command)["residual"]
    assert residual["scheme"] == pytest.approx(residual["hold"], abs=0.3)
    assert computed["scheme"] != residual["scheme"]


def test_thresholds_are_fitted_to_a_budget(folder: Path, tmp_path: Path) -> None:
    common = ("--calibration", "random", "--calibration-frames", 8,
              "--processing", folder / "segmentation.json")  # fmt: skip
    pool = ("--scheme", "W8A8->W8A{0,8}", "--period", 3)
    tau = tmp_path / "tau.qnet"
    assert "fit" not in resq("calibrate", "zoo:tiny_seg", *common, *pool, "--tau", 0, "-o", tau)
    fitted = tmp_path / "fitted.qnet"
    result = resq("calibrate", tau, *common, "--budget", "50 % work", "-o", fitted)["fit"]
    assert result["work"] <= 0.5 < result["static_work"] and result["unit"] == "% pixels"
    choices = json.loads((fitted / "network.json").read_text())["dynamic"]["choices"]
    assert any(choice["tau"] > 0 for choice in choices.values())
    before = json.loads((tau / "network.json").read_text())["dynamic"]["choices"]
    assert all(choice["tau"] == 0 for choice in before.values())


def test_layers_with_more_bits_on_keyframes_are_named(tmp_path: Path) -> None:
    common = ("calibrate", "zoo:tiny_seg", "--calibration", "random", "--calibration-frames", 6)
    precise = tmp_path / "precise.qnet"
    result = resq(*common, "--scheme", "W8A8->W8A4", "--precise", 0.5, "-o", precise)
    layers = json.loads((precise / "network.json").read_text())["layers"]
    found = [name for name, scheme in layers.items() if scheme == "W8A16->W8A4"]
    assert found and set(result["precise"].split(", ")) == set(found) < set(layers)
    nearest = tmp_path / "nearest.qnet"
    assert "precise" not in resq(*common, "--rounding", "nearest", "-o", nearest)
    sizes = [(q / "constants.safetensors").stat().st_size for q in (precise, nearest)]
    assert sizes[0] > sizes[1]  # rounded weights are kept beside the network's own


def test_loading_is_quick(folder: Path) -> None:
    import tvm  # noqa: F401  the half second is counted after this

    from resq_tvm.session import Session

    start = time.perf_counter()
    Session(folder / "net.resq")
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    ("model", "kind"),
    [("absent.onnx", "ModelError"), ("README.md", "ModelError"), ("zoo:nothing", "ModelError")],
)
def test_what_is_no_model(model: str, kind: str, tmp_path: Path) -> None:
    error = resq(
        "compile", model, "--calibration", "random", "-o", tmp_path / "x.resq", code=1
    )["error"]  # fmt: skip
    assert error["type"] == kind and "\n" not in error["message"]


def test_unsupported_operators_are_listed(tmp_path: Path) -> None:
    model = data_path("models/selfie_segmentation.tflite")
    error = resq("compile", model, "--calibration", "random", "-o", tmp_path / "x", code=1)["error"]
    assert error["type"] == "UnsupportedOperatorError"
    assert "Convolution2DTransposeBias" in error["message"]

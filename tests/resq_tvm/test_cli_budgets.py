"""Budgets of tiles and of milliseconds by the command line, on a network without calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resq_tvm.cli import main
from resq_tvm.quantize.qnet import QuantizedNetwork
from tests.dynamic import dynamic, small_network
from tests.resq_tvm.test_held_outputs import two_heads


@pytest.fixture
def resq(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process; return its JSON document, or its text."""

    def run(*arguments: object, code: int = 0, as_json: bool = True) -> Any:
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments), *(["--json"] if as_json else [])])
        streams = capsys.readouterr()
        assert (caught.value.code or 0) == code, streams.err
        if not as_json:
            return streams.out
        return json.loads(streams.err if code else streams.out)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return dynamic(small_network(), (0, 8), tau=0.0, threshold=0.0).save(tmp_path / "net.qnet")


CLIP = ("--calibration", "random", "--calibration-frames", 5)


def test_a_share_of_tiles_and_the_programs(resq: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.resq"
    arguments = resq("compile", model, "--tile-budget", 0.25, "-o", out)["arguments"]
    assert arguments["tile_budget"] == 0.25 and arguments["frame_program"] is True
    found = resq("inspect", out)
    assert found["probe"] and found["frame_params"] and found["workspace_bytes"] > 0
    text = resq("inspect", out, as_json=False)
    assert "keyframe residual probe note frame" in text and str(found["workspace_bytes"]) in text


def test_outputs_that_frames_hold(resq: Any, tmp_path: Path) -> None:
    model = dynamic(two_heads(), (0, 8)).save(tmp_path / "heads.qnet")
    out = tmp_path / "net.resq"
    command = ("compile", model, "--no-frame-program", "-o", out)
    assert resq(*command, "--hold", "y1")["arguments"]["hold"] == ["y1"]
    found = resq("inspect", out)
    assert found["options"]["held"] == "y1"
    kernels = {k["layer"] for k in found["kernels"] if k["program"] == "residual"}
    assert "asked" in kernels and "mask" not in kernels
    error = resq(*command, "--hold", "y2", code=1)["error"]
    assert error["message"] == "output 'y2' is none of the network's; use y0, y1"


def test_milliseconds_under_a_share_of_tiles(
    resq: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resq_tvm import latency

    seen: list[QuantizedNetwork] = []

    def fixed_cost(qnet: QuantizedNetwork, *_args: object, **_options: object) -> Any:
        seen.append(qnet)
        return lambda shares: 1 + 2 * shares["first"] + shares["second"]

    monkeypatch.setattr(latency, "layer_cost", fixed_cost)
    out = tmp_path / "net.resq"
    command = ("compile", model, *CLIP, "--tile-budget", 0.5, "--no-frame-program", "-o", out)
    result = resq(*command, "--budget", "2 ms")
    assert result["arguments"]["frame_program"] is False
    fit = result["fit"]
    assert 1 < fit["predicted_ms"] == fit["cost"] <= 2 and fit["error"] > fit["static_error"]
    assert [q.dynamic["budget"] for q in seen if q.dynamic] == [0.5]
    assert resq("inspect", out)["frame_params"] is None
    error = resq(*command, "--budget", "0.5 ms", code=1)["error"]
    assert error["type"] == "ConfigError"
    assert "0.5 ms cannot be kept" in error["message"] and "costs 1 ms" in error["message"]
    # Other budgets measure nothing.
    text = resq(*command, "--budget", "50 % output", as_json=False)
    assert "error, % output" in text and "predicted" not in text and len(seen) == 2


def test_the_table_tells_the_prediction(resq: Any, model: Path, tmp_path: Path) -> None:
    text = resq(
        "compile", model, *CLIP, "--budget", "1000 ms", "-o", tmp_path / "net.resq", as_json=False
    )
    (line,) = [line for line in text.splitlines() if "predicted ms of a residual frame" in line]
    assert 0 < float(line.split()[-1]) < 1000
    assert "error, % output" in text


def test_fits_for_the_guard(resq: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.resq"
    command = ("compile", model, *CLIP, "--guarded", "-o", out)
    found = resq(*command, "--budget", "300 %")
    # Frames of noise: all of them change everywhere, so that the guard would take them.
    assert found["arguments"]["guarded"] is True
    assert 0 <= found["fit"]["alone"] <= found["fit"]["frames"]
    for more, word in (
        ((), "budget of error"),
        (("--budget", "50 % work"), "50 % work"),
        (("--budget", "5 %", "--target", "cortex-a53"), "cortex-a53"),
        (("--budget", "5 %", "--no-frame-program"), "'frame'"),
    ):
        assert word in resq(*command, *more, code=1)["error"]["message"]

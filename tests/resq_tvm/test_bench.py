"""The benchmark attributes kernels to layers and amortises over the period."""

from __future__ import annotations

from pathlib import Path

import pytest

from resq_tvm.bench import Latency, benchmark
from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.video.clip import Clip
from tests.resq_tvm import tiny_artifact

LAYER = {
    "name": "scale",
    "op": "conv2d",
    "macs": 90,
    "key_bits": "W8A8",
    "residual_bits": "W8A4",
}
KERNELS = [
    {"name": "multiply", "program": "keyframe", "layer": "scale"},
    {"name": "subtract", "program": "residual", "layer": "scale"},
]
BOPS = {"macs": 90, "bops_keyframe": 6400, "bops_residual": 3200}


def test_report(tmp_path: Path) -> None:
    artifact = tiny_artifact.write(tmp_path / "n.resq", layers=[LAYER], kernels=KERNELS, bops=BOPS)
    told: list[tuple[str, int, int]] = []
    report = benchmark(
        artifact, threads=1, period=5, repeats=4, progress=lambda *step: told.append(step)
    )
    assert report.residual is not None
    assert (report.keyframe.samples, report.residual.samples) == (4, 12)
    assert report.bops_amortized == (6400 + 4 * 3200) / 5
    expected = (report.keyframe.median + 4 * report.residual.median) / 5
    assert report.amortized_ms == pytest.approx(expected)
    (layer,) = report.to_dict()["layers"]
    assert layer["keyframe_ms"] > 0 and layer["residual_ms"] > 0
    assert next(k["layer"] for k in report.kernels if k["name"] == "multiply") == "scale"
    assert told[-1] == ("round", 4, 4)


def test_frame_quantization_has_no_residual(tmp_path: Path) -> None:
    artifact = tiny_artifact.write(tmp_path / "n.resq", scheme="W8A8", state=[], bops=BOPS)
    report = benchmark(artifact, repeats=2, profile=False)
    assert report.residual is None and report.to_dict()["residual_ms"] is None
    assert report.amortized_ms == report.keyframe.median
    assert report.bops_amortized == 6400


def test_percentiles() -> None:
    latency = Latency.of([float(i) for i in range(101)])
    assert (latency.p10, latency.median, latency.p90) == (10, 50, 90)


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    artifact = tiny_artifact.write(tmp_path / "n.resq")
    with pytest.raises(ConfigError, match="repeats 0"):
        benchmark(artifact, repeats=0)
    with pytest.raises(ClipError, match="no good frame"):
        benchmark(artifact, Clip("lost", lambda: iter([None])))

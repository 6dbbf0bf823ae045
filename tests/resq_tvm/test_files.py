"""Outputs appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from resq_tvm.errors import OutputError
from resq_tvm.files import atomic_file, atomic_folder, check_writable, sha256_file


def test_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x.txt"
    with atomic_file(target) as staging:
        staging.write_text("done")
        assert not target.exists() and staging.suffix == ".txt"
    assert target.read_text() == "done"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_file(target) as staging:
        staging.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_replaces_only_its_kind(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    for text in ("one", "two"):
        with atomic_folder(target, "marker") as staging:
            (staging / "marker").write_text(text)
    assert (target / "marker").read_text() == "two"
    (target / "marker").unlink()
    (target / "other").touch()
    with pytest.raises(OutputError, match="without marker"), atomic_folder(target, "marker"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


def test_failure_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    with atomic_folder(target, "marker") as staging:
        (staging / "marker").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target, "marker") as staging:
        (staging / "marker").write_text("half")
        raise RuntimeError
    assert (target / "marker").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable(tmp_path / "file" / "x")
    with pytest.raises(OutputError, match="is a folder; name a file"), atomic_file(tmp_path):
        pass
    with (
        pytest.raises(OutputError, match="is a file; name a folder"),
        atomic_folder(tmp_path / "file", "marker"),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        check_writable(tmp_path / "x")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()

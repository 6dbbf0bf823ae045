"""The board kit comes out of wheels once, and the cross compiler's complaints are one line."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from resq_tvm.errors import AssetError, TargetError
from resq_tvm.targets import boardkit
from resq_tvm.targets.boardkit import board_kit, cross_compile
from tests.tools import need


class FakePip:
    """Stands in for ``pip download``."""

    def __init__(self, members: tuple[str, ...]) -> None:
        self.members, self.requirements = members, list[str]()

    def __call__(self, command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        self.requirements.append(command[-1])
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "x-1.0-py3-none-any.whl", "w") as wheel:
            for member in self.members:
                wheel.writestr(member, member.encode())
        return subprocess.CompletedProcess(command, 0, "", "")


ALL = tuple(m for members in boardkit._MEMBERS.values() for m in members)


def test_libraries_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip((*ALL, "tvm/lib/libtvm_compiler.so"))
    monkeypatch.setattr(subprocess, "run", pip)
    told: list[str] = []
    kit = board_kit(tmp_path, told.append)
    assert board_kit(tmp_path, told.append) == kit and len(told) == len(pip.requirements) == 2
    assert (kit.libraries / "libtvm_ffi.so").read_bytes() == b"tvm_ffi/lib/libtvm_ffi.so"
    assert not (kit.libraries / "libtvm_compiler.so").exists()
    headers = ("tvm/runtime/base.h", "tvm/ffi/function.h", "dlpack/dlpack.h")
    for folder, header in zip(kit.includes, headers, strict=True):
        assert (folder / header).is_file()


def test_a_broken_wheel_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(ALL[:1]))
    with pytest.raises(AssetError, match=r"libtvm_runtime_extra\.so; fill the cache folder"):
        board_kit(tmp_path)
    assert list((tmp_path / "board").iterdir()) == []


def test_no_compiler_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(TargetError, match=r"install the package g\+\+-aarch64"):
        cross_compile([], tmp_path / "x", None)


def test_errors_of_the_compiler(tmp_path: Path) -> None:
    need("aarch64-linux-gnu-g++")
    source = tmp_path / "wrong.cc"
    source.write_text("int main() { return nothing; }\n")
    with pytest.raises(TargetError, match=r"cannot make program: .*nothing") as error:
        cross_compile([source], tmp_path / "program", None)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["wrong.cc"]

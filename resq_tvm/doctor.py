"""Checks of the installation: what a compile, a run and a demo need from this machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from resq_tvm.device import available_cpus, fingerprint
from resq_tvm.errors import TargetError
from resq_tvm.files import cache_folder

SHOWN_PACKAGES = (
    "resq-tvm", "apache-tvm", "apache-tvm-ffi", "torch", "numpy", "onnx", "tflite", "av",
    "opencv-python-headless", "safetensors", "pydantic",
)  # fmt: skip

BOARD = "aarch64"  # boards' architecture, as ``uname -m`` spells it


@dataclass(frozen=True)
class Check:
    """One finding; ``hint`` says what to do where ``ok`` is false.

    What is ``optional`` may be absent: only the work that its hint names needs it.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""
    optional: bool = False

    @property
    def fine(self) -> bool:
        """Whether the installation is sound as far as this goes."""
        return self.ok or self.optional


def examine() -> list[Check]:
    """Run all checks; none raises."""
    return [
        *_packages(),
        _python(),
        _cpu(),
        _target(),
        _compiler(),
        _library(),
        _video(),
        _writable("working folder", Path.cwd()),
        _writable("cache folder", cache_folder()),
        *_boards(),
    ]


def pinned_versions() -> dict[str, str]:
    """Return the distributions that resq-tvm pins exactly, with their versions."""
    try:
        lines = requires("resq-tvm") or []
    except PackageNotFoundError:  # a checkout that is not installed
        return {}
    exact = (line.split(";")[0].strip().partition("==") for line in lines if "==" in line)
    return {name.strip(): pin.strip() for name, _, pin in exact if " extra " not in pin}


def _packages() -> list[Check]:
    pins = pinned_versions()
    checks = []
    for name in SHOWN_PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            checks.append(Check(name, False, "not installed", f"pip install {name}"))
            continue
        wanted = pins.get(name)
        # "2.13.0+cpu" is 2.13.0 with a local label.
        ok = wanted is None or found.split("+")[0] == wanted
        hint = "" if ok else f"pip install '{name}=={wanted}'"
        if not ok and name == "apache-tvm-ffi":
            hint += " (0.1.15 makes Schedule.tensorize crash with this apache-tvm)"
        checks.append(Check(name, ok, found, hint))
    return checks


def _python() -> Check:
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Check("python", ok, platform.python_version(), "" if ok else "use Python 3.11 or 3.12")


def _cpu() -> Check:
    device = fingerprint()
    detail = f"{device['cpu']}, {available_cpus()} CPUs, {device['memory_mib']} MiB"
    return Check("machine", True, detail)


def _target() -> Check:
    from resq_tvm.targets.npu.description import preset_npus
    from resq_tvm.targets.preset import PRESETS, get_target, missing_features
    from resq_tvm.targets.toolchain import is_foreign

    try:
        chosen = get_target("auto")
    except TargetError as error:
        return Check("target auto", False, "none", str(error))
    lacking = [
        f"{preset.name} lacks {' '.join(missing_features(preset))}"
        for preset in PRESETS.values()
        if missing_features(preset) and not is_foreign(preset)
    ]
    boards = [preset.name for preset in PRESETS.values() if is_foreign(preset)]
    others = [f"for boards: {', '.join(boards)}"] if boards else []
    others.append(f"simulated: {', '.join(preset_npus())}")
    return Check("target auto", True, "; ".join([chosen.name, *lacking, *others]))


def _compiler() -> Check:
    wanted = [os.environ.get("CXX"), "g++", "gcc", "clang++", "clang"]
    path = next((found for name in wanted if name and (found := shutil.which(name))), None)
    if path is None:
        hint = "install g++: artifacts are linked with it"
        return Check("C++ compiler", False, "absent", hint)
    return Check("C++ compiler", True, path)


def _boards() -> list[Check]:
    """Return what compiling for ARM boards, and counting on emulated ones, need here."""
    from resq_tvm.targets.boardkit import has_board_libraries, require_tool
    from resq_tvm.targets.emulated.board import EMULATOR
    from resq_tvm.targets.emulated.instructions import DISASSEMBLER, PACKAGE
    from resq_tvm.targets.toolchain import require_cross_compiler

    if platform.machine() == BOARD:
        return []

    def tool(name: str, use: str, find: Callable[[], str]) -> Check:
        try:
            return Check(name, True, find(), optional=True)
        except TargetError as error:
            return Check(name, False, "absent", f"{use}: {error}", optional=True)

    fetched = has_board_libraries()
    return [
        tool("ARM cross compiler", "for ARM targets", lambda: require_cross_compiler(BOARD)),
        tool("ARM emulator", "to emulate boards", lambda: require_tool(EMULATOR, "qemu-user")),
        tool("ARM disassembler", "to emulate boards", lambda: require_tool(DISASSEMBLER, PACKAGE)),
        Check(
            "board libraries",
            fetched,
            "in the cache" if fetched else "absent",
            "" if fetched else "to emulate boards: fetched when first needed (95 MB)",
            optional=True,
        ),
    ]


def _library() -> Check:
    def load() -> str:
        import tvm

        if not tvm.runtime.enabled("llvm"):
            raise RuntimeError("built without LLVM")
        return f"loads, LLVM {tvm.target.codegen.llvm_version_major()}"

    return _tried("tvm", load, "pip install --force-reinstall apache-tvm apache-tvm-ffi")


def _video() -> Check:
    def load() -> str:
        import av

        av.codec.Codec("h264", "r")
        av.codec.Codec("libx264", "w")
        return f"PyAV {av.__version__}: H.264 in and out"

    return _tried("video codecs", load, "pip install --force-reinstall av")


def _tried(name: str, action: Callable[[], str], hint: str) -> Check:
    try:
        return Check(name, True, action())
    except Exception as error:  # whatever is wrong with the installation is the finding
        return Check(name, False, f"{type(error).__name__}: {error}".splitlines()[0], hint)


def _writable(name: str, folder: Path) -> Check:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check(name, False, f"{folder}: {error.strerror}", "choose a writable folder")
    return Check(name, True, f"{folder} is writable")

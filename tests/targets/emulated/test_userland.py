"""The arm64 system with Python: what it holds, what programs see in it, what can be absent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from resq_tvm.errors import AssetError, TargetError
from resq_tvm.targets.emulated import userland as module
from resq_tvm.targets.emulated.cores import CORES
from resq_tvm.targets.emulated.identity import identities, identity_of
from resq_tvm.targets.emulated.userland import WHEELS, Userland, userland
from tests.userlands import userland_or_skip

_ASK = """
import json, os, platform, subprocess, sys, numpy
child = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True)
print(json.dumps({
    "machine": platform.machine(),
    "version": list(sys.version_info[:2]),
    "cpus": os.cpu_count(),
    "cpuinfo": open("/proc/cpuinfo").read(),
    "numpy": numpy.__file__,
    "simd": numpy.show_config("dicts")["SIMD Extensions"].get("found", []),
    "child": child.stdout.strip(),
}))
"""


def ask(system: Userland) -> dict[str, Any]:
    done = subprocess.run(
        system.command(["-c", _ASK]), env=system.environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.aarch64
@pytest.mark.parametrize(("core", "dot"), [("cortex-a72", False), ("cortex-a76", True)])
def test_python_sees_the_core(core: str, dot: bool) -> None:
    system = userland_or_skip("server", core)
    seen = ask(system)
    assert (seen["machine"], seen["version"], seen["cpus"]) == ("aarch64", [3, 11], 1)
    assert seen["cpuinfo"] == identity_of(core).files()["proc/cpuinfo"]
    assert ("ASIMDDP" in seen["simd"]) is dot  # by the processor's feature bits
    assert Path(seen["numpy"]).is_relative_to(system.packages)
    assert seen["child"] == "42"  # Python can start itself
    # What is there is not fetched again.
    assert userland("server", core, progress=pytest.fail).system == system.system


def test_every_core_has_a_likely_identity() -> None:
    assert {core.name for core in identities()} == set(CORES)
    for core in identities():
        files = core.files()
        assert f"CPU part\t: 0x{core.midr >> 4 & 0xFFF:03x}" in files["proc/cpuinfo"]
        dots = core.name not in ("cortex-a53", "cortex-a72")
        assert ("asimddp" in core.features.split()) is dots
        assert ("i8mm" in core.features.split()) is (core.name == "cortex-a710")
    assert len({core.midr for core in identities()}) == len(CORES)


class FakeTools:
    """Stands in for apt-get, dpkg and pip."""

    def __init__(self, fail: str = "", stderr: str = "") -> None:
        self.fail, self.stderr, self.ran = fail, stderr, list[list[str]]()

    def __call__(self, command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        self.ran.append(command)
        if self.fail and self.fail in " ".join(command):
            return subprocess.CompletedProcess(command, 100, "", self.stderr)
        settings = dict(w.split("=", 1) for w in command if w.startswith("Dir::"))
        if "--download-only" in command:
            (Path(settings["Dir::Cache"]) / "archives" / "python_1_arm64.deb").touch()
        if "-x" in command:
            (Path(command[-1]) / "usr" / "bin").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> FakeTools:
    fake = FakeTools()
    monkeypatch.setattr(module, "require_tool", lambda name, _package: name)
    monkeypatch.setattr(module, "_installed", lambda _package: "1.0")
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def test_the_systems_own_packages_are_left_alone(tools: FakeTools, tmp_path: Path) -> None:
    told: list[str] = []
    system = userland("server", "cortex-a53", tmp_path, told.append)
    assert len(told) == 2
    for command in (c for c in tools.ran if c[0] == "apt-get"):
        settings = dict(w.split("=", 1) for w in command if "::" in w)
        assert settings["APT::Architectures"] == "arm64"
        for name in ("Dir::State", "Dir::State::status", "Dir::Cache"):
            assert Path(settings[name]).name in ("state", "status", "cache")
            assert not settings[name].startswith(("/var", "/etc"))
    (pip,) = (c for c in tools.ran if "pip" in c)
    assert pip[-len(WHEELS["server"]) :] == [f"{name}==1.0" for name in WHEELS["server"]]
    assert (system.root / "proc" / "cpuinfo").read_text().count("0xd03") == 1
    assert (system.root / "usr" / "bin").is_dir()
    tools.ran.clear()
    userland("server", "cortex-a76", tmp_path, told.append)  # another core: the same folders
    assert tools.ran == [] and len(told) == 2


@pytest.mark.parametrize(
    ("fail", "stderr", "message"),
    [
        ("update", "E: Failed to fetch", "apt-get cannot fetch .*(E: Failed to fetch)"),
        ("--download-only", "E: Unable to locate package python3.11-minimal", "Unable to locate"),
        ("-x", "dpkg-deb: error: broken", "dpkg cannot .* python_1_arm64.deb"),
        ("pip", "ERROR: No matching distribution", "apache-tvm==1.0.*No matching distribution"),
    ],
)
def test_what_cannot_be_had_is_told_and_leaves_nothing(
    tools: FakeTools, tmp_path: Path, fail: str, stderr: str, message: str
) -> None:
    tools.fail, tools.stderr = fail, stderr
    with pytest.raises(AssetError, match=message) as error:
        userland("server", cache=tmp_path)
    assert "\n" not in str(error.value)
    assert not [p for p in (tmp_path / "userland").iterdir() if not (p / "complete").is_file()]
    tools.fail = ""
    assert (userland("server", cache=tmp_path).packages / "complete").is_file()


def test_absent_programs_and_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match="userland 'desktop' is unknown; use server or peers"):
        userland("desktop", cache=tmp_path)
    with pytest.raises(TargetError, match="core '8086' cannot be emulated"):
        userland("server", "8086", cache=tmp_path)
    monkeypatch.setitem(WHEELS, "server", ("no-such-package",))
    with pytest.raises(TargetError, match="no-such-package is not installed"):
        userland("server", cache=tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TargetError, match="apt-get is not installed"):
        userland("server", cache=tmp_path)

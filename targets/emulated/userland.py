"""A 64-bit ARM Linux with Python in a folder, run by qemu's user mode: for tests and benchmarks.

Debian's arm64 packages come by apt-get from the sources that this system is set up with, Python
packages as wheels by pip. apt-get works on a package state of its own: neither the system's list
of architectures nor anything else of it changes, and root is not needed.

Programs see the core that they are meant to run on, in its feature bits as in ``/proc/cpuinfo``
and below ``/sys/devices/system/cpu``: libraries with kernels for several cores choose by them.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from resq_tvm.errors import AssetError, TargetError
from resq_tvm.files import atomic_folder, cache_folder
from resq_tvm.targets.boardkit import require_tool
from resq_tvm.targets.emulated.board import EMULATOR
from resq_tvm.targets.emulated.cores import get_core
from resq_tvm.targets.emulated.identity import Identity, identities, identity_of

PYTHON = "3.11"

# Their dependencies come along: glibc, OpenSSL, zlib, libffi, expat and so on.
DEBIAN = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6", "libgomp1")
WHEELS = {
    # what TVM's RPC server imports
    "server": ("apache-tvm", "apache-tvm-ffi", "numpy", "tornado", "psutil", "cloudpickle"),
    # the inference engines that benchmarks measure beside our programs
    "peers": ("numpy", "onnxruntime", "ai-edge-litert"),
}
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64")
_MARKER = "complete"  # is written last
_TIMEOUT_S = 900
_WAY_OUT = "fill the cache folder on a machine with a network and copy it"

_FILES = "files"  # what the Debian packages hold

# Python starts itself again (TVM's RPC server does) by its own name: this script, because the
# kernel cannot start a program of another architecture.
_START = f"""#!/bin/sh
exec {EMULATOR} -0 "$0" "${{0%/*}}/{_FILES}/usr/bin/python{PYTHON}" "$@"
"""


@dataclass(frozen=True)
class Userland:
    """An unpacked system with a set of Python packages, as seen on one core.

    Attributes
    ----------
    system : Path
        The folder of the Debian packages.
    packages : Path
        The folder of the Python packages.
    core : Identity
        The core that programs believe to run on.
    """

    system: Path
    packages: Path
    core: Identity

    @property
    def root(self) -> Path:
        """The folder whose files programs see before this machine's."""
        return self.system / "cores" / self.core.name

    @property
    def python(self) -> Path:
        """The aarch64 program, as `EmulatedBoard.execute` takes it."""
        return self.system / _FILES / "usr" / "bin" / f"python{PYTHON}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that Python needs."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "QEMU_LD_PREFIX": str(self.root),
            "QEMU_CPU": get_core(self.core.name).qemu,
            "PYTHONHOME": "/usr",
            "PYTHONPATH": str(self.packages),
            "PYTHONNOUSERSITE": "1",
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TVM_USE_RUNTIME_LIB": "1",  # TVM's runtime without its compiler: loads in seconds
        }

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command line that runs Python under qemu, without counting anything.

        Parameters
        ----------
        arguments : sequence of str
            Python's, for example ``["-m", "tvm.exec.rpc_server"]``.

        Raises
        ------
        TargetError
            If qemu is not installed.
        """
        emulator = require_tool(EMULATOR, "qemu-user")
        return [emulator, "-0", str(self.system / "python"), str(self.python), *arguments]


def userland(
    kind: str,
    core: str = "cortex-a72",
    cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Userland:
    """Return an arm64 system with Python; fetch and unpack it if it is not there yet.

    Parameters
    ----------
    kind : {"server", "peers"}
        Which Python packages it has, in the versions that are installed here.
    core : str
        The core that programs believe to run on.
    cache : Path, optional
        Where the folders are kept; `resq_tvm.files.cache_folder` by default.
    progress : callable, optional
        Called with one line before each longer step (20 MB of Debian packages, 95 MB of wheels).

    Raises
    ------
    TargetError
        If the kind or the core is unknown, or apt-get, dpkg or a Python package is not installed
        here.
    AssetError
        If packages cannot be had.
    """
    if kind not in WHEELS:
        raise TargetError(f"userland {kind!r} is unknown; use {' or '.join(WHEELS)}")
    identity = identity_of(core)
    requirements = [f"{name}=={_installed(name)}" for name in WHEELS[kind]]
    tell = progress or (lambda _step: None)
    folder = (cache or cache_folder()) / "userland"
    system = folder / f"debian-{_key([*DEBIAN, *map(repr, identities()), _START])}"
    packages = folder / f"{kind}-{_key(requirements)}"
    if not (system / _MARKER).is_file():
        _fetch_system(system, tell)
    if not (packages / _MARKER).is_file():
        _fetch_packages(packages, requirements, tell)
    return Userland(system.resolve(), packages.resolve(), identity)


def _fetch_system(system: Path, tell: Callable[[str], None]) -> None:
    with atomic_folder(system, _MARKER) as staging, tempfile.TemporaryDirectory() as scratch:
        tell(f"download Debian's arm64 Python {PYTHON}")
        for archive in _download_debian(Path(scratch)):
            _run(
                [require_tool("dpkg", "dpkg"), "-x", str(archive), str(staging / _FILES)],
                archive.name,
            )
        # Debian's Python looks here, too; where they are missing it would see this machine's.
        for path in (f"usr/local/lib/python{PYTHON}", "usr/lib/python3"):
            (staging / _FILES / path / "dist-packages").mkdir(parents=True)
        start = staging / "python"
        start.write_text(_START)
        start.chmod(0o755)
        for core in identities():
            view = staging / "cores" / core.name
            for name, text in core.files().items():
                (view / name).parent.mkdir(parents=True, exist_ok=True)
                (view / name).write_text(text)
            for entry in ("usr", "lib", "etc"):
                (view / entry).symlink_to(Path("../..", _FILES, entry))
        (staging / _MARKER).touch()


def _download_debian(scratch: Path) -> list[Path]:
    """Return the archives of `DEBIAN` and all that they depend on."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    status = scratch / "state" / "status"  # of a system where nothing is installed yet
    status.touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",  # the scratch folder is its owner's alone
        "Acquire::Languages": "none",
        "Dir::State": str(scratch / "state"),
        "Dir::State::status": str(status),
        "Dir::Cache": str(scratch / "cache"),
    }
    apt = [require_tool("apt-get", "apt"), "-q", "-y"]
    apt += [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    _run([*apt, "update"], "Debian's list of arm64 packages")
    _run([*apt, "install", "--download-only", *DEBIAN], ", ".join(DEBIAN))
    return sorted((scratch / "cache" / "archives").glob("*.deb"))


def _fetch_packages(packages: Path, requirements: list[str], tell: Callable[[str], None]) -> None:
    tell(f"download {', '.join(requirements)} for aarch64")
    pip = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile",
        "--disable-pip-version-check", "--only-binary", ":all:", "--implementation", "cp",
        "--python-version", PYTHON, *(w for p in _PLATFORMS for w in ("--platform", p)),
    ]  # fmt: skip
    with atomic_folder(packages, _MARKER) as staging:
        _run([*pip, "--target", str(staging), *requirements], ", ".join(requirements))
        (staging / _MARKER).touch()


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise AssetError(
            f"fetching {what} took over {_TIMEOUT_S} s; check the network, or {_WAY_OUT}"
        ) from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith(("E:", "ERROR:"))), lines[-1])
        raise AssetError(
            f"{Path(command[0]).name} cannot fetch or unpack {what} ({reason.strip()}); check the "
            f"network, or {_WAY_OUT}"
        )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise TargetError(
            f"Python package {package} is not installed; the userland takes its version from here"
        ) from None


def _key(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]

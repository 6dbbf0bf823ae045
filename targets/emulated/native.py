"""Compile the C parts of the emulated board on this machine, once per version of their sources."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from resq_tvm.errors import TargetError
from resq_tvm.files import atomic_file, cache_folder

_SOURCES = Path(__file__).parent
_FLAGS = ("-O2", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden")
_TIMEOUT_S = 120


def host_library(name: str, sources: Sequence[str]) -> Path:
    """Return a shared library that is compiled from C files of this folder.

    Parameters
    ----------
    name : str
        The library's name.
    sources : sequence of str
        Files, headers included; those that end in ``.c`` are compiled.

    Raises
    ------
    TargetError
        If there is no C compiler, or it fails.
    """
    compiler = os.environ.get("CC") or next(
        (c for c in ("cc", "gcc", "clang") if shutil.which(c)), None
    )
    if compiler is None or shutil.which(compiler) is None:
        raise TargetError("no C compiler for this machine; install the Debian package gcc")
    digest = hashlib.sha256(" ".join((compiler, platform.machine(), *_FLAGS)).encode())
    for source in sources:
        digest.update((_SOURCES / source).read_bytes())
    library = cache_folder() / "emulated" / f"{name}-{digest.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    files = [str(_SOURCES / source) for source in sources if source.endswith(".c")]
    with atomic_file(library) as staging:
        done = subprocess.run(
            [compiler, *_FLAGS, "-o", str(staging), *files],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.splitlines() or ["no message"]
            reason = next((line for line in lines if "error: " in line), lines[-1])
            raise TargetError(f"{compiler} cannot make {name} ({reason}); see the C compiler")
    return library

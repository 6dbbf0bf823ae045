"""The runtime, built once for all of its tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from resq_tvm.edge.build import PROGRAMS, compile_program, write_runtime
from tests.resq_tvm.edge.harness import SOURCES
from tests.tools import need


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the runtime's folder with its programs and those of the tests, for this machine."""
    need("g++")
    folder = tmp_path_factory.mktemp("edge") / "runtime"
    write_runtime(folder, programs=tuple(PROGRAMS))
    for name in ("resq", "resq_c"):
        source = folder / "src" / f"{name}.cc"
        compile_program(folder, [source], folder / f"{name}.o", flags=("-c", "-O0"))
    for name in ("script", "streams", "rules"):
        parts = [folder / "resq.o", SOURCES / f"{name}.cc"]
        flags = ("-O0", f"-I{folder / 'src'}")
        compile_program(folder, parts, folder / "bin" / name, flags=flags)
    return folder

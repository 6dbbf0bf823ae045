"""Write the C++ runtime into a folder, and build it for this machine or for a board.

The folder needs nothing else: sources, headers, TVM's two runtime libraries, and the programs once
they are built. It can be copied to a board as it is.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path

import tvm
import tvm_ffi

import resq_tvm.targets
from resq_tvm.errors import CompileError, TargetError
from resq_tvm.files import atomic_file, atomic_folder
from resq_tvm.manifest import Versions
from resq_tvm.targets.boardkit import board_kit
from resq_tvm.targets.toolchain import require_cross_compiler

NATIVE = Path(__file__).parent / "native"
LIBRARIES = ("libtvm_runtime.so", "libtvm_ffi.so")
PROGRAMS = {
    "resq-run": ("src/resq.cc", "programs/resq_run.cc"),
    "resq-board-server": ("programs/board_server.cc",),
}
ARCHITECTURES = ("aarch64", "x86_64")

_VERSIONS = Path("include") / "resq_versions.h"  # also tells that a folder is one of ours
_OPTIONS = ("-std=c++17", "-O2")
# Nothing refers to the runtime by a symbol: the linker must keep it all the same.
_LINKED = ("-Wl,--no-as-needed", "-ltvm_runtime", "-Wl,--as-needed", "-ltvm_ffi", "-pthread")
_RPATH = "-Wl,-rpath,$ORIGIN/../lib"
_COMPILE_S = 600


def write_runtime(
    output: str | os.PathLike[str],
    architecture: str | None = None,
    *,
    programs: Sequence[str] = (),
    markers: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the runtime's folder; build programs in it.

    Parameters
    ----------
    output : path-like
        The folder. An older one is replaced.
    architecture : str, optional
        ``"aarch64"`` or ``"x86_64"``: the machine that it is for, this one by default.
    programs : sequence of str
        Which of `PROGRAMS` to build into ``bin/``.
    markers : bool
        Mark what an emulated board measures: region 1 is a keyframe, 2 a residual frame, and
        others as docs/deploy.md tells.
    progress : callable, optional
        Called with one line before each step that takes its time.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If the folder cannot be written or holds something else.
    TargetError
        If the architecture is unknown, cannot be built for here, or lacks its cross compiler.
    CompileError
        If the compiler refuses.
    AssetError
        If the board's libraries cannot be had.
    """
    architecture = architecture or platform.machine()
    tell = progress or (lambda _step: None)
    compiler = _compiler(architecture) if programs else ""
    libraries = _libraries(architecture, tell)
    with atomic_folder(output, str(_VERSIONS)) as folder:
        _write_sources(folder)
        (folder / "lib").mkdir()
        for library in libraries:
            shutil.copy(library, folder / "lib" / library.name)
        for name in programs:
            tell(f"compile {name} for {architecture}")
            sources = [folder / source for source in PROGRAMS[name]]
            flags = ["-DRESQ_MARKERS"] if markers else []
            _compile(compiler, folder, sources, folder / "bin" / name, flags)
    return Path(output)


def source_digest() -> str:
    """Return 16 hexadecimal digits that change with the sources and with TVM's version."""
    region = Path(str(resq_tvm.targets.__file__)).parent / "emulated" / "region.h"
    digest = hashlib.sha256(Versions.installed().model_dump_json().encode())
    for path in (*sorted(path for path in NATIVE.rglob("*") if path.is_file()), region):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compile_program(
    folder: Path,
    sources: Sequence[Path],
    output: Path,
    *,
    architecture: str | None = None,
    flags: Sequence[str] = (),
) -> Path:
    """Compile a program of the user's on the runtime in a folder that `write_runtime` made.

    Parameters
    ----------
    folder : Path
        The runtime's. The program finds its libraries if it lies in a folder beside ``lib/``.
    sources : sequence of Path
        C++, with ``src/resq.cc`` (and ``src/resq_c.cc``) of the folder where they are used.
    output : Path
        The program; it appears whole or not at all.
    architecture : str, optional
        Which the folder is for, this machine's by default.
    flags : sequence of str
        Further options of the compiler.

    Raises
    ------
    TargetError, CompileError
        If there is no compiler for the architecture, or it refuses.
    """
    return _compile(_compiler(architecture or platform.machine()), folder, sources, output, flags)


def _compiler(architecture: str) -> str:
    if architecture != platform.machine():
        return require_cross_compiler(architecture)
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name)
    if found is None:
        raise TargetError(
            f"C++ compiler {name!r} is absent; install g++ or name one in the environment's CXX"
        )
    return found


def _libraries(architecture: str, tell: Callable[[str], None]) -> list[Path]:
    if architecture not in ARCHITECTURES:
        raise TargetError(
            f"architecture {architecture!r} is unknown; use {' or '.join(ARCHITECTURES)}"
        )
    if architecture == platform.machine():
        folders = [Path(str(module.__file__)).parent / "lib" for module in (tvm, tvm_ffi)]
        return [folder / name for folder, name in zip(folders, LIBRARIES, strict=True)]
    if architecture != "aarch64":
        raise TargetError(
            f"the runtime for {architecture} cannot be made on {platform.machine()}; make it there"
        )
    kit = board_kit(progress=tell)
    return [kit.libraries / name for name in LIBRARIES]


def _write_sources(folder: Path) -> None:
    shutil.copytree(NATIVE, folder, dirs_exist_ok=True)
    emulated = Path(str(resq_tvm.targets.__file__)).parent / "emulated"
    shutil.copy(emulated / "region.h", folder / "src" / "internal" / "region.h")
    installed = Versions.installed()
    (folder / _VERSIONS).write_text(
        "// The Python packages whose artifacts this copy of the runtime loads.\n"
        f'#define RESQ_TVM_VERSION "{installed.tvm}"\n'
        f'#define RESQ_TVM_FFI_VERSION "{installed.tvm_ffi}"\n'
    )
    ffi = Path(str(tvm_ffi.__file__)).parent
    headers = folder / "third_party" / "include"
    shutil.copytree(ffi / "include" / "tvm" / "ffi", headers / "tvm" / "ffi")
    dlpack = ffi / "3rdparty" / "dlpack" / "include" / "dlpack"
    shutil.copytree(dlpack, headers / "dlpack")
    for file in distribution("apache-tvm-ffi").files or ():
        if "licenses" in file.parts:
            shutil.copy(str(file.locate()), headers.parent / file.name)


def _compile(
    compiler: str, folder: Path, sources: Sequence[Path], output: Path, flags: Sequence[str]
) -> Path:
    with atomic_file(output) as staging:
        command = [
            compiler, *_OPTIONS, *flags, f"-I{folder / 'include'}", "-isystem",
            str(folder / "third_party" / "include"), *(str(s) for s in sources), "-o", str(staging),
            f"-L{folder / 'lib'}", *_LINKED, _RPATH,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_COMPILE_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise CompileError(
                f"{compiler} took over {_COMPILE_S} s for {output.name}; try it on a machine that "
                "is less busy"
            ) from None
        if done.returncode != 0:
            lines = done.stderr.splitlines() or ["no message"]
            reason = next((line for line in lines if "error" in line), lines[-1])
            raise CompileError(f"{compiler} cannot make {output.name}: {reason}")
    return output

"""What programs for aarch64 Linux boards are linked with: TVM's runtime libraries and headers.

The libraries come out of the aarch64 wheels of the TVM that is installed here; headers are the
installed ones.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tvm
import tvm_ffi

from resq_tvm.errors import TargetError
from resq_tvm.files import atomic_file, atomic_folder, cache_folder
from resq_tvm.targets.toolchain import require_cross_compiler
from resq_tvm.wheels import download_wheel, read_member

SYSROOT = Path("/usr/aarch64-linux-gnu")  # of Debian's cross compiler: the C and C++ libraries

_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64")
_WAY_OUT = "fill the cache folder on a machine with a network and copy it"
_MARKER = "complete"  # is written last
_MEMBERS = {
    "apache-tvm": ("tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime_extra.so"),
    "apache-tvm-ffi": ("tvm_ffi/lib/libtvm_ffi.so",),
}
_COMPILE_S = 600


@dataclass(frozen=True)
class BoardKit:
    """What C++ programs for a board are compiled and linked with.

    Attributes
    ----------
    libraries : Path
        A folder with ``libtvm_runtime.so``, ``libtvm_runtime_extra.so`` and ``libtvm_ffi.so`` for
        aarch64 Linux (glibc 2.28 or later).
    includes : tuple of Path
        Include folders of TVM, TVM FFI and DLPack.
    """

    libraries: Path
    includes: tuple[Path, ...]


def board_kit(cache: Path | None = None, progress: Callable[[str], None] | None = None) -> BoardKit:
    """Return the board kit of the installed TVM; fetch its libraries if they are not there yet.

    Parameters
    ----------
    cache : Path, optional
        Where fetched libraries are kept; `resq_tvm.files.cache_folder` by default.
    progress : callable, optional
        Called with one line before each download (95 MB in all; 6.5 MB are kept).

    Raises
    ------
    AssetError
        If a wheel cannot be had.
    """
    releases = {package: version(package) for package in _MEMBERS}
    libraries = _libraries(cache)
    if not has_board_libraries(cache):
        _fetch(libraries, releases, progress or (lambda _step: None))
    tvm_folder, ffi_folder = (Path(str(m.__file__)).parent for m in (tvm, tvm_ffi))
    includes = (
        tvm_folder / "include",
        ffi_folder / "include",
        ffi_folder / "3rdparty" / "dlpack" / "include",
    )
    return BoardKit(libraries, includes)


def has_board_libraries(cache: Path | None = None) -> bool:
    """Return whether `board_kit` needs no download."""
    return (_libraries(cache) / _MARKER).is_file()


def _libraries(cache: Path | None) -> Path:
    releases = [version(package) for package in _MEMBERS]
    return (cache or cache_folder()) / "board" / "-".join(["aarch64", *releases])


def _fetch(libraries: Path, releases: dict[str, str], tell: Callable[[str], None]) -> None:
    with atomic_folder(libraries, _MARKER) as staging:
        for package, members in _MEMBERS.items():
            requirement = f"{package}=={releases[package]}"
            tell(f"download {requirement} for aarch64")
            with tempfile.TemporaryDirectory(prefix="resq-") as folder:
                wheel = download_wheel(
                    requirement, Path(folder), platforms=_PLATFORMS, way_out=_WAY_OUT
                )
                for member in members:
                    contents = read_member(wheel, member, way_out=_WAY_OUT)
                    (staging / Path(member).name).write_bytes(contents)
        (staging / _MARKER).touch()


def require_tool(name: str, package: str) -> str:
    """Return the path of a program.

    Raises
    ------
    TargetError
        If it is not installed; names the Debian package that has it.
    """
    path = shutil.which(name)
    if path is None:
        raise TargetError(f"{name} is not installed; install the Debian package {package}")
    return path


def cross_compile(
    sources: Sequence[Path],
    output: Path,
    kit: BoardKit | None,
    *,
    shared: bool = False,
    flags: Sequence[str] = (),
) -> Path:
    """Compile C++17 sources for aarch64 Linux and return ``output``.

    Parameters
    ----------
    sources : sequence of Path
        C++, assembly or object files.
    output : Path
        The program or shared library; it appears whole or not at all.
    kit : BoardKit or None
        Its headers are found and its libraries linked (a program finds them on the board by
        ``LD_LIBRARY_PATH``); None: TVM is not needed.
    shared : bool
        Make a shared library.
    flags : sequence of str
        Further options, behind ``-std=c++17 -O2``.

    Raises
    ------
    TargetError
        If the cross compiler is absent, or refuses the sources.
    """
    compiler = require_cross_compiler("aarch64")
    command = [compiler, "-std=c++17", "-O2", *flags]
    if shared:
        command += ["-shared", "-fPIC"]
    libraries: list[str] = []
    if kit is not None:
        command += [f"-I{folder}" for folder in kit.includes]
        libraries = [f"-L{kit.libraries}", "-ltvm_runtime", "-ltvm_ffi", "-lpthread", "-ldl"]
    with atomic_file(output) as staging:
        command += [str(source) for source in sources]
        try:
            done = subprocess.run(
                [*command, "-o", str(staging), *libraries],
                capture_output=True,
                text=True,
                timeout=_COMPILE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TargetError(
                f"{compiler} took over {_COMPILE_S} s for {output.name}; give it smaller sources"
            ) from None
        if done.returncode != 0:
            lines = done.stderr.splitlines() or ["no message"]
            reason = next((line for line in lines if "error: " in line), lines[-1])
            raise TargetError(f"{compiler} cannot make {output.name}: {reason}; see its sources")
    return output

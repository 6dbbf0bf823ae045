"""What can be checked and read of an artifact without loading its library."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from resq_tvm.errors import ArtifactError, TargetError
from resq_tvm.files import sha256_file
from resq_tvm.manifest import (
    KERNELS_NAME,
    LIBRARY_NAME,
    NPU_NAME,
    PARAMS_NAME,
    STREAM_NAME,
    FileEntry,
    Manifest,
    Versions,
)
from resq_tvm.targets.preset import Target, cpu_features, get_target, npu_target
from resq_tvm.targets.toolchain import is_foreign


def verify(folder: Path) -> Manifest:
    """Check everything about an artifact that can be checked without loading its library.

    Raises
    ------
    ArtifactError
        If the artifact is missing, truncated, altered, or built with another TVM.
    TargetError
        If it is for another architecture, or this CPU lacks a feature that the library needs.
    """
    manifest = verify_files(folder)
    require_machine(folder, manifest)
    return manifest


def require_machine(folder: Path, manifest: Manifest) -> None:
    """Check that this machine can run an artifact's library.

    Raises
    ------
    TargetError
        If it is for another architecture, or this CPU lacks a feature that the library needs.
    """
    if is_foreign(manifest.target.name):
        raise foreign(folder, manifest)
    missing = sorted(set(manifest.target.features) - set(cpu_features()))
    if missing:
        raise TargetError(
            f"artifact {str(folder)!r} is for target {manifest.target.name}; this CPU lacks "
            f"{', '.join(missing)}; compile it with --target auto here"
        )


def verify_files(folder: Path) -> Manifest:
    """Check an artifact that may be for another machine: all but the CPU's features.

    Raises
    ------
    ArtifactError
        If the artifact is missing, truncated, altered, or built with another TVM.
    """
    manifest = Manifest.read(folder)
    for name in _loaded_files(manifest):
        _verify_file(folder, name, manifest.files.get(name))
    installed = Versions.installed()
    for package in ("tvm", "tvm_ffi"):
        built, here = getattr(manifest.versions, package), getattr(installed, package)
        if built != here:
            raise ArtifactError(
                f"artifact {str(folder)!r} was built with {package} {built}, this environment has "
                f"{here}; compile it anew or install {built}"
            )
    return manifest


def _loaded_files(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the files without which the artifact cannot be loaded."""
    if not manifest.is_npu:
        return LIBRARY_NAME, PARAMS_NAME
    host = (LIBRARY_NAME,) if LIBRARY_NAME in manifest.files else ()
    return PARAMS_NAME, STREAM_NAME, NPU_NAME, *host


def foreign(folder: Path, manifest: Manifest) -> TargetError:
    """Return what is wrong with an artifact of another architecture."""
    return TargetError(
        f"artifact {str(folder)!r} is for target {manifest.target.name}, which is another "
        "architecture's; run it on a board (docs/deploy.md), or 'bench' it on an emulated one"
    )


def read_kernels(path: str | os.PathLike[str]) -> tuple[Manifest, dict[str, Any]]:
    """Return an artifact's manifest and what can be tuned in it (``kernels.json``).

    The library is not loaded, and may be another CPU's.

    Raises
    ------
    ArtifactError
        If the artifact is missing, truncated or altered.
    """
    folder = Path(path)
    manifest = Manifest.read(folder)
    _verify_file(folder, KERNELS_NAME, manifest.files.get(KERNELS_NAME))
    kernels: dict[str, Any] = json.loads((folder / KERNELS_NAME).read_text())
    return manifest, kernels


def target_of(folder: Path, manifest: Manifest) -> Target:
    """Return the target that an artifact was compiled for.

    Raises
    ------
    ArtifactError
        If it is an NPU, and its description is missing or altered.
    TargetError
        If this program does not know it.
    """
    if not manifest.is_npu:
        return get_target(manifest.target.name)
    from resq_tvm.targets.npu.description import read_npu

    _verify_file(folder, NPU_NAME, manifest.files.get(NPU_NAME))
    return npu_target(read_npu(folder / NPU_NAME))


def _verify_file(folder: Path, name: str, entry: FileEntry | None) -> None:
    path = folder / name
    if entry is None:
        raise ArtifactError(f"artifact {str(folder)!r}: the manifest lists no {name}")
    if not path.is_file():
        raise ArtifactError(f"artifact {str(folder)!r}: {name} is missing; compile it anew")
    size = path.stat().st_size
    if size != entry.bytes:
        raise ArtifactError(
            f"artifact {str(folder)!r}: {name} has {size} bytes, the manifest says {entry.bytes}; "
            "it is truncated or altered, compile it anew"
        )
    if sha256_file(path) != entry.sha256:
        raise ArtifactError(
            f"artifact {str(folder)!r}: {name} does not match its SHA-256 in the manifest; "
            "it was altered, compile it anew"
        )

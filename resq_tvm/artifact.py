"""The deployable artifact ``NAME.resq/``: library (or an NPU's commands), parameters, manifest.

Written into a temporary sibling folder and renamed, so that an artifact is whole or absent. Read
in the order that protects the reader: the manifest is validated, then sizes, hashes, versions and
CPU features, and only then is the library loaded (which runs code: load only artifacts whose
source you trust; the hashes tell damage, not intent).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save_file

from resq_tvm.artifact_files import foreign, verify
from resq_tvm.errors import ArtifactError, CompileError
from resq_tvm.files import atomic_folder, sha256_file
from resq_tvm.manifest import (
    KERNELS_NAME,
    LIBRARY_NAME,
    MANIFEST_NAME,
    NPU_NAME,
    PARAMS_NAME,
    STREAM_NAME,
    THRESHOLDS,
    FileEntry,
    Manifest,
    ParamEntry,
    Versions,
)
from resq_tvm.processing.config import ProcessingConfig
from resq_tvm.targets.preset import Target
from resq_tvm.targets.toolchain import export_options, is_foreign

if TYPE_CHECKING:
    from resq_tvm.compiler import Compiled
    from resq_tvm.npu.program import NpuProgram


class Artifact:
    """A loaded artifact: the manifest, the library, the parameters.

    Several sessions may share one artifact, in several threads: the library and the parameters
    are only read, and every session makes its own virtual machine on them (under 1 ms).

    What was just compiled for a machine of another architecture has a manifest only
    (``runs_here`` is False): it runs on a board (docs/deploy.md). ``program`` is what an NPU runs,
    None for other targets; it is simulated here, bit by bit.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        library: Any = None,
        params: Any = None,
        program: NpuProgram | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.program = program
        self._library = library
        self._params = params

    @property
    def runs_here(self) -> bool:
        """Whether it is loaded, and not only its manifest."""
        return self._params is not None

    @property
    def library(self) -> Any:
        """The loaded library; None for an NPU that needs no host."""
        self._require()
        return self._library

    @property
    def params(self) -> Any:
        """The parameters as TVM takes them."""
        self._require()
        return self._params

    def _require(self) -> None:
        if not self.runs_here:
            raise foreign(self.path, self.manifest)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Artifact:
        """Check an artifact and load its library and parameters.

        Raises
        ------
        ArtifactError
            If the artifact is missing, truncated, altered, or built with another TVM.
        TargetError
            If it is for another architecture, or this CPU lacks a feature that the library needs.
        """
        folder = Path(path)
        manifest = verify(folder)
        contents = (folder / PARAMS_NAME).read_bytes()
        try:
            arrays = load_tensors(contents)
        except Exception as error:  # safetensors raises its own type and plain ones
            raise ArtifactError(
                f"artifact {str(folder)!r}: {PARAMS_NAME} is not readable ({error}); "
                "compile it anew"
            ) from None
        ordered = [_declared(folder, entry, arrays) for entry in manifest.params]

        import tvm
        import tvm_ffi

        program = None
        if manifest.is_npu:
            from resq_tvm.npu.program import read_program

            program = read_program(folder, manifest)
        library = _load_library(folder) if LIBRARY_NAME in manifest.files else None
        params = tvm_ffi.convert([tvm.runtime.tensor(array) for array in ordered])
        return cls(folder, manifest, library, params, program)

    def scaled_params(self, threshold_scale: float) -> Any:
        """Return the parameters with every threshold multiplied by a factor."""
        import tvm
        import tvm_ffi

        names = [entry.name for entry in self.manifest.params]
        if threshold_scale == 1 or THRESHOLDS not in names:
            return self.params
        changed = list(self.params)
        index = names.index(THRESHOLDS)
        values = changed[index].numpy() * np.float32(threshold_scale)
        changed[index] = tvm.runtime.tensor(values.astype(np.float32))
        return tvm_ffi.convert(changed)

    def virtual_machine(self, threshold_scale: float = 1.0) -> Any:
        """Return a new virtual machine on the shared library; one thread may use it at a time.

        An NPU's is a simulator that takes and returns the same; what it takes to run is not the
        NPU's time, and its thresholds, part of the commands, have the factor ``threshold_scale``.
        """
        if self.program is not None:
            from resq_tvm.npu.machine import SimulatedMachine

            return SimulatedMachine(self.program, self.manifest, self.library, threshold_scale)
        import tvm
        from tvm.runtime.vm import VirtualMachine

        return VirtualMachine(self.library, tvm.cpu())


def _load_library(folder: Path) -> Any:
    import tvm

    try:
        return tvm.runtime.load_module(str((folder / LIBRARY_NAME).resolve()))
    except Exception as error:  # the loader reports through RuntimeError and its kin
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(
            f"artifact {str(folder)!r}: {LIBRARY_NAME} cannot be loaded ({reason})"
        ) from None


def _declared(folder: Path, entry: ParamEntry, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    array = arrays.get(entry.name)
    if array is None or array.shape != entry.shape or str(array.dtype) != entry.dtype:
        found = "absent" if array is None else f"{array.dtype}{list(array.shape)}"
        raise ArtifactError(
            f"artifact {str(folder)!r}: parameter {entry.name} is {found}, the manifest says "
            f"{entry.dtype}{list(entry.shape)}; compile it anew"
        )
    return array


def write_artifact(
    compiled: Compiled,
    output: str | os.PathLike[str] | None,
    *,
    processing: ProcessingConfig | None = None,
) -> Artifact:
    """Write a compiled network as an artifact folder and load it back.

    Parameters
    ----------
    compiled : Compiled
        Library, ordered parameters and the manifest's facts.
    output : path-like or None
        The folder to write, by habit ``NAME.resq``; None writes into a new temporary folder,
        which stays until the caller removes it.
    processing : ProcessingConfig, optional
        Pre- and post-processing for those who run the artifact.

    Raises
    ------
    OutputError
        If the folder cannot be written or is something else than an artifact.
    CompileError
        If the system's C++ compiler, which links the library, is missing or fails.
    TargetError
        If the target is another architecture's and its cross compiler is missing.
    """
    if output is None:
        output = Path(tempfile.mkdtemp(prefix="resq-")) / "network.resq"
    target = compiled.target
    with atomic_folder(output, MANIFEST_NAME) as folder:
        files = []
        if compiled.executable is not None:
            _export_library(compiled.executable, folder / LIBRARY_NAME, target)
            files.append(LIBRARY_NAME)
        files += [PARAMS_NAME, KERNELS_NAME]
        if target.npu is not None:
            from resq_tvm.npu.program import write_program
            from resq_tvm.passes.npu.lower import LoweredNpu

            assert isinstance(compiled.lowered, LoweredNpu)
            write_program(folder, target.npu, compiled.lowered.stream)
            files += [STREAM_NAME, NPU_NAME]
        tensors = {name: np.ascontiguousarray(a) for name, a in compiled.params.items()}
        save_file(tensors, folder / PARAMS_NAME)
        (folder / KERNELS_NAME).write_text(json.dumps(compiled.kernels, indent=1) + "\n")
        manifest = _manifest(compiled, processing, folder, files)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    if is_foreign(target):
        return Artifact(Path(output), manifest)
    return Artifact.load(output)


def _export_library(executable: Any, path: Path, target: Target) -> None:
    try:
        executable.export_library(str(path), **export_options(target))
    except (RuntimeError, ValueError, OSError) as error:
        raise CompileError(
            f"linking {LIBRARY_NAME} failed ({str(error).strip().splitlines()[0]}); "
            "install a C++ compiler (g++)"
        ) from None


def _manifest(
    compiled: Compiled,
    processing: ProcessingConfig | None,
    folder: Path,
    files: Sequence[str],
) -> Manifest:
    # By way of plain JSON values: what was written is exactly what a reader will validate.
    return Manifest.model_validate(
        {
            **compiled.info,
            "versions": Versions.installed().model_dump(),
            "params": [
                ParamEntry(name=name, shape=array.shape, dtype=str(array.dtype)).model_dump()
                for name, array in compiled.params.items()
            ],
            "processing": None if processing is None else processing.model_dump(),
            "files": {
                name: FileEntry(
                    bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name)
                ).model_dump()
                for name in files
            },
        }
    )

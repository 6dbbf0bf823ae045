"""The schema of an artifact's ``manifest.json``: what is inside, for whom, and its hashes."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resq_tvm import __version__
from resq_tvm.errors import ArtifactError
from resq_tvm.processing.config import ProcessingConfig

FORMAT_VERSION: Final = 1
MANIFEST_NAME = "manifest.json"
LIBRARY_NAME = "library.so"
PARAMS_NAME = "params.safetensors"
KERNELS_NAME = "kernels.json"
STREAM_NAME = "program.npu"  # the commands, of artifacts for NPUs
NPU_NAME = "npu.json"  # the machine that they are for
THRESHOLDS = "thresholds"  # the parameter that holds them

Dim = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Open(BaseModel):
    """Entries that later versions may extend without breaking readers."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Versions(_Strict):
    """The packages that built the artifact; the runtime must match the library's ABI."""

    resq_tvm: str
    tvm: str
    tvm_ffi: str

    @classmethod
    def installed(cls) -> Versions:
        """Return the versions of this environment."""
        return cls(
            resq_tvm=__version__,
            tvm=_installed("apache-tvm"),
            tvm_ffi=_installed("apache-tvm-ffi"),
        )


class TargetEntry(_Strict):
    """The target's name and the CPU features without which the library must not be run."""

    name: str
    features: tuple[str, ...] = ()


class TensorEntry(_Open):
    """A network input or output as in the source model; float32.

    ``layout`` is ``"NCHW"``, ``"NHWC"`` or ``""`` (the library itself takes and gives NHWC).
    """

    name: str
    shape: tuple[Dim, ...]
    layout: Literal["NCHW", "NHWC", ""] = ""


class StateEntry(_Open):
    """One state tensor that the keyframe program returns and the residual program takes.

    ``input`` is the number of the network input whose keyframe value it holds, if any.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str
    bytes: int
    input: int | None = None


class WorkspaceEntry(_Strict):
    """One tensor that the residual program of a dynamic scheme keeps from frame to frame.

    ``fill`` is its content before the first frame, and after every keyframe if ``refresh``. A
    keyframe's output of number ``output`` takes its place.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: Literal["float32", "float16", "int8", "uint8", "int32"]
    fill: int = 0
    refresh: bool = False
    output: Annotated[int, Field(ge=0)] | None = None


class LayerEntry(_Open):
    """One linear layer; ``key_bits`` and ``residual_bits`` are like ``W8A4``, or ``float``."""

    name: str
    op: str
    macs: int
    key_bits: str | None = None
    residual_bits: str | None = None


class KernelEntry(_Open):
    """One kernel of ours: where it runs, what it is, and who decided about its schedule.

    ``origin`` is ``"heuristic"``, ``"record TASK"`` (a measurement), ``"only"`` (there is but
    one schedule), and on an NPU ``"cascade"`` (it takes turns with its neighbours) or ``"network"``
    (tuned with the network as a whole).
    """

    name: str
    program: str
    layer: str | None = None
    shape: str = ""
    decision: str = ""
    method: str = ""
    origin: str = ""


class ParamEntry(_Strict):
    """One packed constant, in the order in which the library takes them."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str


class FileEntry(_Strict):
    """Size and hash of a file of the artifact."""

    bytes: int
    sha256: Sha256


class Manifest(_Strict):
    """Everything that is known of an artifact without loading its library.

    ``opaque`` names, per program, the operators that run outside the fused kernels (in float32,
    lowered by TVM itself; for an NPU: all that run on its host). ``workspace``, ``probe`` (whether
    there is a program of that name), ``note`` (whether there is one, and ``peek``) and
    ``thresholds`` (whose values are the parameter of that name, in order) belong to schemes that
    choose bits pixel by pixel; so do ``frame_params``, the parameters that the program ``frame``
    takes, in order (None: there is no such program).
    """

    format: Literal["resq-tvm artifact"] = "resq-tvm artifact"
    format_version: Literal[1] = FORMAT_VERSION
    versions: Versions
    target: TargetEntry
    scheme: str
    period: Annotated[int, Field(ge=1)]
    inputs: Annotated[tuple[TensorEntry, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorEntry, ...], Field(min_length=1)]
    state: tuple[StateEntry, ...] = ()
    workspace: tuple[WorkspaceEntry, ...] = ()
    probe: bool = False
    note: bool = False
    thresholds: tuple[str, ...] = ()
    frame_params: tuple[str, ...] | None = None
    params: tuple[ParamEntry, ...] = ()
    layers: tuple[LayerEntry, ...] = ()
    kernels: tuple[KernelEntry, ...] = ()
    opaque: dict[str, tuple[str, ...]] = {}
    bops: dict[str, Any] = {}
    options: dict[str, Any] = {}
    processing: ProcessingConfig | None = None
    files: dict[str, FileEntry]

    @property
    def state_bytes(self) -> int:
        """Bytes of state that a stream holds between frames."""
        return sum(entry.bytes for entry in self.state)

    @property
    def workspace_bytes(self) -> int:
        """Bytes that a stream of a dynamic scheme holds besides the state."""
        return sum(int(np.prod(e.shape)) * np.dtype(e.dtype).itemsize for e in self.workspace)

    @property
    def is_npu(self) -> bool:
        """Whether it is for an NPU, which is simulated wherever it runs."""
        return STREAM_NAME in self.files

    @property
    def has_residual(self) -> bool:
        """Whether the library has a residual program (frame quantization has none)."""
        return "->" in self.scheme

    def to_json(self) -> str:
        """Return the manifest as indented JSON text."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and validate ``folder/manifest.json``.

        Raises
        ------
        ArtifactError
            If the folder or the file is missing, is not JSON, is of another format version, or
            does not follow the schema.
        """
        path = folder / MANIFEST_NAME
        if not folder.exists():
            raise ArtifactError(f"artifact {str(folder)!r} does not exist; compile it first")
        if not path.is_file():
            raise ArtifactError(f"artifact {str(folder)!r} has no {MANIFEST_NAME}; compile it anew")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ArtifactError(
                f"artifact {str(folder)!r}: {MANIFEST_NAME} is not readable JSON "
                f"({type(error).__name__}); compile it anew"
            ) from None
        found = data.get("format_version") if isinstance(data, dict) else None
        if found != FORMAT_VERSION:
            raise ArtifactError(
                f"artifact {str(folder)!r} has format version {found!r}, this program reads "
                f"{FORMAT_VERSION}; compile it anew"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                f"artifact {str(folder)!r}: {MANIFEST_NAME} is invalid at {place!r}: "
                f"{first['msg']}; compile it anew"
            ) from None


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"

"""The folder of a calibrated network: ``NAME.qnet``.

It holds ``network.json`` (what it is, hashes), ``graph.json`` (the Relax module with its constants
lifted to parameters) and ``constants.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import tvm
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from resq_tvm.errors import ArtifactError
from resq_tvm.files import atomic_folder
from resq_tvm.network import Network, TensorInfo
from resq_tvm.passes.graph import Graph, const_value
from resq_tvm.passes.weights import CODES
from resq_tvm.scheme import code_limit

_MANIFEST = "network.json"
_GRAPH = "graph.json"
_CONSTANTS = "constants.safetensors"
_PREFIX = "resq_constant_"
_CODES = "resq_codes_"  # before the name of a layer's rounded weight
FORMAT_VERSION: Final = 1

_ATTRIBUTES = ("layers", "scales", "options")  # of every calibrated main, as resq.NAME

# What the libraries raise on well-hashed nonsense; TVM's internal errors are RuntimeErrors.
_UNREADABLE = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, SafetensorError,
)  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Tensor(_Strict):
    name: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    layout: Literal["NCHW", "NHWC", ""]


class _Options(_Strict):
    granularity: Literal["channel", "tensor"]
    residual: Literal["pairwise", "recurrent"]
    period: Annotated[int, Field(ge=1)]


Scales = dict[str, Annotated[float, Field(gt=0, lt=1e30)]]


class _Scales(_Strict):
    keyframe: Scales
    residual: Scales


class _Choice(_Strict):
    shifts: tuple[Annotated[int, Field(ge=0, le=8)], ...]
    tau: Annotated[float, Field(ge=0, lt=1e30)]


class _Gate(_Strict):
    scale: Annotated[float, Field(gt=0, lt=1e30)]
    noise: Annotated[float, Field(ge=0, lt=1e30)]
    threshold: Annotated[float, Field(ge=0, lt=1e30)]
    block: Annotated[int, Field(ge=1, le=64)]
    reach: Annotated[int, Field(ge=0, le=8)]


class _Dynamic(_Strict):
    """What a scheme with pools of bits decides by: see `resq_tvm.passes.policy`."""

    choices: dict[str, _Choice]
    gates: dict[str, _Gate]
    budget: Annotated[float, Field(gt=0, le=1)] | None = None
    held: tuple[Annotated[int, Field(ge=0)], ...] = ()


class _Hashes(_Strict):
    """SHA-256 of the other files."""

    graph: str
    constants: str


class _Record(_Strict):
    """The content of ``network.json``."""

    format: Literal["resq-tvm qnet"] = "resq-tvm qnet"
    format_version: Literal[1] = FORMAT_VERSION
    tvm: str
    name: str
    source: str
    scheme: str
    inputs: Annotated[tuple[_Tensor, ...], Field(min_length=1)]
    outputs: Annotated[tuple[_Tensor, ...], Field(min_length=1)]
    layers: dict[str, str]
    scales: _Scales
    options: _Options
    dynamic: _Dynamic | None = None
    sha256: _Hashes


def write_folder(network: Network, scheme: str, path: str | PathLike[str]) -> Path:
    """Write a calibrated network atomically and return the folder's path.

    Parameters
    ----------
    network : Network
        Its ``main`` holds the calibration as attributes.
    scheme : str
    path : path

    Raises
    ------
    OutputError
        If it cannot be written, or ``path`` is something else than a ``.qnet`` folder.
    """
    main = network.module["main"]
    lifted, constants = _lift_constants(main.without_attr(CODES) if CODES in main.attrs else main)
    constants |= _codes(main)
    graph = tvm.ir.save_json(tvm.IRModule({"main": lifted})).encode()
    tensors = save_tensors(constants)
    found = {key: json.loads(str(main.attrs[f"resq.{key}"])) for key in _ATTRIBUTES}
    if "resq.dynamic" in main.attrs:
        found["dynamic"] = json.loads(str(main.attrs["resq.dynamic"]))
    record = _Record(
        tvm=tvm.__version__,
        name=network.name,
        source=network.source,
        scheme=scheme,
        inputs=_tensors(network.inputs),
        outputs=_tensors(network.outputs),
        sha256=_Hashes(graph=_hash(graph), constants=_hash(tensors)),
        **found,
    )
    with atomic_folder(path, _MANIFEST) as folder:
        (folder / _GRAPH).write_bytes(graph)
        (folder / _CONSTANTS).write_bytes(tensors)
        (folder / _MANIFEST).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
    return Path(path)


def read_folder(path: str | PathLike[str]) -> tuple[Network, str]:
    """Read a folder that `write_folder` wrote; return the network and its scheme.

    Raises
    ------
    ArtifactError
        If something is missing, of another version, or not what was written.
    """
    folder = Path(path)
    record = _read_record(folder)
    if record.tvm != tvm.__version__:
        raise _broken(folder, f"was written with tvm {record.tvm}, this is {tvm.__version__}")
    graph = _read_checked(folder, _GRAPH, record.sha256.graph)
    constants = _read_checked(folder, _CONSTANTS, record.sha256.constants)
    try:
        main = tvm.ir.load_json(graph.decode())["main"]
        tensors = load_tensors(constants)
        codes = {n: tensors.pop(n) for n in list(tensors) if n.startswith(_CODES)}
        main = _bind_constants(main, tensors)
        main = _with_codes(main, codes)
    except _UNREADABLE as error:
        raise _broken(folder, f"does not hold a network ({type(error).__name__})") from None
    for key, value in record.model_dump(include={*_ATTRIBUTES, "dynamic"}).items():
        if value is not None:
            main = main.with_attr(f"resq.{key}", json.dumps(value))
    network = Network(
        module=tvm.IRModule({"main": main}),
        name=record.name,
        inputs=tuple(TensorInfo(t.name, t.shape, t.layout) for t in record.inputs),
        outputs=tuple(TensorInfo(t.name, t.shape, t.layout) for t in record.outputs),
        source=record.source,
    )
    return network, record.scheme


@mutator
class _Lift(PyExprMutator):
    """Replace every tensor constant by a free variable, collected in ``found``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[relax.Var, Any] = {}

    def visit_generic_const_(self, op: Any) -> Any:
        var = relax.Var(f"{_PREFIX}{len(self.found)}", op.ty)
        self.found[var] = op
        return var


def _lift_constants(main: Any) -> tuple[Any, dict[str, NDArray[Any]]]:
    lift = _Lift()
    func = lift.visit_expr(main)
    params = [*func.params, *lift.found]
    lifted = relax.Function(params, func.body, func.ret_ty, func.is_pure, func.attrs)
    constants = {v.name: np.ascontiguousarray(const_value(c)) for v, c in lift.found.items()}
    return lifted, constants


def _bind_constants(main: Any, constants: Mapping[str, NDArray[Any]]) -> Any:
    missing = [
        p.name for p in main.params if p.name.startswith(_PREFIX) and p.name not in constants
    ]
    if missing:
        raise KeyError(missing[0])
    bind = relax.transform.BindParams(
        "main", {name: tvm.runtime.tensor(value) for name, value in constants.items()}
    )
    return bind(tvm.IRModule({"main": main}))["main"]


def _codes(main: Any) -> dict[str, NDArray[Any]]:
    """Return rounded weights by the name of their tensor in the file."""
    codes = main.attrs[CODES] if CODES in main.attrs else {}
    return {f"{_CODES}{name}": np.ascontiguousarray(value.numpy()) for name, value in codes.items()}


def _with_codes(main: Any, codes: Mapping[str, NDArray[Any]]) -> Any:
    """Return ``main`` with rounded weights; raise `ValueError` for any that no layer can have."""
    shapes = {v.name: const_value(c.args[1]).shape for v, c in Graph.of(main).layers()}
    rounded = {}
    for tensor, value in codes.items():
        name = tensor.removeprefix(_CODES)
        layer, _, bits = name.rpartition(":")
        limit = code_limit(int(bits))
        inside = bool(((-limit <= value) & (value <= limit)).all())
        if value.dtype != np.int8 or value.shape != shapes[layer] or not inside:
            raise ValueError(name)
        rounded[name] = tvm.runtime.tensor(value)
    return main.with_attr(CODES, rounded) if rounded else main


def _tensors(infos: Any) -> tuple[_Tensor, ...]:
    return tuple(_Tensor(name=t.name, shape=tuple(t.shape), layout=t.layout) for t in infos)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _broken(folder: Path, why: str) -> ArtifactError:
    return ArtifactError(f"calibrated network {str(folder)!r} {why}; calibrate it anew")


def _read_record(folder: Path) -> _Record:
    try:
        text = (folder / _MANIFEST).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(folder, f"has no readable {_MANIFEST} ({type(error).__name__})") from None
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        raise _broken(folder, f"has a {_MANIFEST} that is not JSON") from None
    found = data.get("format_version") if isinstance(data, dict) else None
    if found != FORMAT_VERSION:
        raise _broken(folder, f"has format version {found!r}, not {FORMAT_VERSION}")
    try:
        return _Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _broken(folder, f"is invalid at {place!r}: {first['msg']}") from None


def _read_checked(folder: Path, name: str, sha256: str) -> bytes:
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise _broken(folder, f"lacks {name} ({type(error).__name__})") from None
    if sha256 != _hash(content):
        raise _broken(folder, f"has a {name} that is truncated or tampered with")
    return content

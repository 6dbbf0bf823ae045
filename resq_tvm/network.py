"""The front door for models: `load` gives a `Network` in canonical form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from resq_tvm.errors import FrameError, ModelError
from resq_tvm.passes.canonicalize import canonicalize
from resq_tvm.passes.pipeline import dump_to

_ZOO = "zoo:"
_SUFFIXES = ".onnx, .tflite, .pt2"
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_CHANNEL_LAST = (0, 2, 3, 1)
_CHANNEL_FIRST = (0, 3, 1, 2)


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as in the source model; ``layout`` is ``"NCHW"``, ``"NHWC"`` or ``""``."""

    name: str
    shape: tuple[int, ...]
    layout: str

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """The shape in canonical ``main``: NHWC for 4-D tensors."""
        if self.layout != "NCHW":
            return self.shape
        return tuple(self.shape[a] for a in _CHANNEL_LAST)


@dataclass(frozen=True)
class Network:
    """A float network in canonical form.

    Parameters
    ----------
    module : IRModule
        Canonical ``main`` (docs/architecture.md).
    name : str
        Short name, an identifier.
    inputs, outputs : tuple of TensorInfo
        As in the source model.
    source : str
        Where it comes from, for people: a file's name, ``zoo:NAME``, or a class.
    """

    module: tvm.IRModule
    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    source: str

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The inputs' canonical shapes."""
        return tuple(t.canonical_shape for t in self.inputs)

    def to_canonical(self, array: NDArray[Any], index: int = 0) -> NDArray[Any]:
        """Return input ``index`` in canonical layout: a view of ``array``.

        Raises
        ------
        FrameError
            If the array has not the source model's shape.
        """
        info = self.inputs[index]
        if array.shape != info.shape:
            raise FrameError(
                f"input {info.name!r} has shape {array.shape}; the network takes {info.shape}"
            )
        return array.transpose(_CHANNEL_LAST) if info.layout == "NCHW" else array

    def from_canonical(self, array: NDArray[Any], index: int = 0) -> NDArray[Any]:
        """Return output ``index`` in the source model's layout: a view of ``array``.

        Raises
        ------
        FrameError
            If the array has not the output's canonical shape.
        """
        info = self.outputs[index]
        if array.shape != info.canonical_shape:
            raise FrameError(
                f"output {info.name!r} has canonical shape {info.canonical_shape}, "
                f"not {array.shape}"
            )
        return array.transpose(_CHANNEL_FIRST) if info.layout == "NCHW" else array


def load(
    model: Any,
    example: Any = None,
    *,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    dump: str | PathLike[str] | None = None,
) -> Network:
    """Load a float model and bring it to canonical form.

    Parameters
    ----------
    model : path, str, nn.Module or ExportedProgram
        A ``.onnx``, ``.tflite`` or ``.pt2`` file, ``zoo:NAME``, or a PyTorch object.
    example : tensor, array or tuple of them, optional
        Example inputs; only their shapes are used.
    input_shape : sequence of int, or one sequence per input, optional
        The same without an example, as in the source model, e.g. ``(1, 3, 256, 512)``.
    dump : path, optional
        Folder for the TVMScript before and after canonicalization.

    Raises
    ------
    ModelError
        If the model is missing, is not a model, is of an unknown kind, or needs an input shape.
    UnsupportedOperatorError
        If it holds operators without a canonical form; every one is listed with its place.
    """
    shapes = _shapes(example, input_shape)
    source, name, module = _imported(model, shapes)
    observe = dump_to(Path(dump)) if dump is not None else None
    if observe is not None:
        observe("imported", module)
    module = canonicalize(module, source)
    if observe is not None:
        observe("canonical", module)
    attributes = module["main"].attrs
    return Network(
        module=module,
        name=name,
        inputs=_infos(attributes["resq.inputs"]),
        outputs=_infos(attributes["resq.outputs"]),
        source=source,
    )


def _imported(
    model: Any, shapes: tuple[tuple[int, ...], ...] | None
) -> tuple[str, str, tvm.IRModule]:
    """Return source, name and Relax module of whatever `load` was given."""
    if isinstance(model, str) and model.startswith(_ZOO):
        from resq_tvm.frontends.torch import import_module
        from resq_tvm.zoo import build

        if shapes is not None and len(shapes) != 1:
            raise ModelError(f"{model}: takes one input, {len(shapes)} shapes given; give one")
        network, example = build(model, shapes[0] if shapes else None)
        return model, model.removeprefix(_ZOO), import_module(network, model, [example.shape])
    if isinstance(model, str | PathLike):
        path = Path(model)
        return path.name, _identifier(path.stem), _from_file(path, shapes)
    import torch

    from resq_tvm.frontends.torch import import_module, import_program

    source = type(model).__name__
    if isinstance(model, torch.nn.Module):
        return source, _identifier(source), import_module(model, source, shapes)
    if isinstance(model, torch.export.ExportedProgram):
        return source, _identifier(source), import_program(model, source, shapes)
    raise ModelError(
        f"cannot load a {source}; give a path ({_SUFFIXES}), zoo:NAME, an nn.Module or an "
        "ExportedProgram"
    )


def _from_file(path: Path, shapes: tuple[tuple[int, ...], ...] | None) -> tvm.IRModule:
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise ModelError(
            f"{path.name}: pickled PyTorch files can run code and are not loaded; "
            "export the model: torch.export.save(torch.export.export(module, (example,)), "
            "'model.pt2')"
        )
    if suffix not in (".onnx", ".tflite", ".pt2"):
        raise ModelError(
            f"{path.name}: unknown kind of model {suffix or 'without suffix'!r}; "
            f"give {_SUFFIXES} or zoo:NAME"
        )
    if not path.is_file():
        raise ModelError(f"{path}: there is no such model file; check the path")
    if suffix == ".onnx":
        from resq_tvm.frontends.onnx import import_onnx

        return import_onnx(path, shapes)
    if suffix == ".tflite":
        from resq_tvm.frontends.tflite import import_tflite

        return import_tflite(path, shapes)
    from resq_tvm.frontends.pt2 import read_program
    from resq_tvm.frontends.torch import import_program

    return import_program(read_program(path), path.name, shapes)


def _shapes(example: Any, input_shape: Any) -> tuple[tuple[int, ...], ...] | None:
    if example is not None:
        tensors = example if isinstance(example, tuple | list) else (example,)
        return tuple(tuple(int(d) for d in np.shape(t)) for t in tensors)
    if input_shape is None:
        return None
    nested = any(isinstance(d, Sequence) for d in input_shape)
    shapes = input_shape if nested else (input_shape,)
    return tuple(tuple(int(d) for d in shape) for shape in shapes)


def _identifier(text: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in text) or "network"


def _infos(text: Any) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(e["name"], tuple(e["shape"]), e["layout"]) for e in json.loads(str(text))
    )

"""Import ONNX models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import tvm
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper
from tvm.relax.frontend.onnx import from_onnx
from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

from resq_tvm.errors import ModelError, UnsupportedOperatorError
from resq_tvm.frontends.common import (
    Shape,
    as_float,
    described,
    fixed_shape,
    importing,
    match_shapes,
)

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_DOMAINS = ("", "ai.onnx")


def import_onnx(path: Path, shapes: Sequence[Shape] | None = None) -> tvm.IRModule:
    """Import an ``.onnx`` file.

    Parameters
    ----------
    path : Path
        The model; external data is read from beside it.
    shapes : sequence of tuple, optional
        One shape per input, where the model leaves dimensions open.

    Raises
    ------
    UnsupportedOperatorError
        Listing every node without a converter.
    ModelError
        If the file is not an ONNX model, or its inputs cannot be fixed.
    """
    name = path.name
    model = _read(path)
    graph = model.graph
    _refuse_unsupported(name, graph)
    initialized = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in initialized]
    shape_of = {
        i.name: fixed_shape(name, i.name, _declared(name, i), given)
        for i, given in zip(
            inputs, match_shapes(name, [i.name for i in inputs], shapes), strict=True
        )
    }
    with importing(name):
        mod = from_onnx(model, shape_dict={k: list(v) for k, v in shape_of.items()})
        return described(
            mod,
            inputs=[i.name for i in inputs],
            outputs=[o.name for o in graph.output],
            layout="NCHW",
            weights=(
                (t.name, as_float(numpy_helper.to_array(t, str(path.parent))))
                for t in graph.initializer
                if t.data_type in _FLOATS and len(t.dims) >= 2
            ),
        )


def _read(path: Path) -> Any:
    try:
        model = onnx.load(str(path))
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path.name}: is not a readable ONNX model ({reason})") from None
    if not model.graph.node:
        raise ModelError(f"{path.name}: is not an ONNX model or has no operators; export it anew")
    return model


def _refuse_unsupported(name: str, graph: Any) -> None:
    # Control flow has converters, but no place in a network that is one dataflow block.
    known = (set(_get_convert_map()) | {"Constant"}) - {"If", "Loop", "Scan"}
    missing = [
        (node.op_type, node.name or next(iter(node.output), "?"))
        for node in graph.node
        if node.op_type not in known or node.domain not in _DOMAINS
    ]
    if missing:
        raise UnsupportedOperatorError(name, missing)


def _declared(name: str, value: Any) -> list[int | None]:
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelError(
            f"{name}: input {value.name!r} is {kind}; export the model with float32 inputs"
        )
    return [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]

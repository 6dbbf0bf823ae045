"""Import TFLite models (float; quantization is our work)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tflite
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.relax.frontend.tflite import from_tflite
from tvm.relax.frontend.tflite.tflite_frontend import ExprTable, OperatorConverter

from resq_tvm.errors import ModelError, UnsupportedOperatorError
from resq_tvm.frontends.common import (
    Shape,
    as_float,
    described,
    fixed_shape,
    importing,
    match_shapes,
)

_IDENTIFIER = b"TFL3"  # at byte 4 of the flatbuffer
_FLOATS = {tflite.TensorType.FLOAT32: np.float32, tflite.TensorType.FLOAT16: np.float16}
_CODES = (tflite.TensorType.INT8, tflite.TensorType.UINT8, tflite.TensorType.INT16)
_LAYER = re.compile(r"(conv2d(_\d+)?|depthwise|matmul|kernel|weights?)$", re.I)


def import_tflite(path: Path, shapes: Sequence[Shape] | None = None) -> tvm.IRModule:
    """Import a ``.tflite`` file; weights in float16 are widened.

    Parameters
    ----------
    path : Path
        The model.
    shapes : sequence of tuple, optional
        One shape per input; they must be the model's own, since TFLite fixes all sizes.

    Raises
    ------
    UnsupportedOperatorError
        Listing every operator without a converter, custom ones included.
    ModelError
        If the file is not a TFLite model, or the model is quantized.
    """
    name = path.name
    content = path.read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ModelError(f"{name}: is not a TFLite model (its identifier is not TFL3)")
    with importing(name):
        model = tflite.Model.GetRootAsModel(content, 0)
        graph = model.Subgraphs(0)
        _refuse_unsupported(name, model, graph)
        _refuse_quantized(name, graph)
        inputs = [_text(graph.Tensors(i)) for i in graph.InputsAsNumpy()]
        given = match_shapes(name, inputs, shapes)
        for index, wanted in zip(graph.InputsAsNumpy(), given, strict=True):
            tensor = graph.Tensors(index)
            _check_input(name, tensor)
            fixed_shape(name, _text(tensor), [int(d) for d in tensor.ShapeAsNumpy()], wanted)
        return described(
            from_tflite(model),
            inputs=inputs,
            outputs=[_text(graph.Tensors(i)) for i in graph.OutputsAsNumpy()],
            layout="NHWC",
            weights=_weights(model, graph),
        )


def _text(tensor: Any) -> str:
    return str(tensor.Name().decode("utf-8", "replace"))


def _refuse_unsupported(name: str, model: Any, graph: Any) -> None:
    converter = OperatorConverter(model, graph, ExprTable(), relax.BlockBuilder())
    missing = []
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = _operator_name(model, operator, converter)
        if code not in converter.convert_map:
            outputs = operator.OutputsAsNumpy()
            missing.append((code, _text(graph.Tensors(outputs[0])) if len(outputs) else f"#{i}"))
    if missing:
        raise UnsupportedOperatorError(name, missing)


def _operator_name(model: Any, operator: Any, converter: Any) -> str:
    entry = model.OperatorCodes(operator.OpcodeIndex())
    code = max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode())
    if code == tflite.BuiltinOperator.CUSTOM:
        custom = entry.CustomCode()
        return custom.decode("utf-8", "replace") if custom else "CUSTOM"
    return str(converter.builtin_op_code.get(code, f"operator code {code}"))


def _refuse_quantized(name: str, graph: Any) -> None:
    for i in range(graph.TensorsLength()):
        tensor = graph.Tensors(i)
        quantization = tensor.Quantization()
        if tensor.Type() in _CODES and quantization is not None and quantization.ScaleLength():
            raise ModelError(
                f"{name}: tensor {_text(tensor)!r} is quantized; "
                "give the float model, quantization is done here"
            )


def _check_input(name: str, tensor: Any) -> None:
    if tensor.Type() != tflite.TensorType.FLOAT32:
        raise ModelError(
            f"{name}: input {_text(tensor)!r} is not float32; convert the model with float inputs"
        )
    signature = tensor.ShapeSignatureAsNumpy()
    # Sizes behind an open input are not in the file: the converter would take those of size 1.
    if not isinstance(signature, int) and any(d < 0 for d in signature[1:]):
        raise ModelError(
            f"{name}: input {_text(tensor)!r} has the open shape {list(map(int, signature))}; "
            "convert the model with a fixed input shape"
        )


def _weights(model: Any, graph: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the layer names and values of constant float tensors of rank two and more."""
    found = []
    for i in range(graph.TensorsLength()):
        tensor = graph.Tensors(i)
        data = model.Buffers(tensor.Buffer()).DataAsNumpy()
        dtype = _FLOATS.get(tensor.Type())
        if dtype is not None and tensor.ShapeLength() >= 2 and not isinstance(data, int):
            found.append((_own_part(_text(tensor)), as_float(data.view(dtype)), tensor))
    prefix = os.path.commonpath([part for part, _, _ in found]) if len(found) > 1 else ""
    for part, values, tensor in found:
        yield part.removeprefix(prefix).lstrip("/"), values.reshape(tensor.ShapeAsNumpy())


def _own_part(text: str) -> str:
    """Return the layer's part of a name that fusion joined by semicolons."""
    parts = text.split(";")
    return next((p for p in parts if _LAYER.search(p)), parts[0])

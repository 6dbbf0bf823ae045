"""Single convolutions as int8 TFLite networks, for estimators that read nothing else.

Weights and scales are made up: cycles do not depend on them. Tensors at the ends of a network have
the layout of the program that calls it (NHWC), those between its layers the machine's own, which is
faster; a layer that lies between others in its network therefore stands between poolings here. Each
of its two tensors has two readers, so that no estimator merges the layer with its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

NAME = "layer"  # of the tensor that the convolution writes
_SCALE = 0.05  # of activations
_WEIGHT_SCALE = 0.01


@dataclass(frozen=True)
class Layer:
    """A convolution with "same" padding and a ReLU.

    Attributes
    ----------
    h, w, inputs, outputs : int
        Size of the input, channels of input and output.
    kernel, stride, dilation : tuple of int
        Vertical, horizontal.
    depthwise : bool
        Every output reads the input channel of its own number.
    reads_frame, writes_result : bool
        Whether it is the first or the last layer of its network.
    """

    h: int
    w: int
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    depthwise: bool = False
    reads_frame: bool = False
    writes_result: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of the output."""
        return -(-self.h // self.stride[0]) * -(-self.w // self.stride[1])

    @property
    def terms(self) -> int:
        """Products of a sum."""
        taps = self.kernel[0] * self.kernel[1]
        return taps if self.depthwise else taps * self.inputs

    @property
    def macs(self) -> int:
        """Products of the layer."""
        return self.pixels * self.outputs * self.terms

    def __str__(self) -> str:
        """Tell kernel, channels and size in a table's cell."""
        kind = " depthwise" if self.depthwise else ""
        step = f" /{self.stride[0]}" if self.stride != (1, 1) else ""
        reach = f" dilated {self.dilation[0]}" if self.dilation != (1, 1) else ""
        return (
            f"{self.kernel[0]}×{self.kernel[1]}{kind}{step}{reach}, {self.inputs}→{self.outputs}, "
            f"{self.h}×{self.w}"
        )


def network_of(layer: Layer) -> bytes:
    """Return a TFLite file with the layer, int8 per channel, between poolings (see above)."""
    made = _Writer()
    source = (1, layer.h, layer.w, layer.inputs)
    result = (1, -(-layer.h // layer.stride[0]), -(-layer.w // layer.stride[1]), layer.outputs)
    x = made.activations("x", source)
    made.inputs.append(x)
    if not layer.reads_frame:
        x = made.pool(x, "before", source)
    y = made.activations(NAME, result)
    made.convolution(layer, x, y)
    if layer.writes_result:
        made.outputs.append(y)
    else:
        made.outputs += [made.pool(y, name, result) for name in ("after", "after_too")]
    if not layer.reads_frame:
        made.outputs.append(made.pool(x, "beside", source))
    return made.file()


class _Writer:
    """A network under construction: tensors are told by their numbers."""

    def __init__(self) -> None:
        self.buffers = [schema.BufferT()]  # the first one is empty by definition
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[Any] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def activations(self, name: str, shape: tuple[int, ...]) -> int:
        return self.tensor(name, shape, schema.TensorType.INT8, np.array([_SCALE]))

    def constant(self, name: str, data: NDArray[Any], scale: float, axis: int) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        self.buffers.append(buffer)
        kind = {"int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32}[data.dtype.name]
        scales = np.full(data.shape[axis], scale)
        number = self.tensor(name, data.shape, kind, scales, axis)
        self.tensors[number].buffer = len(self.buffers) - 1
        return number

    def tensor(
        self, name: str, shape: tuple[int, ...], kind: int, scales: NDArray[Any], axis: int = 0
    ) -> int:
        quantization = schema.QuantizationParametersT()
        quantization.scale = scales.astype(np.float32)
        quantization.zeroPoint = np.zeros(len(scales), np.int64)
        quantization.quantizedDimension = axis
        made = schema.TensorT()
        made.name, made.shape, made.type = name, np.array(shape, np.int32), kind
        made.quantization = quantization
        self.tensors.append(made)
        return len(self.tensors) - 1

    def convolution(self, layer: Layer, x: int, y: int) -> None:
        own = layer.depthwise
        shape = (
            (1, *layer.kernel, layer.outputs)
            if own
            else (layer.outputs, *layer.kernel, layer.inputs)
        )
        weights = np.random.default_rng(0).integers(-127, 128, shape, np.int8)
        bias = np.zeros(layer.outputs, np.int32)
        options = schema.DepthwiseConv2DOptionsT() if own else schema.Conv2DOptionsT()
        options.padding = schema.Padding.SAME
        options.strideH, options.strideW = layer.stride
        options.dilationHFactor, options.dilationWFactor = layer.dilation
        options.fusedActivationFunction = schema.ActivationFunctionType.RELU
        if own:
            options.depthMultiplier = 1
        kinds, named = schema.BuiltinOperator, schema.BuiltinOptions
        self.operator(
            kinds.DEPTHWISE_CONV_2D if own else kinds.CONV_2D,
            named.DepthwiseConv2DOptions if own else named.Conv2DOptions,
            options,
            [
                x,
                self.constant("weights", weights, _WEIGHT_SCALE, 3 if own else 0),
                self.constant("bias", bias, _WEIGHT_SCALE * _SCALE, 0),
            ],
            y,
        )

    def pool(self, x: int, name: str, shape: tuple[int, ...]) -> int:
        y = self.activations(name, shape)
        options = schema.Pool2DOptionsT()
        options.padding = schema.Padding.SAME
        options.strideH = options.strideW = 1
        options.filterHeight = options.filterWidth = 3
        kinds, named = schema.BuiltinOperator, schema.BuiltinOptions
        self.operator(kinds.MAX_POOL_2D, named.Pool2DOptions, options, [x], y)
        return y

    def operator(self, kind: int, named: int, options: Any, inputs: list[int], y: int) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 3
        self.codes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = len(self.codes) - 1
        made.inputs, made.outputs = inputs, [y]
        made.builtinOptionsType, made.builtinOptions = named, options
        self.operators.append(made)

    def file(self) -> bytes:
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = self.inputs, self.outputs
        model = schema.ModelT()
        model.version, model.description = 3, NAME
        model.buffers, model.operatorCodes, model.subgraphs = self.buffers, self.codes, [graph]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

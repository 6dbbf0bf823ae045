"""Write a convolutional TFLite network as ONNX, for the peers that read only that.

Tensors of four axes are NHWC in TFLite and NCHW in ONNX; the ONNX network takes and gives NHWC all
the same, so that every engine gets the same frames.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tflite
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
_DTYPES = {
    tflite.TensorType.FLOAT32: np.float32,
    tflite.TensorType.FLOAT16: np.float16,
    tflite.TensorType.INT32: np.int32,
}
_TO_NCHW, _TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]
_OPTIONS = {
    "CONV_2D": tflite.Conv2DOptions,
    "DEPTHWISE_CONV_2D": tflite.DepthwiseConv2DOptions,
    "MAX_POOL_2D": tflite.Pool2DOptions,
    "RESIZE_BILINEAR": tflite.ResizeBilinearOptions,
    "ADD": tflite.AddOptions,
}


def convert(source: Path, output: Path) -> None:
    """Convert a TFLite file.

    Parameters
    ----------
    source, output : Path

    Raises
    ------
    ValueError
        If the network has an operator that is not known here.
    """
    model = tflite.Model.GetRootAsModel(source.read_bytes(), 0)
    onnx.save(_Converter(model).run(), str(output))


class _Converter:
    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.Subgraphs(0)
        self.constants: dict[int, NDArray[Any]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        names = {v: k for k, v in vars(tflite.BuiltinOperator).items() if not k.startswith("_")}
        self.codes = [
            names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            for code in map(model.OperatorCodes, range(model.OperatorCodesLength()))
        ]
        for i in range(self.graph.TensorsLength()):
            tensor = self.graph.Tensors(i)
            data = model.Buffers(tensor.Buffer()).DataAsNumpy()
            if isinstance(data, np.ndarray):
                dtype = _DTYPES[tensor.Type()]
                self.constants[i] = data.view(dtype).reshape(self.shape(i))

    def run(self) -> onnx.ModelProto:
        inputs = self.graph.InputsAsNumpy().tolist()
        outputs = self.graph.OutputsAsNumpy().tolist()
        for i in inputs:
            self.add("Transpose", [f"in{i}"], f"t{i}", perm=_TO_NCHW)
        for n in range(self.graph.OperatorsLength()):
            self.operator(self.graph.Operators(n))
        for i in outputs:
            if len(self.shape(i)) == 4:
                self.add("Transpose", [f"t{i}"], f"out{i}", perm=_TO_NHWC)
            else:
                self.add("Identity", [f"t{i}"], f"out{i}")
        graph = helper.make_graph(
            self.nodes, "network",
            [helper.make_tensor_value_info(f"in{i}", TensorProto.FLOAT, self.shape(i))
             for i in inputs],
            [helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, self.shape(i))
             for i in outputs],
            self.weights,
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        made.ir_version = 10
        onnx.checker.check_model(made)
        return made

    def operator(self, op: Any) -> None:
        kind = self.codes[op.OpcodeIndex()]
        inputs, output = op.InputsAsNumpy().tolist(), int(op.Outputs(0))
        if kind == "DEQUANTIZE" and inputs[0] in self.constants:  # a weight stored as float16
            self.constants[output] = self.constants[inputs[0]].astype(np.float32)
            return
        emit: Callable[[Any, list[int], int], None] | None = getattr(
            self, f"emit_{kind.lower()}", None
        )
        if emit is None:
            raise ValueError(f"operator {kind} cannot be written as ONNX; leave this peer out")
        options = None
        if kind in _OPTIONS:
            options = _OPTIONS[kind]()
            options.Init(op.BuiltinOptions().Bytes, op.BuiltinOptions().Pos)
        emit(options, inputs, output)

    def emit_conv_2d(self, options: Any, inputs: list[int], output: int) -> None:
        weight = self.constants[inputs[1]].transpose(0, 3, 1, 2)  # OHWI
        self._convolution(options, weight, 1, inputs, output)

    def emit_depthwise_conv_2d(self, options: Any, inputs: list[int], output: int) -> None:
        weight = self.constants[inputs[1]].transpose(3, 0, 1, 2)  # 1HWC
        self._convolution(options, weight, weight.shape[0], inputs, output)

    def _convolution(
        self, options: Any, weight: NDArray[Any], groups: int, inputs: list[int], output: int
    ) -> None:
        dilations = [options.DilationHFactor(), options.DilationWFactor()]
        window = [
            (k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)
        ]  # fmt: skip
        self.activated(
            options, output, "Conv",
            [f"t{inputs[0]}", self.weight(f"w{output}", weight),
             self.weight(f"b{output}", self.constants[inputs[2]])],
            group=groups, dilations=dilations, strides=[options.StrideH(), options.StrideW()],
            pads=self.pads(options, inputs[0], output, window),
        )  # fmt: skip

    def emit_max_pool_2d(self, options: Any, inputs: list[int], output: int) -> None:
        window = [options.FilterHeight(), options.FilterWidth()]
        self.activated(
            options, output, "MaxPool", [f"t{inputs[0]}"], kernel_shape=window,
            strides=[options.StrideH(), options.StrideW()],
            pads=self.pads(options, inputs[0], output, window),
        )  # fmt: skip

    def emit_add(self, options: Any, inputs: list[int], output: int) -> None:
        self.activated(options, output, "Add", [f"t{i}" for i in inputs])

    def emit_pad(self, _options: Any, inputs: list[int], output: int) -> None:
        pads = self.constants[inputs[1]].reshape(4, 2)[_TO_NCHW].T.reshape(-1).astype(np.int64)
        self.add("Pad", [f"t{inputs[0]}", self.weight(f"p{output}", pads)], f"t{output}")

    def emit_resize_bilinear(self, options: Any, inputs: list[int], output: int) -> None:
        place = "asymmetric"
        if options.HalfPixelCenters():
            place = "half_pixel"
        elif options.AlignCorners():
            place = "align_corners"
        sizes = np.array(self.shape(output))[_TO_NCHW].astype(np.int64)
        self.add(
            "Resize", [f"t{inputs[0]}", "", "", self.weight(f"s{output}", sizes)], f"t{output}",
            mode="linear", coordinate_transformation_mode=place,
        )  # fmt: skip

    def emit_logistic(self, _options: Any, inputs: list[int], output: int) -> None:
        self.add("Sigmoid", [f"t{inputs[0]}"], f"t{output}")

    def emit_reshape(self, _options: Any, inputs: list[int], output: int) -> None:
        name = f"t{inputs[0]}"
        if len(self.shape(inputs[0])) == 4:
            self.add("Transpose", [name], f"h{output}", perm=_TO_NHWC)
            name = f"h{output}"
        if len(self.shape(output)) == 4:
            raise ValueError("a reshape to four axes cannot be written; leave this peer out")
        shape = np.array(self.shape(output), np.int64)
        self.add("Reshape", [name, self.weight(f"s{output}", shape)], f"t{output}")

    def activated(
        self, options: Any, output: int, kind: str, inputs: list[str], **attributes: Any
    ) -> None:
        """Add a node and the activation that TFLite has fused into it."""
        activation = options.FusedActivationFunction()
        kinds = tflite.ActivationFunctionType
        if activation == kinds.NONE:
            self.add(kind, inputs, f"t{output}", **attributes)
            return
        self.add(kind, inputs, f"a{output}", **attributes)
        if activation == kinds.RELU:
            self.add("Relu", [f"a{output}"], f"t{output}")
        elif activation == kinds.RELU6:
            ends = [self.weight(f"{n}{output}", np.float32(n[1:])) for n in ("l0", "u6")]
            self.add("Clip", [f"a{output}", *ends], f"t{output}")
        else:
            raise ValueError(f"activation {activation} cannot be written; leave this peer out")

    def pads(self, options: Any, source: int, output: int, window: list[int]) -> list[int]:
        """Return ONNX's pads: above, left, below, right."""
        if options.Padding() == tflite.Padding.VALID:
            return [0, 0, 0, 0]
        strides = (options.StrideH(), options.StrideW())
        before, after = [], []
        for axis in (1, 2):
            n = axis - 1
            reach = (self.shape(output)[axis] - 1) * strides[n] + window[n]
            total = max(0, reach - self.shape(source)[axis])
            before.append(total // 2)
            after.append(total - total // 2)
        return before + after

    def shape(self, tensor: int) -> list[int]:
        return [int(n) for n in np.atleast_1d(self.graph.Tensors(tensor).ShapeAsNumpy())]

    def weight(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))

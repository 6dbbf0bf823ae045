"""Quantize a network for LiteRT: int8 weights per channel, int8 activations.

    litert/bin/python -m benchmarks.litert_int8 zoo:ddrnet23_slim frames.npy ddrnet.tflite

Runs in a Python environment of its own, made by ``pip install litert-torch ai-edge-quantizer``,
since these packages want other versions of what TVM needs. ``benchmarks/arm_peers.py`` calls it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SIGNATURE = "serving_default"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("source", help="a TFLite file, or zoo:NAME")
parser.add_argument("frames", type=Path, help="calibration frames, one array of them all (.npy)")
parser.add_argument("output", type=Path)


def from_zoo(name: str, frame: Any) -> bytes:
    """Convert a network of the zoo."""
    import litert_torch
    import torch

    from resq_tvm import zoo

    module, _ = zoo.build(name, frame.shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.tflite"
        litert_torch.convert(module, (torch.from_numpy(frame),)).export(str(path))
        return path.read_bytes()


def from_file(path: Path) -> bytes:
    """Return a file as the quantizer needs it: float32 weights, and a signature."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
    (graph,) = model.subgraphs
    operators = []
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        data = model.buffers[graph.tensors[op.inputs[0]].buffer].data
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        if kind != schema.BuiltinOperator.DEQUANTIZE or data is None:
            operators.append(op)
            continue
        buffer = schema.BufferT()
        buffer.data = np.asarray(data, np.uint8).view(np.float16).astype(np.float32).view(np.uint8)
        model.buffers.append(buffer)
        graph.tensors[op.outputs[0]].buffer = len(model.buffers) - 1
    graph.operators = operators

    def named(indices: Any) -> list[Any]:
        found = []
        for index in indices:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = graph.tensors[index].name, int(index)
            found.append(entry)
        return found

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
    signature.inputs, signature.outputs = named(graph.inputs), named(graph.outputs)
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def main() -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    args = parser.parse_args()
    frames = np.load(args.frames, allow_pickle=False)
    zoo_name = args.source.startswith("zoo:")
    model = from_zoo(args.source, frames[0]) if zoo_name else from_file(Path(args.source))
    (name,) = Interpreter(model_content=model).get_signature_list()[SIGNATURE]["inputs"]
    quantize = quantizer.Quantizer(bytearray(model), recipe.static_wi8_ai8())
    ranges = quantize.calibrate({SIGNATURE: [{name: frame} for frame in frames]})
    staging = args.output.with_name(f".{args.output.name}.tmp")
    quantize.quantize(ranges).export_model(str(staging), overwrite=True)
    staging.replace(args.output)


if __name__ == "__main__":
    main()

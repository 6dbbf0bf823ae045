"""The peers that our programs are measured beside: int8 inference engines on the same network.

Every peer is a callable on one preprocessed frame. Engines that can are told to take subnormal
numbers for zero, as `resq_tvm.passes.canonicalize.flush_tiny` does with constants. Quantized models
are made once from the calibration frames given and kept in a cache folder, keyed by source model
and version.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.files import cache_folder

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would also start a thread

Frame = NDArray[np.float32]
CACHE = cache_folder() / "peers"


@dataclass(frozen=True)
class Peer:
    """A named engine on one network."""

    name: str
    run: Callable[[Frame], Any]


def source_key(source: Any) -> str:
    """Return a short hash of a model file's bytes or a module's parameters."""
    digest = hashlib.sha256()
    if isinstance(source, Path):
        digest.update(source.read_bytes())
    else:
        for value in source.state_dict().values():
            digest.update(np.ascontiguousarray(value.numpy()).tobytes())
    return digest.hexdigest()[:16]


def openvino_int8(source: Any, calibration: Sequence[Frame], threads: int) -> Peer:
    """OpenVINO on a model quantized after training by NNCF (default settings)."""
    import nncf
    import openvino as ov

    shape = "x".join(map(str, calibration[0].shape))
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"openvino-{source_key(source)}-{shape}-{ov.__version__[:9]}.xml"
    if not path.is_file():
        if isinstance(source, Path):
            model = ov.convert_model(str(source))
        else:
            import torch

            model = ov.convert_model(
                source, example_input=torch.from_numpy(calibration[0]), input=calibration[0].shape
            )
        model = nncf.quantize(model, nncf.Dataset(list(calibration)), subset_size=len(calibration))
        ov.save_model(model, str(path), compress_to_fp16=False)
    core = ov.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    options["CPU_DENORMALS_OPTIMIZATION"] = True
    request = core.compile_model(str(path), "CPU", options).create_infer_request()
    return Peer(f"OpenVINO {ov.__version__[:9]} int8 (NNCF)", lambda x: request.infer([x]))


def quantized_onnx(source: Any, calibration: Sequence[Frame]) -> Path:
    """Return the file of a statically quantized QDQ model, weights per channel."""
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    shape = "x".join(map(str, calibration[0].shape))
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"ort-{source_key(source)}-{shape}-{ort.__version__}.onnx"
    if path.is_file():
        return path
    onnx_path = source
    if not isinstance(source, Path):
        import torch

        onnx_path = path.with_suffix(".float.onnx")
        program = torch.onnx.export(source, (torch.from_numpy(calibration[0]),), dynamo=True)
        program.save(str(onnx_path))
    elif source.suffix == ".tflite":
        from benchmarks.tflite_onnx import convert

        onnx_path = path.with_suffix(".float.onnx")
        convert(source, onnx_path)
    name = ort.InferenceSession(str(onnx_path)).get_inputs()[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.frames = iter(calibration)

        def get_next(self) -> dict[str, Frame] | None:
            frame = next(self.frames, None)
            return None if frame is None else {name: frame}

    quantize_static(
        str(onnx_path), str(path), Reader(), per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def onnxruntime_int8(source: Any, calibration: Sequence[Frame], threads: int) -> Peer:
    """ONNX Runtime on a statically quantized QDQ model, weights per channel."""
    import onnxruntime as ort

    path = quantized_onnx(source, calibration)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return Peer(
        f"ONNX Runtime {ort.__version__} int8 (QDQ)", lambda x: session.run(None, {name: x})
    )


def litert_float(source: Path, threads: int) -> Peer:
    """LiteRT with XNNPACK, float32 (there is no int8 file of these networks)."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(source), num_threads=threads)
    interpreter.allocate_tensors()
    index = interpreter.get_input_details()[0]["index"]

    def run(x: Frame) -> None:
        interpreter.set_tensor(index, x)
        interpreter.invoke()

    return Peer("LiteRT float32 (XNNPACK)", run)

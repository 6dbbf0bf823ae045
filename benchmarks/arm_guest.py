"""One int8 engine on one network, inside the emulated system; `benchmarks/arm_peers.py` runs it.

The frames are its warm-up but for the last one, whose inference is the measured region. Prints
what the engine is; writes the outputs of the last frame, as real numbers.
"""

import argparse
import ctypes

import numpy as np

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("engine", choices=["litert", "onnxruntime"])
parser.add_argument("model")
parser.add_argument("frames", help="an array of them all (.npy)")
parser.add_argument("markers", help="the library that begins and ends the region")
parser.add_argument("outputs", help="where they go (.npz)")


def litert(model):
    """Return a callable on a frame; its input is quantized outside of the measured region."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model, num_threads=1)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    outputs = interpreter.get_output_details()

    def prepare(frame):
        interpreter.set_tensor(source["index"], to_codes(frame, source))

    def finish():
        return [to_real(interpreter.get_tensor(o["index"]), o) for o in outputs]

    return prepare, interpreter.invoke, finish


def to_codes(frame, details):
    """Quantize an input as the model says."""
    if details["dtype"] == np.float32:
        return frame
    scale, zero = details["quantization"]
    limits = np.iinfo(details["dtype"])
    return np.clip(np.round(frame / scale) + zero, limits.min, limits.max).astype(details["dtype"])


def to_real(values, details):
    """Return what an output's codes stand for."""
    if details["dtype"] == np.float32:
        return values
    scale, zero = details["quantization"]
    return (values.astype(np.float32) - zero) * np.float32(scale)


def onnxruntime(model):
    """Return the same for a QDQ model, which quantizes its input itself."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed, results = {}, []
    name = session.get_inputs()[0].name

    def prepare(frame):
        feed[name] = frame

    def run():
        results[:] = session.run(None, feed)

    return prepare, run, lambda: list(results)


def main():
    """Run the engine."""
    args = parser.parse_args()
    markers = ctypes.CDLL(args.markers)
    prepare, run, finish = {"litert": litert, "onnxruntime": onnxruntime}[args.engine](args.model)
    *warm_up, frame = np.load(args.frames, allow_pickle=False)
    for other in warm_up:
        prepare(other)
        run()
    prepare(frame)
    markers.region_begin()
    run()
    markers.region_end()
    np.savez(args.outputs, *finish())


main()

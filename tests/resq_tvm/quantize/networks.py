"""A small moving scene and a small network to calibrate on."""

from __future__ import annotations

import json

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.network import Network, TensorInfo

SHAPE = (1, 12, 10, 3)


def small_network(seed: int = 0) -> Network:
    """Conv, relu, depthwise, concat of two branches, conv: several layers on one quantizer."""
    rng = np.random.default_rng(seed)
    layout = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
    op = relax.op

    def weight(*shape: int) -> relax.Expr:
        return relax.const((rng.standard_normal(shape) / np.sqrt(9 * shape[3])).astype("float32"))

    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            a = bb.emit(op.nn.conv2d(x, weight(8, 3, 3, 3), padding=[1] * 4, **layout), "stem")
            a = bb.emit(op.nn.relu(a), "act")
            b = bb.emit(
                op.nn.conv2d(a, weight(8, 3, 3, 1), padding=[1] * 4, groups=8, **layout), "depth"
            )
            c = bb.emit(op.nn.conv2d(a, weight(4, 1, 1, 8), **layout), "point")
            d = bb.emit(op.concat([b, c], axis=3), "both")
            y = bb.emit_output(op.nn.conv2d(d, weight(5, 3, 3, 12), **layout), "head")
        bb.emit_func_output(y)
    module = bb.finalize()
    infos = [{"name": "image", "shape": [1, 3, 12, 10], "layout": "NCHW"}]
    module["main"] = module["main"].with_attrs(
        {
            "num_input": 1,
            "resq.inputs": json.dumps(infos),
            "resq.outputs": json.dumps([{"name": "y", "shape": [1, 5, 10, 8], "layout": "NCHW"}]),
        }
    )
    return Network(
        module=tvm.IRModule({"main": module["main"]}),
        name="small",
        inputs=(TensorInfo("image", (1, 3, 12, 10), "NCHW"),),
        outputs=(TensorInfo("y", (1, 5, 10, 8), "NCHW"),),
        source="test",
    )


def moving_clip(count: int, seed: int = 0, speed: float = 0.05) -> list[NDArray[np.float32]]:
    """Frames in the network's source layout that drift away from the first one."""
    rng = np.random.default_rng(seed)
    frame = rng.uniform(-1, 1, (1, 3, 12, 10))
    frames = []
    for _ in range(count):
        frames.append(frame.astype(np.float32))
        frame = frame + speed * rng.standard_normal(frame.shape)
    return frames

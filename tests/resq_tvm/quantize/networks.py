"""A small moving scene and a small network to calibrate on."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.network import Network, TensorInfo

SHAPE = (1, 12, 10, 3)


def small_network(seed: int = 0, heads: int = 1) -> Network:
    """Conv, relu, depthwise, concat of two branches, conv: several layers on one quantizer.

    The second of two heads, ``mask``, has a layer of its own.
    """
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
            y = op.nn.conv2d(d, weight(5, 3, 3, 12), **layout)
            if heads == 1:
                result = bb.emit_output(y, "head")
            else:
                mask = bb.emit(op.nn.conv2d(d, weight(5, 3, 3, 12), **layout), "mask")
                result = bb.emit_output(relax.Tuple([bb.emit(y, "head"), mask]))
        bb.emit_func_output(result)
    module = bb.finalize()
    infos = [{"name": "image", "shape": [1, 3, 12, 10], "layout": "NCHW"}]
    outputs = tuple(TensorInfo(name, (1, 5, 10, 8), "NCHW") for name in ("y", "mask")[:heads])
    module["main"] = module["main"].with_attrs(
        {
            "num_input": 1,
            "resq.inputs": json.dumps(infos),
            "resq.outputs": json.dumps([asdict(output) for output in outputs]),
        }
    )
    return Network(
        module=tvm.IRModule({"main": module["main"]}),
        name="small",
        inputs=(TensorInfo("image", (1, 3, 12, 10), "NCHW"),),
        outputs=outputs,
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

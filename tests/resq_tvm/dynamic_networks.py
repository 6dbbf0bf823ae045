"""A network whose pixels choose their bits as one can work out by hand."""

from __future__ import annotations

import json
from math import sqrt
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.network import Network, TensorInfo
from resq_tvm.quantize.qnet import QuantizedNetwork

POINTWISE = {"data_layout": "NHWC", "kernel_layout": "OHWI"}

# Residuals are whole numbers of the finest step, 1; two channels of 2 x 3 pixels.
FRAME = np.array(
    [[[0, 0], [2, 0], [16, 0]], [[20, 0], [100, 50], [127, 0]]], np.float32
)[None]  # fmt: skip

# With T = 3 for x: 2 is less than 3; 16 is a step of 4 bits; 20 is off by 4, (100, 50) by
# sqrt(16 + 4), 127 by 15 (its code is clamped to 7).
X_BITS = np.array([[0, 0, 4], [8, 8, 8]])
# With T = 3 sqrt(3) = 5.2 for a, the first channel of the chosen x: 20 and 100 are off by 4.
A_BITS = np.array([[0, 0, 4], [4, 4, 8]])
# The same with a pool of 4 and 8 bits: the choice between them is made alike.
MACS = {"first": 6 * 2 * 1, "second": 6 * 3 * 1}


def by_hand(pool: tuple[int, ...] = (0, 4, 8), gates: bool = True) -> QuantizedNetwork:
    """Return ``second(concat(first(x), x))``: `first` takes channel 0, `second` sums up.

    The gate of x tells apart single pixels.
    """
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2, 3, 2), "float32"))
    first, second = np.zeros((1, 1, 1, 2), np.float32), np.ones((1, 1, 1, 3), np.float32)
    first[..., 0] = 1
    with bb.function("main", [x]):
        with bb.dataflow():
            a = bb.emit(relax.op.nn.conv2d(x, relax.const(first), **POINTWISE), "first")
            both = bb.emit(relax.op.concat([a, x], axis=3), "both")
            y = bb.emit(relax.op.nn.conv2d(both, relax.const(second), **POINTWISE), "second")
            gv = bb.emit_output(y)
        bb.emit_func_output(gv)
    module = bb.finalize()
    scheme = f"W8A8->W8A{{{','.join(map(str, pool))}}}"
    name = ",".join(map(str, pool))
    shifts = [{0: 8, 4: 4, 8: 0}[bits] for bits in pool]
    # ||w|| of x is sqrt(1 + 2): `first` and two channels of `second`; of a it is 1.
    tau = 3 * sqrt(3)
    gate = {"scale": 1.0, "noise": 0.0, "threshold": 0.0, "block": 1, "reach": 0}
    attributes: dict[str, Any] = {
        "resq.layers": {"first": scheme, "second": scheme},
        "resq.scales": {
            "keyframe": {"x:8": 1.0, "both:8": 1.0},
            "residual": {f"x:{name}": 1.0, f"both:{name}": 1.0},
        },
        "resq.options": {"granularity": "channel", "residual": "pairwise", "period": 4},
        "resq.dynamic": {
            "choices": {f"{v}:{name}": {"shifts": shifts, "tau": tau} for v in ("first", "x")},
            "gates": {"x": gate} if gates else {},
        },
    }
    main = module["main"].with_attrs({k: json.dumps(v) for k, v in attributes.items()})
    network = Network(
        module=tvm.IRModule({"main": main}),
        name="by hand",
        inputs=(TensorInfo("x", (1, 2, 3, 2), "NHWC"),),
        outputs=(TensorInfo("y", (1, 2, 3, 1), "NHWC"),),
        source="test",
    )
    return QuantizedNetwork(network, scheme)


def clip() -> list[NDArray[np.float32]]:
    """Keyframe of zeros, `FRAME`, the keyframe again, `FRAME`; then a keyframe."""
    zero = np.zeros_like(FRAME)
    return [zero, FRAME, zero, FRAME, FRAME]

"""Networks that choose bits, with made-up scales and thresholds: no calibration needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.network import Network, TensorInfo
from resq_tvm.passes.graph import Graph, shape_of
from resq_tvm.quantize.qnet import QuantizedNetwork
from tests.graphs import annotated, with_policy

SIDE = 32  # pixels of `small_network`'s input


def small_network(seed: int = 0, channels: int = 8) -> tvm.IRModule:
    """Return two convolutions and a skip connection over ``(1, 32, 32, 3)``."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> Any:
        return relax.const((rng.standard_normal(shape) * 0.3).astype("float32"))

    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIDE, SIDE, 3), "float32"))
    layout: dict[str, Any] = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
    with bb.function("main", [x]):
        with bb.dataflow():
            first = bb.emit(
                relax.op.nn.conv2d(x, weight(channels, 3, 3, 3), padding=[1] * 4, **layout), "first"
            )
            a = bb.emit(relax.op.nn.relu(first), "a")
            second = bb.emit(
                relax.op.nn.conv2d(a, weight(channels, 3, 3, channels), padding=[1] * 4, **layout),
                "second",
            )
            b = bb.emit(relax.op.add(second, a), "b")
            y = bb.emit_output(bb.emit(relax.op.nn.relu(b), "y"))
        bb.emit_func_output(y)
    return bb.finalize()


def dynamic(
    mod: tvm.IRModule,
    pool: tuple[int, ...] = (0, 4, 8),
    *,
    tau: float = 0.02,
    threshold: float = 0.0,
    scale: float = 0.05,
    period: int = 4,
    key: str = "W8A8",
) -> QuantizedNetwork:
    """Annotate every layer with a dynamic scheme.

    Parameters
    ----------
    mod : IRModule
        Canonical ``main``, every value NHWC.
    pool : tuple of int
        The residual's bits.
    tau : float
        Of every choice.
    threshold : float
        Of the gates, in squared steps of 0.02 per block of 8 x 8 pixels.
    scale : float
        As of `tests.graphs.annotated`.
    period : int
        The network's own.
    key : str
        Precision of keyframes.
    """
    scheme = f"{key}->W8A{{{','.join(map(str, pool))}}}"
    gate = {"scale": 0.02, "noise": 0.02, "threshold": threshold, "block": 8, "reach": 0}
    return qnet(with_policy(annotated(mod, scheme, scale), tau, gate), scheme, period)


def qnet(mod: tvm.IRModule, scheme: str, period: int = 4) -> QuantizedNetwork:
    """Return an annotated module, every value NHWC, as a calibrated network."""
    options = {"granularity": "channel", "residual": "pairwise", "period": period}
    main = mod["main"].with_attr("resq.options", json.dumps(options))
    module = tvm.IRModule({"main": main})
    graph = Graph.of(main)
    inputs = tuple(TensorInfo(p.name, shape_of(p), "NHWC") for p in main.params)
    outputs = tuple(
        TensorInfo(f"y{i}", shape_of(v), "NHWC" if len(shape_of(v)) == 4 else "")
        for i, v in enumerate(graph.outputs())
    )
    return QuantizedNetwork(Network(module, "dynamic", inputs, outputs, "test"), scheme)


@dataclass
class FixedCosts:
    """Costs that nothing changes: milliseconds of the programs; residuals rise with the share."""

    keyframe: float = 7.0
    frame: float = 5.0
    probe: float = 0.1
    full: float = 10.0  # a residual frame of which everything changed
    knows_frame: bool = True

    def residual(self, share: float) -> float:
        return 1 + (self.full - 1) * share

    def saw_keyframe(self, ms: float) -> None: ...

    def saw_frame(self, ms: float) -> None: ...

    def saw_probe(self, ms: float) -> None: ...

    def saw_residual(self, share: float, ms: float) -> None: ...

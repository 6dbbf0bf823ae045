"""Find the layers whose inputs are worth 16 bits on keyframes.

Rounding noise of the layers' inputs is small and adds up at the outputs, so that layers can be
looked at one by one. It comes from few of them: layers that read sums or concatenations of all that
was before, where one scale serves values of many sizes. On keyframes these get two codes
(`resq_tvm.scheme.split`), which costs their multiply-accumulates once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from resq_tvm.bops import layer_macs
from resq_tvm.passes.graph import Graph, op_name
from resq_tvm.passes.held import live_values
from resq_tvm.passes.quantizers import quant_points
from resq_tvm.quantize.samples import FrameGroups, spread
from resq_tvm.reference.executor import Executor
from resq_tvm.reference.operands import Kernel
from resq_tvm.reference.ops_linear import linear
from resq_tvm.scheme import MAX_BITS, MAX_KEY_BITS, Scheme, code_limit

_FRAMES = 4  # that noise is measured on
_LEAST = 0.005  # of all noise: less is not worth a second code


@dataclass(frozen=True)
class LayerNoise:
    """What rounding one layer's input does to the outputs.

    Attributes
    ----------
    layer : str
    noise : float
        Mean square of the outputs' change, by that of the outputs; summed over outputs.
    macs : float
        Share of the network's multiply-accumulates.
    """

    layer: str
    noise: float
    macs: float


def with_precise_layers(
    main: Any,
    scales: Mapping[str, float],
    frames: FrameGroups,
    share: float,
    progress: Callable[[str], None],
    held: Collection[int] = (),
) -> Any:
    """Return ``main`` with 16 activation bits on keyframes for the noisiest layers.

    Parameters
    ----------
    main : relax.Function
        Canonical ``main`` with `resq.layers`.
    scales : mapping of str to float
        Keyframe quantizer → scale.
    frames : FrameGroups
    share : float
        Of all multiply-accumulates: what these layers have at most.
    progress : callable
        Called with a line as each layer is done.
    held : collection of int
        Numbers of outputs that do not count: residual frames, which build on keyframes, hold them.
    """
    layers: dict[str, str] = json.loads(str(main.attrs["resq.layers"]))
    for layer in chosen(layer_noise(main, scales, frames, progress, held), share):
        scheme = Scheme.parse(layers[layer])
        layers[layer] = str(replace(scheme, key=replace(scheme.key, activation=MAX_KEY_BITS)))
    return main.with_attr("resq.layers", json.dumps(layers))


def chosen(table: Iterable[LayerNoise], share: float) -> list[str]:
    """Return the layers with the most noise per multiply-accumulate that fit into a share."""
    table = list(table)
    least = _LEAST * sum(row.noise for row in table)
    found, spent = [], 0.0
    for row in sorted(table, key=lambda row: row.noise / row.macs, reverse=True):
        if row.noise > least and spent + row.macs <= share:
            found.append(row.layer)
            spent += row.macs
    return found


def layer_noise(
    main: Any,
    scales: Mapping[str, float],
    frames: FrameGroups,
    progress: Callable[[str], None],
    held: Collection[int] = (),
) -> list[LayerNoise]:
    """Measure the noise of every layer whose input has one code on keyframes, with float weights.

    Layers that only held outputs depend on are left out. Parameters are those of
    `with_precise_layers`.
    """
    layers: dict[str, str] = json.loads(str(main.attrs["resq.layers"]))
    live = {value.name for value in live_values(main, held)}
    quantizers: dict[str, tuple[float, int]] = {}
    for point in quant_points(main, layers, "keyframe"):
        if point.bits <= MAX_BITS:
            own = [layer for layer in point.layers if layer in live]
            quantizers |= {layer: (scales[point.name], point.bits) for layer in own}
    calls = Graph.of(main).layers()
    macs = {var.name: layer_macs(call) for var, call in calls}
    rounded = ""

    def build(call: Any, differentiable: bool) -> Kernel:
        layer = next(var.name for var, other in calls if other.same_as(call))
        run = linear(call, differentiable)
        if layer not in quantizers:
            return run
        scale, bits = quantizers[layer]
        limit = code_limit(bits)

        def noisy(x: torch.Tensor) -> torch.Tensor:
            if rounded == layer:
                x = (x / scale).round_().clamp_(-limit, limit).mul_(scale)
            return run(x)

        return noisy

    names = {op_name(call) for _, call in calls}
    execute = Executor(main, watch=(), operators=dict.fromkeys(names, build))
    inputs = [run[0] for run in spread(frames.groups, _FRAMES)]

    def outputs(one: Any) -> list[torch.Tensor]:
        return [y for n, y in enumerate(_outputs(execute(*one))) if n not in held]

    exact = [outputs(one) for one in inputs]
    energies = [sum(float(y.square().sum()) for y in same) for same in zip(*exact, strict=True)]
    table = []
    for number, layer in enumerate(quantizers):
        rounded = layer
        squares = np.zeros(len(energies))
        for one, before in zip(inputs, exact, strict=True):
            pairs = zip(outputs(one), before, strict=True)
            squares += [float((y - x).square().sum()) for y, x in pairs]
        noise = sum(s / e for s, e in zip(squares, energies, strict=True) if e > 0)
        table.append(LayerNoise(layer, float(noise), macs[layer] / sum(macs.values())))
        progress(f"noise {number + 1}/{len(quantizers)} {layer}")
    return table


def _outputs(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]

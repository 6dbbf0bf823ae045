"""The accountant: multiply-accumulates and bit operations of a canonical network.

``BOPs = MACs · bits_w · bits_a``, summed over the linear layers and amortised over the period:
``(keyframe + (T - 1) · residual) / T``. Layers that stay in float count as 32 · 32.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from resq_tvm.passes.graph import Graph, op_name, shape_of
from resq_tvm.scheme import Bits, Scheme

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """One linear layer: multiply-accumulates and the bits of both programs.

    ``key_bits`` and ``residual_bits`` are ``"W8A8"`` or ``"float"``; ``residual_bits`` is the
    keyframe's where every frame is computed on its own.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    macs: int
    key_bits: str
    residual_bits: str
    bops_keyframe: int
    bops_residual: int


@dataclass(frozen=True)
class BopsReport:
    """Costs of a network under a scheme: per layer and in sum."""

    period: int
    layers: tuple[LayerCost, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops_keyframe(self) -> int:
        """Bit operations of a keyframe."""
        return sum(layer.bops_keyframe for layer in self.layers)

    @property
    def bops_residual(self) -> int:
        """Bit operations of a residual frame."""
        return sum(layer.bops_residual for layer in self.layers)

    @property
    def bops_amortized(self) -> float:
        """Bit operations per frame, averaged over the period."""
        return (self.bops_keyframe + (self.period - 1) * self.bops_residual) / self.period

    @property
    def peak(self) -> int:
        """Bit operations of the most expensive frame."""
        return max(self.bops_keyframe, self.bops_residual)

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Names of the layers that stay in float in either program."""
        return tuple(la.name for la in self.layers if "float" in (la.key_bits, la.residual_bits))

    def totals(self) -> dict[str, Any]:
        """Return the sums: macs, bops_keyframe, bops_residual, bops_amortized, peak, …."""
        return {
            "macs": self.macs,
            "bops_keyframe": self.bops_keyframe,
            "bops_residual": self.bops_residual,
            "bops_amortized": self.bops_amortized,
            "peak": self.peak,
            "period": self.period,
            "float_layers": list(self.float_layers),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the sums and ``layers``, ready for JSON."""
        return {**self.totals(), "layers": [asdict(layer) for layer in self.layers]}

    def to_json(self) -> str:
        """Return `to_dict` as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """Return a table of the layers and the sums."""
        width = max([5, *(len(layer.name) for layer in self.layers)])
        lines = [
            f"{'layer':<{width}}  {'op':<16} {'MMACs':>9} {'key':>6} {'resid.':>6} "
            f"{'GBOPs/frame':>11}"
        ]
        for layer in self.layers:
            mean = (layer.bops_keyframe + (self.period - 1) * layer.bops_residual) / self.period
            lines.append(
                f"{layer.name:<{width}}  {layer.op:<16} {layer.macs / 1e6:>9.3f} "
                f"{layer.key_bits:>6} {layer.residual_bits:>6} {mean / 1e9:>11.4f}"
            )
        lines.append(
            f"{self.macs / 1e9:.3f} GMACs; GBOPs: keyframe {self.bops_keyframe / 1e9:.2f}, "
            f"residual {self.bops_residual / 1e9:.2f}, per frame at period {self.period}: "
            f"{self.bops_amortized / 1e9:.2f}; peak {self.peak / 1e9:.2f}"
        )
        if self.float_layers:
            lines.append(f"float (counted as 32 x 32 bits): {', '.join(self.float_layers)}")
        return "\n".join(lines)


def count(module: Any, period: int) -> BopsReport:
    """Count the operations of a module.

    Parameters
    ----------
    module : IRModule
        Canonical ``main``; without the attribute ``resq.layers`` every layer counts as float.
    period : int
        A keyframe every ``period`` frames, at least 1.
    """
    main = module["main"]
    precisions: dict[str, str] = {}
    if main.attrs is not None and "resq.layers" in main.attrs:
        precisions = json.loads(str(main.attrs["resq.layers"]))
    layers = []
    for var, call in Graph.of(main).layers():
        macs = layer_macs(call)
        key, residual = _bits(precisions.get(var.name, "float"))
        layers.append(
            LayerCost(
                var.name,
                _kind(call),
                shape_of(var),
                macs,
                str(key or "float"),
                str(residual or "float"),
                macs * _product(key),
                macs * _product(residual),
            )
        )
    return BopsReport(period, tuple(layers))


def layer_macs(call: Any) -> int:
    """Return the multiply-accumulates of a linear layer.

    A convolution sums ``O · (I / groups) · kh · kw`` products per output pixel (taps on padding
    included), a transposed one as many per input pixel, a matmul K · N.
    """
    weight = shape_of(call.args[1])
    taps = 1
    for extent in weight:
        taps *= extent
    name = op_name(call)
    if name == "relax.matmul":
        rows = 1
        for extent in shape_of(call)[:-1]:
            rows *= extent
        return rows * taps
    # The kernel's axes are (O, kh, kw, I / groups), for the transposed (O / groups, kh, kw, I).
    source = call.args[0] if name == "relax.nn.conv2d_transpose" else call
    _, height, width, _ = shape_of(source)
    return height * width * taps


def _kind(call: Any) -> str:
    name = op_name(call).rsplit(".", 1)[-1]
    if name != "conv2d" or int(call.attrs.groups) == 1:
        return name
    weight = shape_of(call.args[1])
    return "depthwise" if weight[0] == int(call.attrs.groups) and weight[3] == 1 else "grouped"


def _bits(text: str) -> tuple[Bits | None, Bits | None]:
    if text == "float":
        return None, None
    scheme = Scheme.parse(text)
    return scheme.key, scheme.residual or scheme.key


def _product(bits: Bits | None) -> int:
    return FLOAT_BITS * FLOAT_BITS if bits is None else bits.weight * bits.activation

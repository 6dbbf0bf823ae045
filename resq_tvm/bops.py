"""The accountant: multiply-accumulates and bit operations of a canonical network.

``BOPs = MACs · bits_w · bits_a``, summed over the linear layers and amortised over the period:
``(keyframe + (T - 1) · residual) / T``. Layers that stay in float count as 32 · 32.

Where pixels choose their bits from a pool, a layer counts with the mean bits of its pixels, if
they were measured on a clip (`resq_tvm.bitmaps`), else with the most of the pool. The choice has
its own cost: for each value that is quantized, one multiply-accumulate per pixel, channel and
candidate below the finest, at the finest activation bits squared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from resq_tvm.passes.graph import Graph, concat_pieces, op_name, shape_of
from resq_tvm.passes.held import live_values
from resq_tvm.scheme import Bits, Scheme

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """One linear layer: multiply-accumulates and the bits of both programs.

    ``key_bits`` and ``residual_bits`` are ``"W8A8"``, ``"W8A{0,4,8}"`` or ``"float"``;
    ``residual_bits`` is the keyframe's where every frame is computed on its own.
    ``bops_residual_most`` is the cost with every pixel at the most bits; ``bops_residual`` differs
    from it where ``mean_bits``, the mean activation bits of a pixel, were measured.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    macs: int
    key_bits: str
    residual_bits: str
    bops_keyframe: int
    bops_residual: int
    bops_residual_most: int
    mean_bits: float | None = None


@dataclass(frozen=True)
class PolicyCost:
    """The choice of bits for one value, on a residual frame; layers that read it share it."""

    value: str
    pool: tuple[int, ...]
    bops: int


@dataclass(frozen=True)
class BopsReport:
    """Costs of a network under a scheme: per layer and in sum."""

    period: int
    layers: tuple[LayerCost, ...]
    policy: tuple[PolicyCost, ...] = ()

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
        """Bit operations of a residual frame, its choices included."""
        return sum(layer.bops_residual for layer in self.layers) + self.bops_policy

    @property
    def bops_residual_most(self) -> int:
        """Bit operations of a residual frame whose pixels all get the most bits of their pool."""
        return sum(layer.bops_residual_most for layer in self.layers) + self.bops_policy

    @property
    def bops_policy(self) -> int:
        """Bit operations by which a residual frame chooses bits; 0 without pools."""
        return sum(cost.bops for cost in self.policy)

    @property
    def measured(self) -> bool:
        """Whether the bits of pixels were measured on a clip."""
        return any(layer.mean_bits is not None for layer in self.layers)

    @property
    def bops_amortized(self) -> float:
        """Bit operations per frame, averaged over the period."""
        return self._amortized(self.bops_keyframe, self.bops_residual)

    @property
    def bops_amortized_most(self) -> float:
        """The same, with all pixels at the most bits of their pool."""
        return self._amortized(self.bops_keyframe, self.bops_residual_most)

    def _amortized(self, keyframe: int, residual: int) -> float:
        return (keyframe + (self.period - 1) * residual) / self.period

    @property
    def peak(self) -> int:
        """Bit operations of the most expensive frame."""
        return max(self.bops_keyframe, self.bops_residual_most)

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Names of the layers that stay in float in either program."""
        return tuple(la.name for la in self.layers if "float" in (la.key_bits, la.residual_bits))

    def totals(self) -> dict[str, Any]:
        """Return the sums: macs, bops_keyframe, bops_residual, bops_amortized, peak, ….

        With pools of bits also bops_policy, measured, bops_residual_most and bops_amortized_most.
        """
        dynamic = {
            "bops_policy": self.bops_policy,
            "measured": self.measured,
            "bops_residual_most": self.bops_residual_most,
            "bops_amortized_most": self.bops_amortized_most,
        }
        return {
            "macs": self.macs,
            "bops_keyframe": self.bops_keyframe,
            "bops_residual": self.bops_residual,
            "bops_amortized": self.bops_amortized,
            "peak": self.peak,
            "period": self.period,
            "float_layers": list(self.float_layers),
            **(dynamic if self.policy else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the sums, ``layers`` and ``policy``, ready for JSON."""
        return {
            **self.totals(),
            "layers": [asdict(layer) for layer in self.layers],
            "policy": [asdict(cost) for cost in self.policy],
        }

    def to_json(self) -> str:
        """Return `to_dict` as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """Return a table of the layers and the sums."""
        width = max([5, *(len(layer.name) for layer in self.layers)])
        bits = max([6, *(len(layer.residual_bits) for layer in self.layers)])
        lines = [
            f"{'layer':<{width}}  {'op':<16} {'MMACs':>9} {'key':>6} {'resid.':>{bits}} "
            f"{'mean':>5} {'GBOPs/frame':>11}"
        ]
        for layer in self.layers:
            mean = "" if layer.mean_bits is None else f"{layer.mean_bits:.2f}"
            per_frame = self._amortized(layer.bops_keyframe, layer.bops_residual)
            lines.append(
                f"{layer.name:<{width}}  {layer.op:<16} {layer.macs / 1e6:>9.3f} "
                f"{layer.key_bits:>6} {layer.residual_bits:>{bits}} {mean:>5} "
                f"{per_frame / 1e9:>11.4f}"
            )
        lines.append(
            f"{self.macs / 1e9:.3f} GMACs; GBOPs: keyframe {self.bops_keyframe / 1e9:.2f}, "
            f"residual {self.bops_residual / 1e9:.2f}, per frame at period {self.period}: "
            f"{self.bops_amortized / 1e9:.2f}; peak {self.peak / 1e9:.2f}"
        )
        if self.policy:
            lines.append(
                f"choosing bits takes {self.bops_policy / 1e9:.4f} GBOPs of a residual frame; with "
                f"all pixels at the most bits it would be {self.bops_residual_most / 1e9:.2f}, "
                f"per frame {self.bops_amortized_most / 1e9:.2f}"
                if self.measured
                else f"all pixels at the most bits (an upper bound); choosing bits takes "
                f"{self.bops_policy / 1e9:.4f} GBOPs of a residual frame"
            )
        if self.float_layers:
            lines.append(f"float (counted as 32 x 32 bits): {', '.join(self.float_layers)}")
        return "\n".join(lines)


def count(module: Any, period: int, mean_bits: Mapping[str, float] | None = None) -> BopsReport:
    """Count the operations of a module.

    Parameters
    ----------
    module : IRModule
        Canonical ``main``; without the attribute ``resq.layers`` every layer counts as float.
    period : int
        A keyframe every ``period`` frames, at least 1.
    mean_bits : mapping of str to float, optional
        Layer → mean activation bits of its input's pixels on residual frames, as
        `resq_tvm.bitmaps.measure_bits` finds them. Layers with a pool that are not in it count with
        the most bits, an upper bound; other layers are not looked up.
    """
    main = module["main"]
    precisions: dict[str, str] = {}
    if main.attrs is not None and "resq.layers" in main.attrs:
        precisions = json.loads(str(main.attrs["resq.layers"]))
    graph = Graph.of(main)
    live = live_values(main)
    layers = []
    policy: dict[tuple[str, tuple[int, ...]], PolicyCost] = {}
    for var, call in graph.layers():
        macs = layer_macs(call)
        key, residual = _bits(precisions.get(var.name, "float"))
        most = macs * _product(residual) if var in live else 0
        spent, mean = most, None
        if residual is not None and residual.pool and var in live:
            for value in concat_pieces(call.args[0], graph.producers):
                cost = _policy_cost(value, residual.pool)
                policy[cost.value, cost.pool] = cost
            mean = (mean_bits or {}).get(var.name)
            spent = most if mean is None else round(macs * residual.weight * mean)
        layers.append(
            LayerCost(
                var.name,
                _kind(call),
                shape_of(var),
                macs,
                str(key or "float"),
                str(residual or "float"),
                macs * _product(key),
                spent,
                most,
                mean,
            )
        )
    return BopsReport(period, tuple(layers), tuple(policy.values()))


def _policy_cost(value: Any, pool: tuple[int, ...]) -> PolicyCost:
    elements = prod(shape_of(value))
    return PolicyCost(value.name, pool, elements * (len(pool) - 1) * pool[-1] ** 2)


def layer_macs(call: Any) -> int:
    """Return the multiply-accumulates of a linear layer.

    A convolution sums ``O · (I / groups) · kh · kw`` products per output pixel (taps on padding
    included), a transposed one as many per input pixel, a matmul K · N.
    """
    taps = prod(shape_of(call.args[1]))
    if op_name(call) == "relax.matmul":
        return prod(shape_of(call)[:-1]) * taps
    # The kernel's axes are (O, kh, kw, I / groups), for the transposed (O / groups, kh, kw, I).
    source = call.args[0] if op_name(call) == "relax.nn.conv2d_transpose" else call
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

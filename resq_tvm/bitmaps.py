"""The bits of every pixel: what a dynamic network chooses on a clip, recorded and counted.

The reference executor runs the residual program, and the policy is asked again for each of its
operands (the codes of the finest quantizer), this time for the bits. What is recorded belongs to
a *site*: a value that is quantized, or one piece of a concatenation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.passes.graph import Graph, concat_pieces, inputs_of, op_name, shape_of
from resq_tvm.passes.policy import CHOOSE, GATE, Choice, Gate, choice_of, gate_of, keep_of
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.reference.ops_policy import changed_pixels, choose_bits, strongest_blocks
from resq_tvm.reference.session import Frame, ReferenceSession
from resq_tvm.scheme import MAX_BITS


@dataclass(frozen=True)
class LayerSites:
    """What a dynamic layer reads.

    Attributes
    ----------
    layer : str
    pool : tuple of int
        Bits, ascending.
    values : tuple of str
        The values that choose for themselves: one, or the pieces of a concatenation.
    sites : tuple of str
        Their keys in `FrameBits.maps`. Layers that read one value share its site.
    channels : tuple of int
        Channels of each.
    """

    layer: str
    pool: tuple[int, ...]
    values: tuple[str, ...]
    sites: tuple[str, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class FrameBits:
    """One residual frame.

    Attributes
    ----------
    maps : dict of str to ndarray
        Site → uint8 (H, W), bits of every pixel, 0 in blocks that a tile budget drops; (1, 1)
        where a dense layer reads a vector.
    changed : dict of str to ndarray
        Input → bool (H, W), the pixels that its gate let through.
    """

    maps: dict[str, NDArray[np.uint8]]
    changed: dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class LayerBits:
    """A layer's bits on the residual frames of a clip, in mean over pixels and frames.

    ``shares`` says for each number of bits which share of the pixels has it; pieces of a
    concatenation count by their channels. ``mean_bits`` is the mean under these shares.
    """

    layer: str
    pool: tuple[int, ...]
    values: tuple[str, ...]
    shares: dict[int, float]
    mean_bits: float


@dataclass(frozen=True)
class BitStatistics:
    """What a clip's residual frames chose: per layer, and the share of changed input pixels."""

    frames: int
    layers: tuple[LayerBits, ...]
    changed: dict[str, float]

    @property
    def mean_bits(self) -> dict[str, float]:
        """Layer → mean activation bits of a pixel: what `resq_tvm.bops.count` takes."""
        return {layer.layer: layer.mean_bits for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON; bits as text, in ascending order."""
        return {
            "residual_frames": self.frames,
            "changed": self.changed,
            "layers": [
                {
                    "layer": la.layer,
                    "pool": list(la.pool),
                    "values": list(la.values),
                    "shares": {str(bits): share for bits, share in la.shares.items()},
                    "mean_bits": la.mean_bits,
                }
                for la in self.layers
            ],
        }


class BitSession:
    """A stream through the reference executor that tells the bits of every pixel.

    Parameters
    ----------
    qnet : QuantizedNetwork
        Calibrated with a scheme that has a pool of bits.
    state_dtype : str
        ``"float16"`` (as artifacts have it by default) or ``"float32"``.
    period : int, optional
        A keyframe every ``period`` frames; the network's own by default.

    Raises
    ------
    ConfigError
        If no layer of the network chooses bits, or the period is not positive.
    """

    def __init__(
        self,
        qnet: QuantizedNetwork,
        *,
        state_dtype: str = "float16",
        period: int | None = None,
    ) -> None:
        if qnet.dynamic is None:
            raise ConfigError(
                f"network {qnet.network.name!r} has scheme {qnet.scheme}, where no pixel chooses "
                "its bits; calibrate it with a pool such as W8A8->W8A{0,4,8}"
            )
        self._session = ReferenceSession(
            qnet, state_dtype=state_dtype, period=period, observe=self._see
        )
        self._graph = Graph.of(self._session.residual_program)
        # operand → (site, choice, blocks kept)
        self._choices: dict[str, list[tuple[str, Choice, int]]] = {}
        self._gates: dict[str, tuple[str, str, str, Gate]] = {}  # gate → (input, x, key, gate)
        for var, call in self._graph.bindings:
            if op_name(call) == CHOOSE:
                site = (var.name, choice_of(call), keep_of(call))
                self._choices.setdefault(call.args[1].name, []).append(site)
            elif op_name(call) == GATE:
                x, key = call.args[1:3]
                self._gates[var.name] = (self._origin(x), x.name, key.name, gate_of(call))
        self._kept = {name for _, x, key, _ in self._gates.values() for name in (x, key)}
        self._operands: dict[str, torch.Tensor] = {}
        self._frame = FrameBits({}, {})
        self.layers = self._read_layers(qnet)

    @property
    def period(self) -> int:
        """A keyframe every this many frames."""
        return self._session.period

    def __call__(self, frame: Frame) -> FrameBits | None:
        """Run one frame (float32, in the source model's layout); None for a keyframe."""
        self._frame = FrameBits({}, {})
        self._session(frame)
        self._operands.clear()
        return self._frame if self._frame.maps else None

    def _read_layers(self, qnet: QuantizedNetwork) -> tuple[LayerSites, ...]:
        """Pair the layers of ``main`` with those of the residual program, which keeps the order."""
        main = Graph.of(qnet.module["main"])
        choices = {var: call for var, call in self._graph.bindings if op_name(call) == CHOOSE}
        found = []
        for (layer, source), (_, quantized) in zip(
            main.layers(), self._graph.layers(), strict=True
        ):
            codes = concat_pieces(quantized.args[0], self._graph.producers)
            if codes[0] not in choices:
                continue
            values = concat_pieces(source.args[0], main.producers)
            found.append(
                LayerSites(
                    layer.name,
                    choice_of(choices[codes[0]]).pool,
                    tuple(v.name for v in values),
                    tuple(c.name for c in codes),
                    tuple(shape_of(v)[-1] for v in values),
                )
            )
        return tuple(found)

    def _origin(self, value: Any) -> str:
        """Return the parameter that a gate's operand was rounded from."""
        producers = self._graph.producers
        while value in producers:
            (value,) = inputs_of(producers[value])
        return str(value.name)

    def _see(self, name: str, value: Any) -> None:
        for site, choice, keep in self._choices.get(name, ()):
            codes, bits = choose_bits(
                value, list(choice.pool), list(choice.shifts), choice.threshold
            )
            if keep:
                bits = bits * strongest_blocks(codes, keep)[..., 0].to(bits.dtype)
            self._frame.maps[site] = (bits[0] if bits.ndim == 3 else bits.reshape(1, -1)).numpy()
        if name in self._kept:
            self._operands[name] = value
        if name in self._gates:
            source, x, key, settings = self._gates[name]
            changed = changed_pixels(self._operands[x], self._operands[key], settings)
            self._frame.changed[source] = changed[0, :, :, 0].numpy()


class _Tally:
    """Adds up the bits of frames."""

    def __init__(self, layers: tuple[LayerSites, ...]) -> None:
        self.layers = layers
        self.frames = 0
        self.counts: dict[str, NDArray[np.int64]] = {}  # site → pixels by bits
        self.changed: dict[str, float] = {}

    def add(self, bits: FrameBits) -> None:
        self.frames += 1
        for site, plane in bits.maps.items():
            counted = np.bincount(plane.ravel(), minlength=MAX_BITS + 1)
            self.counts[site] = self.counts.get(site, np.zeros_like(counted)) + counted
        for name, mask in bits.changed.items():
            self.changed[name] = self.changed.get(name, 0.0) + float(mask.mean())

    def statistics(self) -> BitStatistics:
        return BitStatistics(
            self.frames,
            tuple(self._layer(layer) for layer in self.layers),
            {name: total / self.frames for name, total in self.changed.items()},
        )

    def _layer(self, layer: LayerSites) -> LayerBits:
        share = sum(
            channels / sum(layer.channels) * self.counts[site] / self.counts[site].sum()
            for site, channels in zip(layer.sites, layer.channels, strict=True)
        )
        shares = {bits: float(share[bits]) for bits in sorted({0, *layer.pool})}
        mean = sum(bits * part for bits, part in shares.items())
        return LayerBits(layer.layer, layer.pool, layer.values, shares, mean)


def measure_bits(
    session: BitSession,
    frames: Iterable[Frame],
    watch: Callable[[int, FrameBits | None], None] | None = None,
) -> BitStatistics:
    """Run frames through a session and count what their pixels chose.

    Parameters
    ----------
    session : BitSession
    frames : iterable of ndarray
        Consecutive frames, float32, in the source model's layout.
    watch : callable, optional
        Called with every frame's position from 0 and its bits (None: a keyframe).

    Raises
    ------
    ClipError
        If there is no residual frame among them.
    """
    tally = _Tally(session.layers)
    position = -1
    for position, frame in enumerate(frames):
        bits = session(frame)
        if bits is not None:
            tally.add(bits)
        if watch is not None:
            watch(position, bits)
    if tally.frames == 0:
        raise ClipError(
            f"none of the {position + 1} frames is a residual frame at period {session.period}; "
            "give a longer clip or another period"
        )
    return tally.statistics()

"""Which values are quantized, by whom, and which of them share one scale.

This is the one place that says what a quantizer is: calibration fits what `quant_points` lists
and the partition reads the scales back under the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resq_tvm.passes.graph import Graph, concat_pieces
from resq_tvm.scheme import Scheme


def quantizer_name(value: str, bits: int, pool: tuple[int, ...] = ()) -> str:
    """Return the name of the quantizer of ``value`` at ``bits`` bits, or with a pool of them."""
    return f"{value}:{','.join(map(str, pool)) if pool else bits}"


@dataclass(frozen=True)
class QuantPoint:
    """One activation quantizer: a value (or several tied ones) and the layers that read it.

    ``values`` holds more than one name when a concat and its inputs are tied: one scale serves
    all of them. ``layers`` are the linear layers whose output errors the fit sums up; layer i
    reads value ``reads[i]``. With a ``pool``, ``bits`` is its highest and the scale is that of the
    highest.
    """

    name: str
    bits: int
    values: tuple[str, ...]
    layers: tuple[str, ...]
    reads: tuple[str, ...]
    pool: tuple[int, ...] = ()


def quant_points(func: Any, layers: dict[str, str], program: str) -> list[QuantPoint]:
    """List the activation quantizers of ``program`` (``"keyframe"`` or ``"residual"``).

    Parameters
    ----------
    func : relax.Function
        Canonical ``main``.
    layers : dict
        Layer name → scheme string or ``"float"`` (the attribute ``resq.layers``).
    """
    graph = Graph.of(func)
    producers = graph.producers
    readers: dict[tuple[str, int, tuple[int, ...]], list[str]] = {}
    variables: dict[str, Any] = {}
    for var, call in graph.layers():
        text = layers[var.name]
        if text == "float":
            continue
        scheme = Scheme.parse(text)
        bits = scheme.key if program == "keyframe" else scheme.residual
        if bits is None:
            continue
        value = call.args[0]
        variables[value.name] = value
        key = (value.name, bits.activation, bits.pool)
        readers.setdefault(key, []).append(var.name)

    parent = {key: key for key in readers}

    def find(key: tuple[str, int, tuple[int, ...]]) -> tuple[str, int, tuple[int, ...]]:
        while parent[key] != key:
            key = parent[key]
        return key

    for whole in readers:
        for piece in concat_pieces(variables[whole[0]], producers):
            part = (piece.name, *whole[1:])
            if part in parent:
                parent[find(part)] = find(whole)

    points = []
    for key in readers:
        if find(key) != key:
            continue
        members = [k for k in readers if find(k) == key]
        pairs = [(layer, k[0]) for k in members for layer in readers[k]]
        points.append(
            QuantPoint(
                quantizer_name(*key),
                key[1],
                tuple(k[0] for k in members),
                tuple(p[0] for p in pairs),
                tuple(p[1] for p in pairs),
                key[2],
            )
        )
    return points

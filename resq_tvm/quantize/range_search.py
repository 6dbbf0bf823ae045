"""Fit the scale of one activation quantizer to the output error of the layers that read it.

Equation 8 of the paper (arXiv 2308.09511): among candidate ranges on a line, take the one with
the smallest ``||X * w - q(X; s) * w'||_F``, where w' is the quantized weight. Several layers on
one quantizer add up their errors, each divided by ``||X * w||_F``.

One deviation: residuals have long tails, and at 4 bits the best range is often below a tenth of
the largest value, where a line of 20 candidates has only one or two. So the first line is tried on
a few samples only, and a second, finer line around its best candidate on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resq_tvm.passes.graph import const_value, op_name
from resq_tvm.passes.quantizers import QuantPoint
from resq_tvm.passes.weights import output_axis
from resq_tvm.quantize.samples import spread
from resq_tvm.reference.ops_linear import float_layer
from resq_tvm.scheme import code_limit

_FIRST_SAMPLES = 6  # that the first line is tried on
_CHUNK = 1 << 20  # elements of input that one torch call takes: enough to be busy, still in cache


@dataclass(frozen=True)
class Fit:
    """The scale found, and its error: relative output errors, summed over the layers."""

    scale: float
    error: float


class LayerProbe:
    """A linear layer with its float and its quantized weight.

    Parameters
    ----------
    call : relax.Call
        The layer, in canonical form.
    codes : ndarray, int8
        Of its weight, in the weight's shape.
    scales : ndarray, float32
        ``(O,)``.
    """

    def __init__(self, call: Any, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        weight = const_value(call.args[1])
        shape = [1] * weight.ndim
        shape[output_axis(op_name(call), weight.ndim)] = -1
        rounded = codes.astype(np.float32) * scales.reshape(shape)
        self.exact = float_layer(call, torch.from_numpy(weight.copy()))
        self.quantized = float_layer(call, torch.from_numpy(rounded))


def fit_scale(
    point: QuantPoint,
    probes: Sequence[LayerProbe],
    samples: Mapping[str, Sequence[torch.Tensor]],
    candidates: int,
    fallback: float = 0.0,
) -> Fit:
    """Search the scale of one quantizer.

    Parameters
    ----------
    point : QuantPoint
        The quantizer; ``probes[i]`` is its layer ``point.layers[i]``.
    samples : mapping of str to sequence of torch.Tensor
        Value → its samples, float32, each with a batch axis of 1.
    candidates : int
        Candidate scales on the first line, at least 1; a third as many refine.
    fallback : float
        Range to take where all samples are zero (a clip in which nothing moves here).

    Returns
    -------
    Fit
        ``scale`` is exactly a float32, and positive.
    """
    limit = code_limit(point.bits)
    largest = max(float(x.abs().max()) for value in point.values for x in samples.get(value, ()))
    if largest < limit * candidates * np.finfo(np.float32).tiny:
        return Fit(float(np.float32((fallback or 1.0) / limit)), 0.0)
    step = np.float32(largest / limit / candidates)
    with torch.no_grad():
        few = _Trial(point, probes, _few(samples), limit)
        line = {k: few.error(np.float32(k) * step) for k in range(1, candidates + 1)}
        best = min(line, key=line.__getitem__)
        trial = _Trial(point, probes, samples, limit)
        found = {np.float32(best) * step: trial.error(np.float32(best) * step)}
        for fraction in np.linspace(best - 1, best + 1, candidates // 3 + 2)[1:-1]:
            scale = np.float32(fraction) * step
            if fraction <= candidates and scale not in found:
                found[scale] = trial.error(scale)
    scale = min(found, key=found.__getitem__)
    return Fit(float(scale), found[scale])


def fit_shifts(
    point: QuantPoint,
    probes: Sequence[LayerProbe],
    samples: Mapping[str, Sequence[torch.Tensor]],
    scale: float,
) -> tuple[int, ...]:
    """Fit the steps of a pool's lower bits: powers of two of the finest scale.

    Parameters
    ----------
    point : QuantPoint
        With a pool; the other parameters are those of `fit_scale`.
    scale : float
        Scale of the highest bits.

    Returns
    -------
    tuple of int
        Per bits of the pool the exponent whose step gives the least output error; the highest
        bits have 0, and so have 0 bits, which need none.
    """
    shifts = []
    few = _few(samples)
    with torch.no_grad():
        for bits in point.pool[:-1]:
            best = 0
            if bits:
                trial = _Trial(point, probes, few, code_limit(bits))
                errors = {
                    shift: trial.error(np.float32(scale * 2.0**shift))
                    for shift in range(point.bits - bits + 1)
                }
                best = min(errors, key=errors.__getitem__)
            shifts.append(best)
    return (*shifts, 0)


def _few(samples: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
    return {value: spread(tensors, _FIRST_SAMPLES) for value, tensors in samples.items()}


class _Trial:
    """The error of one quantizer, as a function of its scale, on given samples."""

    def __init__(
        self,
        point: QuantPoint,
        probes: Sequence[LayerProbe],
        samples: Mapping[str, Sequence[torch.Tensor]],
        limit: int,
    ) -> None:
        self.limit = limit
        self.batches = [_batch(point, probes, samples, part) for part in _parts(point, samples)]
        self.exact = _norms((_square(y) for y in batch.outputs) for batch in self.batches)

    def error(self, scale: np.float32) -> float:
        """Return the layers' relative output errors, summed."""
        norms = _norms(batch.squared_errors(scale, self.limit) for batch in self.batches)
        return sum(n / e for n, e in zip(norms, self.exact, strict=True) if e > 0.0)


@dataclass(frozen=True)
class _Batch:
    """Some samples of a quantizer's values, and the exact outputs of its layers on them."""

    reads: tuple[str, ...]
    probes: Sequence[LayerProbe]
    inputs: dict[str, torch.Tensor]
    outputs: list[torch.Tensor]

    def squared_errors(self, scale: np.float32, limit: int) -> Iterator[float]:
        """Yield ``||X * w - q(X) * w'||^2`` of each layer."""
        reciprocal = float(np.float32(1) / scale)
        codes = {
            value: (x * reciprocal).round_().clamp_(-limit, limit)
            for value, x in self.inputs.items()
        }
        for value, probe, exact in zip(self.reads, self.probes, self.outputs, strict=True):
            yield _square(torch.sub(exact, probe.quantized(codes[value]), alpha=float(scale)))


def _parts(point: QuantPoint, samples: Mapping[str, Sequence[torch.Tensor]]) -> list[slice]:
    """Cut the samples so that a part has about `_CHUNK` elements."""
    longest = max(point.reads, key=lambda value: samples[value][0].numel())
    size = max(1, _CHUNK // samples[longest][0].numel())
    return [slice(i, i + size) for i in range(0, len(samples[longest]), size)]


def _batch(
    point: QuantPoint,
    probes: Sequence[LayerProbe],
    samples: Mapping[str, Sequence[torch.Tensor]],
    part: slice,
) -> _Batch:
    inputs = {value: _join(samples[value][part]) for value in dict.fromkeys(point.reads)}
    outputs = [p.exact(inputs[v]) for v, p in zip(point.reads, probes, strict=True)]
    return _Batch(point.reads, probes, inputs, outputs)


def _join(samples: Sequence[torch.Tensor]) -> torch.Tensor:
    return samples[0] if len(samples) == 1 else torch.cat(list(samples))


def _square(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) ** 2


def _norms(parts: Iterable[Iterable[float]]) -> list[float]:
    """Return per layer the norm over all parts, from their squared norms."""
    return [float(np.sqrt(sum(squares))) for squares in zip(*parts, strict=True)]

"""The range search beats min-max, on one layer and on several that share a quantizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tvm import relax

from resq_tvm.passes.quantizers import QuantPoint
from resq_tvm.passes.weights import quantize_weight
from resq_tvm.quantize.range_search import LayerProbe, fit_scale


def conv_call(weight: np.ndarray) -> relax.Call:
    x = relax.Var("x", relax.TensorType((1, 9, 9, weight.shape[3]), "float32"))
    bb = relax.BlockBuilder()
    call = relax.op.nn.conv2d(
        x, relax.const(weight), padding=[1] * 4, data_layout="NHWC", kernel_layout="OHWI"
    )
    return bb.normalize(call)


def probe_of(weight: np.ndarray, bits: int = 8) -> LayerProbe:
    return LayerProbe(conv_call(weight), *quantize_weight(weight, "relax.nn.conv2d", bits))


def point(bits: int, layers: int = 1) -> QuantPoint:
    names = tuple(f"layer{i}" for i in range(layers))
    return QuantPoint(f"x:{bits}", bits, ("x",), names, ("x",) * layers)


def test_long_tails_are_clipped_and_the_output_error_falls(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((6, 3, 3, 4)).astype(np.float32)
    x = rng.standard_normal((1, 9, 9, 4)).astype(np.float32)
    x[0, 4, 4, 0] = 10.0
    samples = {"x": [torch.from_numpy(x), torch.from_numpy(-x)]}
    fit = fit_scale(point(4), [probe_of(weight)], samples, 20)
    assert fit.scale < 0.8 * 10 / 7
    # One candidate alone is min-max.
    widest = fit_scale(point(4), [probe_of(weight)], samples, 1)
    assert widest.scale == pytest.approx(10 / 7)
    assert fit.error < 0.85 * widest.error


def test_uniform_values_at_eight_bits_keep_nearly_the_whole_range(
    rng: np.random.Generator,
) -> None:
    weight = rng.standard_normal((6, 3, 3, 4)).astype(np.float32)
    x = rng.uniform(-1, 1, (1, 9, 9, 4)).astype(np.float32)
    probe = probe_of(weight)
    fit = fit_scale(point(8), [probe], {"x": [torch.from_numpy(x)]}, 20)
    assert 0.85 / 127 <= fit.scale <= 1.0001 / 127
    assert fit.scale == float(np.float32(fit.scale))


def test_layers_that_share_a_quantizer_add_up(rng: np.random.Generator) -> None:
    weights = [rng.standard_normal((2, 3, 3, 4)).astype(np.float32) for _ in range(2)]
    x = {"x": [torch.from_numpy(rng.standard_normal((1, 9, 9, 4)).astype(np.float32))]}
    probes = [probe_of(w) for w in weights]
    both, *alone = (fit_scale(point(4, len(p)), p, x, 1) for p in (probes, probes[:1], probes[1:]))
    assert both.error == pytest.approx(sum(f.error for f in alone), rel=1e-5)
    searched = fit_scale(point(4, 2), probes, x, 12)
    assert searched.error < both.error


def test_silence_takes_the_fallback_range() -> None:
    probe = probe_of(np.ones((1, 3, 3, 1), np.float32))
    zero = {"x": [torch.zeros(1, 9, 9, 1)]}
    assert fit_scale(point(4), [probe], zero, 4, fallback=7.0).scale == 1.0
    assert fit_scale(point(4), [probe], zero, 4).scale > 0


def test_weights_of_zeros_do_not_divide(rng: np.random.Generator) -> None:
    probe = probe_of(np.zeros((2, 3, 3, 3), np.float32), 4)
    x = {"x": [torch.from_numpy(rng.standard_normal((1, 9, 9, 3)).astype(np.float32))]}
    fit = fit_scale(point(8), [probe], x, 5)
    assert fit.error == 0.0 and fit.scale > 0

"""The weight quantizer: symmetric codes within half a step of every weight."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resq_tvm.passes.weights import output_axis, quantize_weight
from resq_tvm.scheme import code_limit

SHAPES = st.sampled_from(
    [
        ("relax.nn.conv2d", (5, 3, 3, 2)),
        ("relax.nn.conv2d", (4, 3, 3, 1)),
        ("relax.nn.conv2d_transpose", (3, 2, 2, 4)),
        ("relax.matmul", (6, 5)),
    ]
)


@given(SHAPES, st.integers(2, 8), st.sampled_from(["channel", "tensor"]), st.data())
def test_weight_codes_are_symmetric_and_near(
    kind: tuple[str, tuple[int, ...]], bits: int, granularity: str, data: st.DataObject
) -> None:
    name, shape = kind
    elements = st.floats(-8, 8, width=32)
    weight = data.draw(hnp.arrays(np.float32, shape, elements=elements))
    codes, scales = quantize_weight(weight, name, bits, granularity)
    axis = output_axis(name, weight.ndim)
    assert codes.dtype == np.int8 and scales.dtype == np.float32
    assert scales.shape == (shape[axis],) and (scales > 0).all()
    assert np.abs(codes).max() <= code_limit(bits)
    along = [-1 if d == axis else 1 for d in range(weight.ndim)]
    step = scales.reshape(along)
    assert (np.abs(codes * step - weight) <= 0.5001 * step + 1e-6).all()
    if granularity == "tensor" and not (len(shape) == 4 and shape[3] == 1):
        assert len(set(scales.tolist())) == 1


def test_depthwise_is_per_channel_even_if_asked_per_tensor() -> None:
    weight = (
        np.ones((3, 3, 3, 1), np.float32) * np.array([1, 10, 100], np.float32)[:, None, None, None]
    )
    codes, scales = quantize_weight(weight, "relax.nn.conv2d", 4, "tensor")
    assert (codes == 7).all()
    np.testing.assert_allclose(scales * 7, [1, 10, 100], rtol=1e-6)


def test_channels_of_zeros_stay_zero() -> None:
    weight = np.zeros((2, 1, 1, 3), np.float32)
    weight[1] = 0.5
    codes, scales = quantize_weight(weight, "relax.nn.conv2d", 8)
    assert (codes[0] == 0).all() and (codes[1] == 127).all() and (scales > 0).all()

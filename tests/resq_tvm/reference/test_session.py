"""The reference session: periods, layouts, both state dtypes, frame quantization."""

from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.errors import ConfigError
from resq_tvm.quantize.calibrate import calibrate
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.reference.session import ReferenceSession
from tests.resq_tvm.quantize.networks import moving_clip, small_network

CLIP = moving_clip(7)


def network(scheme: str) -> QuantizedNetwork:
    return calibrate(small_network(), [CLIP], scheme, candidates=4, period=3)


@pytest.mark.parametrize("state", ["float32", "float16"])
def test_a_repeated_frame_gives_the_keyframe_again(state: str) -> None:
    session = ReferenceSession(network("W8A8->W4A4"), state_dtype=state)
    first = session(CLIP[0])
    assert isinstance(first, np.ndarray) and first.shape == (1, 5, 10, 8)
    np.testing.assert_array_equal(session(CLIP[0]), first)


def test_every_third_frame_is_a_keyframe() -> None:
    qnet = network("W8A8->W2A2")
    frame_by_frame = ReferenceSession(qnet, period=1)
    session = ReferenceSession(qnet)
    same = [np.array_equal(session(f), frame_by_frame(f)) for f in CLIP]
    assert same == [True, False, False, True, False, False, True]
    session.reset()
    assert np.array_equal(session(CLIP[1]), frame_by_frame(CLIP[1]))


def test_frame_quantization_has_no_state_to_carry() -> None:
    session = ReferenceSession(network("W8A4"))
    once = session(CLIP[2])
    session(CLIP[3])
    np.testing.assert_array_equal(session(CLIP[2]), once)


def test_recurrent_residuals_follow_the_previous_frame() -> None:
    qnet = calibrate(
        small_network(), [CLIP], "W8A8->W8A8", candidates=8, period=7, residual="recurrent"
    )
    session = ReferenceSession(qnet)
    exact = ReferenceSession(qnet, period=1)
    for frame in CLIP:
        got, want = session(frame), exact(frame)
        assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)


def test_period_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="period 0"):
        ReferenceSession(network("W8A4"), period=0)

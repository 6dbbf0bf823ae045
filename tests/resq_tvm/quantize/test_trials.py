"""Trials run what sessions run, whatever thresholds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from resq_tvm.compiler import compile as compile_network
from resq_tvm.errors import ConfigError
from resq_tvm.network import Network, TensorInfo
from resq_tvm.passes.partition.program import Settings
from resq_tvm.quantize.calibrate import calibrate
from resq_tvm.quantize.compiled_trials import CompiledTrials
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.quantize.samples import read_clip
from resq_tvm.quantize.trials import Thresholds, Trials
from resq_tvm.reference.session import ReferenceSession
from tests.resq_tvm.quantize.networks import SHAPE, moving_clip, small_network

PERIOD = 3


def forked_network() -> Network:
    """Two concats share a piece that no layer reads by itself: its codes have two scales."""
    rng = np.random.default_rng(0)
    op = relax.op

    def conv(x: relax.Expr, out: int, channels: int, scale: float) -> relax.Expr:
        weight = relax.const((rng.standard_normal((out, 1, 1, channels)) * scale).astype("float32"))
        return op.nn.conv2d(x, weight, data_layout="NHWC", kernel_layout="OHWI")

    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            a, b, c = (bb.emit(op.nn.relu(bb.emit(conv(x, 4, 3, s), n)), f"{n}_act")
                       for n, s in (("a", 1.0), ("b", 1.0), ("c", 20.0)))  # fmt: skip
            left = bb.emit(conv(bb.emit(op.concat([a, b], 3), "ab"), 2, 8, 0.3), "left")
            right = bb.emit(conv(bb.emit(op.concat([a, c], 3), "ac"), 2, 8, 0.3), "right")
            y = bb.emit_output(op.add(left, right), "y")
        bb.emit_func_output(y)
    outputs = [{"name": "y", "shape": [1, 2, 12, 10], "layout": "NCHW"}]
    main = bb.finalize()["main"].with_attrs(
        {
            "num_input": 1,
            "resq.inputs": small_network().module["main"].attrs["resq.inputs"],
            "resq.outputs": json.dumps(outputs),
        }
    )
    return replace(
        small_network(),
        module=tvm.IRModule({"main": main}),
        outputs=(TensorInfo("y", (1, 2, 12, 10), "NCHW"),),
    )


@pytest.mark.parametrize("make", [small_network, forked_network])
@pytest.mark.parametrize("scheme", ["W8A8->W8A{0,8}", "W8A8->W8A{0,4,8}"])
@pytest.mark.parametrize("state_dtype", ["float16", "float32"])
def test_trials_agree_with_sessions(make, scheme: str, state_dtype: str) -> None:
    clip = moving_clip(7, speed=0.05)
    qnet = calibrate(make(), [clip], scheme, period=PERIOD, candidates=4)
    settings = Settings(with_tau(qnet, 0.05).module["main"], state_dtype, False)
    session = ReferenceSession(with_tau(qnet, 0.05), state_dtype=state_dtype)
    expected = [session(frame) for frame in clip]
    trials = Trials(qnet, [read_clip(qnet.network, clip)], PERIOD, [0], state_dtype)
    trial = trials.run(Thresholds({n: c.threshold for n, c in settings.choices.items()}))
    for outputs, wanted in zip(trial.outputs[0], expected, strict=True):
        np.testing.assert_array_equal(outputs[0], wanted)
    static = trials.run(Thresholds())
    assert not np.array_equal(static.outputs[0][2][0], expected[2])
    for some, every in zip(trial.shares[0], static.shares[0], strict=True):
        assert all(some[layer] <= share for layer, share in every.items())


def test_phases_pair_frames_with_their_keyframes() -> None:
    clip = moving_clip(5)
    qnet = calibrate(small_network(), [clip], "W8A8->W8A{0,8}", period=4, candidates=4)
    inputs = read_clip(qnet.network, clip)
    trials = Trials(qnet, [inputs, inputs[:3]], 4, [0, 2], "float32")
    assert trials.phases[0] == {1: 0, 2: 0, 3: 0, 6: 5, 7: 5}
    assert trials.phases[1] == {3: 2, 4: 2}
    held = trials.held()
    np.testing.assert_array_equal(held[1][4][0], trials.key_outputs[2][0])
    np.testing.assert_array_equal(held[1][0][0], trials.key_outputs[0][0])


def with_tau(qnet: QuantizedNetwork, tau: float) -> QuantizedNetwork:
    """Return the network with one threshold for all."""
    assert qnet.dynamic is not None
    choices = {name: {**c, "tau": tau} for name, c in qnet.dynamic["choices"].items()}
    main = qnet.module["main"].with_attr(
        "resq.dynamic", json.dumps({**qnet.dynamic, "choices": choices})
    )
    return replace(qnet, network=replace(qnet.network, module=tvm.IRModule({"main": main})))


@pytest.mark.parametrize("make", [small_network, forked_network])
def test_an_artifact_gives_the_same_trials(make: Callable[[], Network], tmp_path: Path) -> None:
    clip = moving_clip(2 * PERIOD, speed=0.05)
    qnet = calibrate(make(), [clip], "W8A8->W8A{0,8}", period=PERIOD, candidates=4)
    artifact = compile_network(qnet, output=tmp_path / "n.resq", frame_program=False)
    parts = qnet, [read_clip(qnet.network, clip)], PERIOD, [0, 1], "float16"
    plain, compiled = Trials(*parts), CompiledTrials(*parts, artifact)
    norms = plain.residual_norms()
    assert compiled.residual_norms() == norms
    for factor in (0.0, 0.5, 2.0):
        thresholds = Thresholds(
            {name: factor * norm for name, norm in norms.items()},
            dict.fromkeys(plain.gates, 40.0 * factor),
        )
        want, found = plain.run(thresholds), compiled.run(thresholds)
        assert found.shares == want.shares
        for ours, theirs in zip(found.outputs, want.outputs, strict=True):
            for y, expected in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(y[0], expected[0], rtol=1e-5, atol=1e-6)


def test_an_artifact_of_another_network(tmp_path: Path) -> None:
    clip = moving_clip(2 * PERIOD, speed=0.05)
    first, other = (
        calibrate(make(), [clip], "W8A8->W8A{0,8}", period=PERIOD, candidates=4)
        for make in (small_network, forked_network)
    )
    artifact = compile_network(first, output=tmp_path / "n.resq", frame_program=False)
    parts = other, [read_clip(other.network, clip)], PERIOD, [0], "float16"
    with pytest.raises(ConfigError, match="does not belong to this network"):
        CompiledTrials(*parts, artifact)

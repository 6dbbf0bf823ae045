"""Outputs that residual frames hold: the keyframe's answer, and no work for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from resq_tvm import bops, compiler
from resq_tvm.errors import ConfigError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.passes.partition import Partition
from resq_tvm.quantize.activity import ActivityMeter
from resq_tvm.quantize.groups import choice_groups
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.reference.session import ReferenceSession
from resq_tvm.session import Session
from tests.dynamic import dynamic

SIDE, PERIOD = 24, 4
LAYOUT: dict[str, Any] = {"data_layout": "NHWC", "kernel_layout": "OHWI"}


def two_heads() -> tvm.IRModule:
    """Return a trunk with two heads, of which the second one has layers of its own."""
    rng = np.random.default_rng(3)

    def weight(*shape: int) -> Any:
        return relax.const((rng.standard_normal(shape) * 0.3).astype("float32"))

    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIDE, SIDE, 3), "float32"))

    def conv(value: Any, name: str, outputs: int, inputs: int) -> Any:
        made = relax.op.nn.conv2d(value, weight(outputs, 3, 3, inputs), padding=[1] * 4, **LAYOUT)
        return bb.emit(made, name)

    with bb.function("main", [x]):
        with bb.dataflow():
            trunk = bb.emit(relax.op.nn.relu(conv(x, "first", 8, 3)), "trunk")
            asked = bb.emit(relax.op.nn.relu(conv(trunk, "asked", 8, 8)), "y_asked")
            inner = bb.emit(relax.op.nn.relu(conv(trunk, "inner", 16, 8)), "mask_inner")
            mask = conv(inner, "mask", 3, 16)
            gv = bb.emit_output(relax.Tuple([asked, mask]))
        bb.emit_func_output(gv)
    return bb.finalize()


def one_behind_the_other() -> tvm.IRModule:
    """Return a network whose second output is made of the first."""
    rng = np.random.default_rng(4)
    weight = relax.const((rng.standard_normal((3, 3, 3, 3)) * 0.3).astype("float32"))
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIDE, SIDE, 3), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            first = bb.emit(relax.op.nn.conv2d(x, weight, padding=[1] * 4, **LAYOUT), "first")
            y = bb.emit(relax.op.nn.relu(first), "y")
            z = bb.emit(relax.op.nn.conv2d(y, weight, padding=[1] * 4, **LAYOUT), "z")
            gv = bb.emit_output(relax.Tuple([y, z]))
        bb.emit_func_output(gv)
    return bb.finalize()


@pytest.fixture(scope="module")
def held() -> QuantizedNetwork:
    return dynamic(two_heads(), period=PERIOD).with_held_outputs(["y1"])


def clip() -> list[np.ndarray[Any, Any]]:
    key = np.random.default_rng(0).standard_normal((1, SIDE, SIDE, 3)).astype(np.float32)
    frames = []
    for n in range(2 * PERIOD):
        frame = key.copy()
        frame[:, : 2 + n, :5] += np.float32(0.5)
        frames.append(frame)
    return frames


def test_session_answers_with_the_keyframes_output(held: QuantizedNetwork, tmp_path: Path) -> None:
    artifact = compiler.compile(held, output=tmp_path / "n.resq", frame_program=False)
    session = Session(artifact, keyframes=KeyframePolicy(guard=False), threads=1)
    reference = ReferenceSession(held, state_dtype="float16")
    every = ReferenceSession(held.with_held_outputs([]), state_dtype="float16")
    before: Any = None
    for n, frame in enumerate(clip()):
        got, want, usual = session(frame), reference(frame), every(frame)
        for y, expected in zip(got, want, strict=True):
            np.testing.assert_array_equal(y, expected, err_msg=f"frame {n}")
        np.testing.assert_array_equal(got[0], usual[0])
        if n % PERIOD == 0:
            before = got[1]
        np.testing.assert_array_equal(got[1], before)
        # On the keyframe it is that of all outputs, but for their rounding to state.
        assert np.allclose(got[1], usual[1], rtol=1e-2, atol=1e-2) == (n % PERIOD == 0)


def test_work_for_it_is_left_out(held: QuantizedNetwork) -> None:
    programs = {n: Partition("float16")(held.module)[n] for n in ("keyframe", "residual")}
    text = programs["residual"].script()
    assert "d_inner" not in text and "d_asked" in text
    assert "inner_key" not in text and "mask_key" in text
    usual = held.with_held_outputs([])
    assert "inner_key" in Partition("float16")(usual.module)["residual"].script()

    report = bops.count(held.module, PERIOD)
    spent = {layer.name: layer.bops_residual for layer in report.layers}
    assert spent["inner"] == spent["mask"] == 0 < spent["asked"]
    assert all(layer.bops_keyframe > 0 for layer in report.layers)
    assert {cost.value for cost in report.policy} == {"x", "trunk"}
    main = held.module["main"]
    assert set(ActivityMeter(main).layers) == {"first", "asked"}
    names = [name for group in choice_groups(main, None).values() for name in group]
    assert not any(name.startswith("mask_inner") for name in names)


def test_an_output_that_others_need_is_computed() -> None:
    network = dynamic(one_behind_the_other(), period=PERIOD)
    reference = ReferenceSession(network.with_held_outputs(["y0"]))
    usual = ReferenceSession(network)
    for frame in clip()[:3]:
        for y, expected in zip(reference(frame), usual(frame), strict=True):
            np.testing.assert_array_equal(y, expected)


def test_what_cannot_be_held(held: QuantizedNetwork) -> None:
    with pytest.raises(ConfigError, match="'y7' is none of the network's; use y0, y1"):
        held.with_held_outputs(["y7"])
    with pytest.raises(ConfigError, match="leave one that frames compute"):
        held.with_held_outputs(["y0", "y1"])


def test_a_saved_network_keeps_what_is_held(held: QuantizedNetwork, tmp_path: Path) -> None:
    loaded = QuantizedNetwork.load(held.save(tmp_path / "n.qnet"))
    assert loaded.dynamic is not None and loaded.dynamic["held"] == [1]
    assert loaded.with_tile_budget(0.5).dynamic["held"] == [1]  # type: ignore[index]

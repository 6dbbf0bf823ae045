"""Weights whose rounding errors make up for each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from resq_tvm.errors import ArtifactError, CalibrationError
from resq_tvm.network import Network
from resq_tvm.passes.graph import Graph, const_value, op_name
from resq_tvm.passes.weights import CODES, layer_codes, output_axis, quantize_weight
from resq_tvm.quantize import rounding
from resq_tvm.quantize.calibrate import calibrate
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.quantize.rounding import _factor
from resq_tvm.quantize.samples import FrameGroups
from resq_tvm.reference.ops_linear import float_layer
from resq_tvm.scheme import code_limit
from tests.resq_tvm.quantize.networks import moving_clip, small_network

op = relax.op
NHWC = {"data_layout": "NHWC", "kernel_layout": "OHWI"}


def layer(kind: str, rng: np.random.Generator) -> tuple[Any, torch.Tensor]:
    """Return a function of one layer, and samples of its input, whose channels go together."""

    def weight(*shape: int) -> Any:
        return relax.const(rng.standard_normal(shape).astype("float32"))

    shape = (1, 40, 12) if kind == "dense" else (1, 14, 11, 12)
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    call = {
        "conv": lambda: op.nn.conv2d(x, weight(9, 3, 3, 12), padding=[1] * 4, **NHWC),
        "strided": lambda: op.nn.conv2d(
            x, weight(5, 2, 3, 12), strides=[2, 3], dilation=[3, 2], padding=[0, 2, 1, 0], **NHWC
        ),
        "grouped": lambda: op.nn.conv2d(x, weight(8, 3, 3, 3), groups=4, **NHWC),
        "depthwise": lambda: op.nn.conv2d(x, weight(12, 3, 3, 1), groups=12, **NHWC),
        "transposed": lambda: op.nn.conv2d_transpose(
            x, weight(7, 2, 2, 12), strides=[2, 2], data_layout="NHWC", kernel_layout="OHWI"
        ),
        "dense": lambda: op.matmul(x, weight(12, 6)),
    }[kind]()
    bb = relax.BlockBuilder()
    with bb.function("main", [x]):
        with bb.dataflow():
            y = bb.emit_output(bb.emit(call, "layer"))
        bb.emit_func_output(y)
    common = rng.standard_normal((*shape[:-1], 1)) + 2
    values = common + 0.3 * rng.standard_normal(shape)
    return bb.finalize()["main"], torch.from_numpy(values.astype(np.float32))


def run_of(*frames: torch.Tensor) -> FrameGroups:
    return FrameGroups((tuple((x,) for x in frames),))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["conv", "strided", "grouped", "depthwise", "transposed", "dense"])
def test_outputs_come_closer_and_ranges_stay(
    kind: str, bits: int, rng: np.random.Generator
) -> None:
    main, x = layer(kind, rng)
    frames = run_of(x)
    scheme = f"W{bits}A8"
    (call,) = (call for _, call in Graph.of(main).layers())
    found = rounding.round_weights(main, {"layer": scheme}, frames, "channel", print)
    codes = found[f"layer:{bits}"]
    weight, name = const_value(call.args[1]), op_name(call)
    nearest, scales = quantize_weight(weight, name, bits)
    assert codes.dtype == np.int8 and codes.shape == weight.shape
    ends = np.abs(nearest) == code_limit(bits)
    np.testing.assert_array_equal(codes[ends], nearest[ends])
    shape = [1] * weight.ndim
    shape[output_axis(name, weight.ndim)] = -1
    exact = float_layer(call, torch.from_numpy(weight.copy()))(x)

    def error(c: np.ndarray) -> float:
        rounded = torch.from_numpy(c.astype(np.float32) * scales.reshape(shape))
        return float((float_layer(call, rounded)(x) - exact).norm())

    assert error(codes) < 0.8 * error(nearest)


def test_codes_of_residuals_alone_follow_the_residuals(rng: np.random.Generator) -> None:
    main, x = layer("conv", rng)
    moved = x.clone()
    shift = rng.standard_normal((*moved.shape[:3], 1)).astype(np.float32)
    moved[..., :6] += torch.from_numpy(shift)
    frames = run_of(x, moved)
    found = rounding.round_weights(main, {"layer": "W8A8->W4A4"}, frames, "channel", print)
    assert set(found) == {"layer:8", "layer:4"}
    alike = run_of(moved - x)
    alone = rounding.round_weights(main, {"layer": "W4A8"}, alike, "channel", print)
    same = float(np.mean(found["layer:4"] == alone["layer:4"]))
    other = rounding.round_weights(main, {"layer": "W4A8"}, frames, "channel", print)
    assert same > float(np.mean(found["layer:4"] == other["layer:4"]))
    together = rounding.round_weights(main, {"layer": "W8A8->W8A4"}, frames, "channel", print)
    assert set(together) == {"layer:8"}


def test_silent_inputs_and_long_sums_keep_the_nearest_codes(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, x = layer("conv", rng)
    silent = run_of(torch.zeros_like(x))
    assert rounding.round_weights(main, {"layer": "W8A8"}, silent, "channel", print) == {}
    monkeypatch.setattr(rounding, "MOST_WEIGHTS", 107)
    frames = run_of(x)
    assert rounding.round_weights(main, {"layer": "W8A8"}, frames, "channel", print) == {}
    assert rounding.round_weights(main, {"layer": "float"}, frames, "channel", print) == {}


def test_inputs_that_are_not_finite_are_named(rng: np.random.Generator) -> None:
    main, x = layer("conv", rng)
    frames = run_of(torch.full_like(x, float("nan")))
    assert rounding.round_weights(main, {"layer": "W8A8"}, frames, "channel", print) == {}
    clip = moving_clip(6)
    huge = [frame / np.abs(clip).max() * np.float32(3e38) for frame in clip]
    with pytest.raises(CalibrationError, match="is not finite on a"):
        calibrate(small_network(), [huge], "W8A8->W4A4", candidates=4, period=3)


def test_small_memory_gives_the_same_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def codes() -> dict[str, np.ndarray]:
        qnet = calibrate(small_network(), [moving_clip(6)], "W8A8->W4A4", candidates=4, period=3)
        return {k: v.numpy() for k, v in qnet.module["main"].attrs[CODES].items()}

    whole = codes()
    monkeypatch.setattr(rounding, "_BYTES", 1)
    assert (
        set(codes())
        == set(whole)
        == {f"{name}:{bits}" for name in ("stem", "depth", "point", "head") for bits in (8, 4)}
    )


def test_codes_are_saved_with_the_network(tmp_path: Path) -> None:
    clip = [moving_clip(6)]
    qnet = calibrate(small_network(), clip, "W8A8->W4A4", candidates=4, period=3)
    qnet.save(tmp_path / "n.qnet")
    again = QuantizedNetwork.load(tmp_path / "n.qnet")
    plain = calibrate(
        small_network(), clip, "W8A8->W4A4", candidates=4, period=3, rounding="nearest"
    )
    assert CODES not in plain.module["main"].attrs
    differing = 0
    for var, call in Graph.of(qnet.module["main"]).layers():
        got, want, nearest = (
            layer_codes(q.module["main"], var.name, call, 4, "channel")
            for q in (again, qnet, plain)
        )
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], nearest[1])
        differing += int((want[0] != nearest[0]).sum())
    assert differing > 20


@pytest.mark.parametrize(("name", "code"), [("head:4", 100), ("head:8", -128), ("nobody:8", 1)])
def test_codes_that_no_layer_can_have_are_refused(name: str, code: int, tmp_path: Path) -> None:
    qnet = calibrate(small_network(), [moving_clip(6)], "W8A8->W4A4", candidates=4, period=3)
    main = qnet.module["main"]
    strange = tvm.runtime.tensor(np.full((5, 3, 3, 12), code, np.int8))
    changed = main.with_attr(CODES, {name: strange})
    network: Network = replace(qnet.network, module=tvm.IRModule({"main": changed}))
    replace(qnet, network=network).save(tmp_path / "n.qnet")
    with pytest.raises(ArtifactError, match="does not hold a network"):
        QuantizedNetwork.load(tmp_path / "n.qnet")


def test_moments_that_rounding_left_indefinite_are_damped_until_they_are_not() -> None:
    large = torch.diag(torch.tensor([4e4, 1.0, -0.04], dtype=torch.float64))
    moment = torch.stack([large, torch.eye(3, dtype=torch.float64)])
    damping = torch.tensor([0.03, 0.03], dtype=torch.float64)
    factor = _factor(moment, damping)
    added = (factor @ factor.mT - moment).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(added[0], torch.full((3,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(added[1], torch.full((3,), 0.03, dtype=torch.float64))

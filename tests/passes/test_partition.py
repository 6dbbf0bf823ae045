"""The partition pass: the IR that it makes, and its invariants on random networks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm.script import ir as I
from tvm.script import relax as R

from resq_tvm.passes.partition import Partition
from resq_tvm.reference.executor import Executor
from tests.graphs import annotated, frames, random_network

SEEDS = st.integers(0, 10**6)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
W = np.array([[[[1.0]]]], np.float32)


def programs(mod: tvm.IRModule) -> dict[str, Any]:
    return {gv.name_hint: f for gv, f in mod.functions_items()}


def run(func: Any, *arrays: Any) -> Any:
    with torch.no_grad():
        return Executor(func)(*[torch.as_tensor(a) for a in arrays])


def test_layer_activation_layer() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 2, 1), "float32")) -> R.Tuple(
            R.Tensor((1, 2, 2, 1), "float32")
        ):
            R.func_attr(
                {
                    "resq.layers": json.dumps({"a": "W8A8->W4A4"}),
                    "resq.scales": json.dumps(
                        {"keyframe": {"x:8": 0.5}, "residual": {"x:4": 0.25}}
                    ),
                }
            )
            with R.dataflow():
                a = R.nn.conv2d(
                    x, R.const([[[[7.0]]]], "float32"), data_layout="NHWC", kernel_layout="OHWI"
                )
                b = R.add(a, R.const([3.0], "float32"))
                r = R.nn.relu(b)
                gv = (r,)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def keyframe(x: R.Tensor((1, 2, 2, 1), "float32")) -> R.Tuple(
            R.Tuple(R.Tensor((1, 2, 2, 1), "float32")),
            R.Tuple(R.Tensor((1, 2, 2, 1), "float16"), R.Tensor((1, 2, 2, 1), "float16")),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                xi = R.clip(x, -65504.0, 65504.0)
                xs = R.astype(xi, "float16")
                xr = R.astype(xs, "float32")
                q0 = R.quantize(
                    xr, R.const(0.5, "float32"), R.const(0, "int8"), axis=-1, out_dtype="int8"
                )
                q = R.clip(q0, -127, 127)
                acc = R.nn.conv2d(
                    q, R.const([[[[127]]]], "int8"), data_layout="NHWC", kernel_layout="OHWI",
                    out_dtype="int32",
                )  # fmt: skip
                a = R.dequantize(
                    acc, R.const([np.float32(0.5) * np.float32(7 / 127)], "float32"),
                    R.const([0], "int8"), axis=3, out_dtype="float32",
                )  # fmt: skip
                b = R.add(a, R.const([3.0], "float32"))
                bi = R.clip(b, -65504.0, 65504.0)
                bs = R.astype(bi, "float16")
                br = R.astype(bs, "float32")
                r = R.nn.relu(br)
                gv = ((r,), (xs, bs))
                R.output(gv)
            return gv

        @R.function
        def residual(
            x: R.Tensor((1, 2, 2, 1), "float32"),
            x_key: R.Tensor((1, 2, 2, 1), "float16"),
            b_key: R.Tensor((1, 2, 2, 1), "float16"),
        ) -> R.Tuple(
            R.Tuple(R.Tensor((1, 2, 2, 1), "float32")),
            R.Tuple(R.Tensor((1, 2, 2, 1), "float16"), R.Tensor((1, 2, 2, 1), "float16")),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                xi = R.clip(x, -65504.0, 65504.0)
                xs = R.astype(xi, "float16")
                xr = R.astype(xs, "float32")
                kx = R.astype(x_key, "float32")
                dx = R.subtract(xr, kx)
                q0 = R.quantize(
                    dx, R.const(0.25, "float32"), R.const(0, "int8"), axis=-1, out_dtype="int8"
                )
                q = R.clip(q0, -7, 7)
                acc = R.nn.conv2d(
                    q, R.const([[[[7]]]], "int8"), data_layout="NHWC", kernel_layout="OHWI",
                    out_dtype="int32",
                )  # fmt: skip
                da = R.dequantize(
                    acc, R.const([0.25], "float32"), R.const([0], "int8"), axis=3,
                    out_dtype="float32",
                )  # fmt: skip
                kb = R.astype(b_key, "float32")
                b = R.add(kb, da)
                r = R.nn.relu(b)
                gv = ((r,), (x_key, b_key))
                R.output(gv)
            return gv

    after = Partition("float16")(Before)
    for name in ("keyframe", "residual"):
        got = after[name].without_attr("global_symbol")
        tvm.ir.assert_structural_equal(got, Expected[name].without_attr("global_symbol"))


def test_frame_quantization_has_no_residual_program_and_no_state() -> None:
    mod = Partition()(annotated(random_network(3), "W8A4"))
    assert set(programs(mod)) == {"main", "keyframe"}
    assert len(mod["keyframe"].body.body.ty.fields[1].fields) == 0


def test_recurrent_residual_returns_new_state() -> None:
    mod = Partition("float32", recurrent=True)(annotated(random_network(5), "float"))
    first, second, third = frames(mod, 3)
    _, state = run(mod["keyframe"], first)
    _, state = run(mod["residual"], second, *state)
    outputs, _ = run(mod["residual"], third, *state)
    for got, want in zip(outputs, run(mod["main"], third), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@QUICK
@given(seed=SEEDS)
def test_without_quantizers_residual_equals_main(seed: int) -> None:
    mod = Partition("float32")(annotated(random_network(seed), "float"))
    key, frame = frames(mod, 2, seed)
    _, state = run(mod["keyframe"], key)
    outputs, _ = run(mod["residual"], frame, *state)
    largest = max([1.0, *(float(s.abs().max()) for s in state)])
    for got, want in zip(outputs, run(mod["main"], frame), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=3e-5 * largest)


@QUICK
@given(
    seed=SEEDS,
    scheme=st.sampled_from(["W8A8->W8A8", "W8A8->W4A4", "W4A4->W2A2", "W8A16->W8A8"]),
    dtype=st.sampled_from(["float32", "float16"]),
    recurrent=st.booleans(),
)
def test_residual_of_the_keyframe_is_the_keyframe(
    seed: int, scheme: str, dtype: str, recurrent: bool
) -> None:
    mod = Partition(dtype, recurrent)(annotated(random_network(seed), scheme))
    key = frames(mod, 1, seed)[0]
    outputs, state = run(mod["keyframe"], key)
    again, _ = run(mod["residual"], key, *state)
    for got, want in zip(again, outputs, strict=True):
        assert torch.equal(got, want)


def test_more_keyframe_bits_come_closer_to_float() -> None:
    def error(scheme: str) -> float:
        mod = annotated(random_network(3), scheme)
        x = frames(mod, 1, 3)[0] * 0.3
        pairs = zip(run(Partition()(mod)["keyframe"], x)[0], run(mod["main"], x), strict=True)
        return sum(float((y - exact).norm() / exact.norm()) for y, exact in pairs)

    eight, ten, sixteen = (error(f"W8A{bits}") for bits in (8, 10, 16))
    assert ten < 0.6 * eight and sixteen < 0.9 * ten


def test_values_beyond_float16_are_clamped_not_infinite() -> None:
    mod = annotated(random_network(3), "float")
    key = frames(mod, 1)[0] * 1e6
    programs = Partition("float16")(mod)
    outputs, state = run(programs["keyframe"], key)
    again, _ = run(programs["residual"], key, *state)
    assert any(float(s.abs().max()) == 65504 for s in state)
    for got, want in zip(again, outputs, strict=True):
        assert torch.isfinite(got).all()
        assert torch.equal(got, want)


def test_state_is_the_input_and_what_nonlinear_operators_read() -> None:
    mod = Partition()(annotated(random_network(11), "W8A8->W4A4"))
    names = [p.name for p in mod["residual"].params[1:]]
    assert names == [n for n in dict.fromkeys(names) if n.endswith("_key")]


@pytest.mark.parametrize("seed", range(4))
def test_main_is_left_alone(seed: int) -> None:
    before = annotated(random_network(seed), "W8A8->W4A4")
    after = Partition()(before)
    tvm.ir.assert_structural_equal(before["main"], after["main"])

"""Every operator of the executor against TVM's own default lowering and against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from tvm import relax

from resq_tvm.errors import FrameError, UnsupportedOperatorError
from resq_tvm.reference.executor import Executor

Make = Callable[[relax.BlockBuilder, list[Any]], Any]


def function(shapes: list[tuple[int, ...]], make: Make, dtype: str = "float32") -> Any:
    """Build ``main`` of one expression over inputs of the given shapes."""
    bb = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(s, dtype)) for i, s in enumerate(shapes)]
    with bb.function("main", params):
        with bb.dataflow():
            out = bb.emit_output(make(bb, params))
        bb.emit_func_output(out)
    return bb.finalize()


def const(rng: np.random.Generator, *shape: int) -> Any:
    return relax.const(rng.standard_normal(shape).astype(np.float32))


def run_tvm(mod: Any, inputs: list[np.ndarray]) -> np.ndarray:
    executable = tvm.compile(mod, target="llvm")
    vm = relax.VirtualMachine(executable, tvm.cpu())
    return vm["main"](*[tvm.runtime.tensor(a) for a in inputs]).numpy()


NHWC = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
R = relax.op
SHAPE = (1, 9, 7, 6)

CASES: dict[str, tuple[list[tuple[int, ...]], Callable[[np.random.Generator], Make]]] = {
    "conv": (
        [SHAPE],
        lambda g: (
            lambda b, x: R.nn.conv2d(
                x[0], const(g, 5, 3, 2, 6), [2, 1], [1, 0, 2, 1], [1, 2], **NHWC
            )
        ),
    ),
    "grouped": (
        [SHAPE],
        lambda g: (
            lambda b, x: R.nn.conv2d(
                x[0], const(g, 4, 3, 3, 3), [1, 1], [1, 1, 1, 1], [1, 1], 2, **NHWC
            )
        ),
    ),
    "depthwise": (
        [SHAPE],
        lambda g: (
            lambda b, x: R.nn.conv2d(
                x[0], const(g, 6, 3, 3, 1), [2, 2], [0, 0, 1, 1], [1, 1], 6, **NHWC
            )
        ),
    ),
    "matmul": ([(1, 11)], lambda g: lambda b, x: R.matmul(x[0], const(g, 11, 5))),
    "matmul of two": ([(3, 4), (4, 5)], lambda g: lambda b, x: R.matmul(x[0], x[1])),
    "add channel": ([SHAPE], lambda g: lambda b, x: R.add(x[0], const(g, 6))),
    "const first": ([SHAPE], lambda g: lambda b, x: R.subtract(const(g, 6), x[0])),
    "divide": ([SHAPE, SHAPE], lambda g: lambda b, x: R.divide(x[0], x[1])),
    "maximum": ([SHAPE, SHAPE], lambda g: lambda b, x: R.maximum(x[0], x[1])),
    "relu": ([SHAPE], lambda g: lambda b, x: R.nn.relu(x[0])),
    "clip": ([SHAPE], lambda g: lambda b, x: R.clip(x[0], -0.5, 0.25)),
    "prelu": ([SHAPE], lambda g: lambda b, x: R.nn.prelu(x[0], const(g, 6), axis=-1)),
    "leaky": ([SHAPE], lambda g: lambda b, x: R.nn.leakyrelu(x[0], 0.2)),
    "softmax": ([SHAPE], lambda g: lambda b, x: R.nn.softmax(x[0], axis=-1)),
    "gelu": ([SHAPE], lambda g: lambda b, x: R.nn.gelu(x[0])),
    "silu": ([SHAPE], lambda g: lambda b, x: R.nn.silu(x[0])),
    "tanh": ([SHAPE], lambda g: lambda b, x: R.tanh(R.negative(x[0]))),
    "exp": ([SHAPE], lambda g: lambda b, x: R.sqrt(R.abs(R.exp(x[0])))),
    "max pool": (
        [SHAPE],
        lambda g: lambda b, x: R.nn.max_pool2d(x[0], [3, 2], [2, 1], [1, 0, 0, 1], layout="NHWC"),
    ),
    "max pool ceil": (
        [SHAPE],
        lambda g: (
            lambda b, x: R.nn.max_pool2d(
                x[0], [2, 2], [2, 2], [0, 0, 0, 0], ceil_mode=True, layout="NHWC"
            )
        ),
    ),
    "avg pool": (
        [SHAPE],
        lambda g: lambda b, x: R.nn.avg_pool2d(x[0], [3, 3], [2, 2], [1, 1, 1, 1], layout="NHWC"),
    ),
    "avg pool with pad": (
        [SHAPE],
        lambda g: (
            lambda b, x: R.nn.avg_pool2d(
                x[0], [5, 5], [2, 2], [2, 1, 1, 2], count_include_pad=True, layout="NHWC"
            )
        ),
    ),
    "mean": ([SHAPE], lambda g: lambda b, x: R.mean(x[0], [1, 2], keepdims=True)),
    "concat": ([SHAPE, SHAPE], lambda g: lambda b, x: R.concat([x[1], x[0], x[1]], axis=3)),
    "slice": (
        [SHAPE],
        lambda g: lambda b, x: R.strided_slice(x[0], [1, 3], [1, -4], [9, 6], [3, 1]),
    ),
    "reshape": ([SHAPE], lambda g: lambda b, x: R.reshape(x[0], (1, -1))),
    "permute": ([SHAPE], lambda g: lambda b, x: R.permute_dims(x[0], [0, 3, 1, 2])),
    "pad": (
        [SHAPE],
        lambda g: lambda b, x: R.nn.pad(x[0], [0, 0, 1, 2, 3, 0, 0, 1], pad_value=0.5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operator_matches_default_lowering(name: str, rng: np.random.Generator) -> None:
    shapes, make = CASES[name]
    mod = function(shapes, make(rng))
    inputs = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    got = Executor(mod["main"])(*[torch.from_numpy(a) for a in inputs])
    np.testing.assert_allclose(got.numpy(), run_tvm(mod, inputs), rtol=2e-5, atol=2e-5)


LINEAR = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]
ROUNDINGS = ["round", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


@pytest.mark.parametrize(
    ("method", "mode", "rounding", "size"),
    [("linear", m, "", s) for m in LINEAR for s in ((17, 5), (4, 20))]
    + [("nearest_neighbor", "asymmetric", r, (13, 21)) for r in ROUNDINGS]
    + [("nearest_neighbor", "half_pixel", r, (18, 3)) for r in ROUNDINGS]
    + [("nearest_neighbor", "align_corners", "", (5, 28))],
)
def test_resize_matches_default_lowering(
    method: str, mode: str, rounding: str, size: tuple[int, int], rng: np.random.Generator
) -> None:
    mod = function(
        [SHAPE],
        lambda b, x: R.image.resize2d(
            x[0],
            size,
            layout="NHWC",
            method=method,
            coordinate_transformation_mode=mode,
            rounding_method=rounding,
        ),
    )
    x = rng.standard_normal(SHAPE).astype(np.float32)
    got = Executor(mod["main"])(torch.from_numpy(x))
    np.testing.assert_allclose(got.numpy(), run_tvm(mod, [x]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("align", [True, False])
def test_linear_resize_is_torch_interpolate(align: bool) -> None:
    mode = "align_corners" if align else "half_pixel"
    mod = function(
        [(1, 9, 7, 3)],
        lambda b, x: R.image.resize2d(
            x[0], (31, 15), layout="NHWC", method="linear", coordinate_transformation_mode=mode
        ),
    )
    x = torch.rand(1, 9, 7, 3)
    want = F.interpolate(x.permute(0, 3, 1, 2), (31, 15), mode="bilinear", align_corners=align)
    torch.testing.assert_close(Executor(mod["main"])(x), want.permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("stride", "padding", "extra", "groups"),
    [
        ([2, 2], [1, 1, 1, 1], [1, 1], 1),
        ([2, 3], [0, 0, 0, 0], [0, 0], 1),
        ([2, 2], [1, 0, 0, 1], [0, 1], 1),
        ([2, 2], [1, 1, 1, 1], [1, 1], 2),
        ([1, 1], [1, 1, 1, 1], [0, 0], 1),
    ],
)
def test_transposed_convolution_is_the_gradient_of_convolution(
    stride: list[int],
    padding: list[int],
    extra: list[int],
    groups: int,
    rng: np.random.Generator,
) -> None:
    weight = rng.standard_normal((4 // groups, 3, 3, 6)).astype(np.float32)
    mod = function(
        [(1, 5, 7, 6)],
        lambda b, x: R.nn.conv2d_transpose(
            x[0], relax.const(weight), stride, padding, extra, [1, 1], groups, **NHWC
        ),
    )
    x = torch.from_numpy(rng.standard_normal((1, 5, 7, 6)).astype(np.float32))
    got = Executor(mod["main"])(x)
    shape = tuple(int(d) for d in mod["main"].ret_ty.shape)
    assert tuple(got.shape) == shape
    # <conv(y), x> == <y, conv_transpose(x)> for every y defines the transposed convolution.
    y = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    top, left, bottom, right = padding
    forward = F.conv2d(
        F.pad(y.permute(0, 3, 1, 2), (left, right, top, bottom)),
        torch.from_numpy(weight).permute(3, 0, 1, 2),
        stride=stride,
        groups=groups,
    )[:, :, :5, :7]
    torch.testing.assert_close(
        (forward.permute(0, 2, 3, 1) * x).sum(), (y * got).sum(), rtol=1e-4, atol=1e-3
    )


def quantized(weight: np.ndarray, scale: float, limit: int) -> Any:
    """Build quantize → integer convolution → dequantize → bias on a (1, 6, 5, I) input."""
    out = weight.shape[0]

    def make(b: Any, x: list[Any]) -> Any:
        q = R.quantize(x[0], relax.const(np.float32(scale)), relax.const(np.int8(0)), -1, "int8")
        q = b.emit(R.clip(b.emit(q), -limit, limit), "codes")
        acc = R.nn.conv2d(q, relax.const(weight), padding=[1, 1, 1, 1], out_dtype="int32", **NHWC)
        acc = b.emit(acc, "acc")
        d = R.dequantize(
            acc,
            relax.const(np.full(out, scale * 0.01, np.float32)),
            relax.const(np.zeros(out, np.int8)),
            3,
            "float32",
        )
        return R.add(b.emit(d), relax.const(np.linspace(-1, 1, out).astype(np.float32)))

    return function([(1, 6, 5, weight.shape[3])], make)["main"]


@pytest.mark.parametrize("channels", [16, 1100])
def test_integer_convolution_is_exact(channels: int, rng: np.random.Generator) -> None:
    """1100 channels of codes ±127 do not fit float32's 24 bits: the float64 path must run."""
    weight = rng.integers(100, 128, (3, 3, 3, channels)).astype(np.int8)
    seen: dict[str, torch.Tensor] = {}
    run = Executor(quantized(weight, 0.01, 127), watch={"codes", "acc"}, observe=seen.__setitem__)
    x = torch.from_numpy(rng.uniform(0.9, 2, (1, 6, 5, channels)).astype(np.float32))
    run(x)
    assert seen["codes"].dtype == torch.int8 and seen["acc"].dtype == torch.int32
    codes = np.pad(seen["codes"].numpy().astype(np.int64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(codes[0], (3, 3), (0, 1))
    want = np.einsum("yxcij,oijc->yxo", windows, weight.astype(np.int64))
    np.testing.assert_array_equal(seen["acc"].numpy()[0], want)


def test_quantize_multiplies_by_the_reciprocal_and_rounds_half_to_even() -> None:
    scale = np.float32(0.1)
    mod = function(
        [(1, 1, 1, 6)],
        lambda b, x: R.quantize(x[0], relax.const(scale), relax.const(np.int8(0)), -1, "int8"),
    )
    inverse = np.float32(1) / scale
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e6], np.float32) / inverse
    got = Executor(mod["main"])(torch.from_numpy(x.reshape(1, 1, 1, 6))).flatten().tolist()
    want = np.clip(np.rint(x * inverse), -128, 127)
    assert got == want.tolist()
    assert got[:3] == [0, 2, 2]


def test_straight_through_gradient_passes_inside_the_clamp_only() -> None:
    weight = np.zeros((1, 3, 3, 2), np.int8)
    weight[0, 1, 1] = (3, -2)
    func = quantized(weight, 0.5, 7)
    x = torch.zeros(1, 6, 5, 2)
    x[0, 0, 0] = torch.tensor([1.3, 0.2])
    x[0, 2, 2] = torch.tensor([9.0, -9.0])
    x.requires_grad_()
    y = Executor(func, gradient="straight_through")(x)
    torch.testing.assert_close(y.detach(), Executor(func)(x.detach()))
    y.sum().backward()
    assert x.grad is not None
    # d(out)/dx = (1/scale) · w · (scale · 0.01) inside the clamp.
    torch.testing.assert_close(x.grad[0, 0, 0], torch.tensor([0.03, -0.02]))
    assert x.grad[0, 2, 2].tolist() == [0.0, 0.0]


def test_nested_tuples_and_state_parameters() -> None:
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2), "float32"))
    state = relax.Var("state", relax.TensorType((1, 2), "float16"))
    with bb.function("main", [x, state]):
        with bb.dataflow():
            wide = bb.emit(R.astype(state, "float32"))
            out = bb.emit(R.add(x, wide), "sum")
            result = bb.emit_output(relax.Tuple([relax.Tuple([out]), relax.Tuple([state])]))
        bb.emit_func_output(result)
    key = torch.ones(1, 2, dtype=torch.float16)
    (total,), (kept,) = Executor(bb.finalize()["main"])(torch.ones(1, 2), key)
    assert total.tolist() == [[2.0, 2.0]]
    assert kept is key


def test_wrong_inputs_and_unknown_operators_are_named() -> None:
    run = Executor(function([SHAPE], lambda b, x: R.nn.relu(x[0]))["main"])
    with pytest.raises(FrameError, match=r"x0 has shape \(1, 2\)"):
        run(torch.zeros(1, 2))
    with pytest.raises(FrameError, match=r"x0 has dtype torch\.float64"):
        run(torch.zeros(SHAPE, dtype=torch.float64))
    with pytest.raises(FrameError, match="0 inputs given"):
        run()
    mod = function([SHAPE], lambda b, x: R.add(b.emit(R.sort(x[0])), R.sin(x[0])))
    with pytest.raises(UnsupportedOperatorError, match=r"relax\.sort at .*relax\.sin"):
        Executor(mod["main"])

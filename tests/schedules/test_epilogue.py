from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.schedules.spec import FusedKernel, Node, Store, Walk
from tests.schedules.harness import TARGETS, check, code_tensor, float_tensor, target_or_skip


def walk(target, nodes, inputs, outputs, stores, c=19, vectors=None):
    return FusedKernel(
        "walk", Walk(), 3, 5, c, inputs, outputs, nodes, stores, target.code, vectors or {}
    )


def unary(target, op):
    x = float_tensor("x", 3, 5, 19)
    nodes = (Node("load", name="x"), Node(op, (0,)))
    return walk(target, nodes, (x,), (float_tensor("y", 3, 5, 19, True),), (Store(1, "y"),))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("op", ["neg", "abs", "sqrt"])
def test_exact_functions(name, op, rng):
    target = target_or_skip(name)
    x = (rng.standard_normal((3, 5, 19)) * 10).astype(np.float32)
    check(unary(target, op), target, rng, {"x": np.abs(x) if op == "sqrt" else x})


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("op,ulps", [("exp", 3), ("sigmoid", 4), ("tanh", 8), ("erf", 8)])
def test_elementary_functions_are_within_ulps(name, op, ulps, rng):
    target = target_or_skip(name)
    scale = np.array([1e-3, 0.3, 1.0, 3.0, 25.0], np.float32)[:, None]
    x = (rng.uniform(-3, 3, (3, 5, 19)) * scale).astype(np.float32)
    check(unary(target, op), target, rng, {"x": x}, ulps=ulps)


@pytest.mark.parametrize("name", TARGETS)
def test_products_are_not_fused_with_sums(name, rng):
    target = target_or_skip(name)
    nodes = (
        Node("load", name="a"),
        Node("load", name="b"),
        Node("load", name="c"),
        Node("mul", (0, 1)),
        Node("add", (3, 2)),
        Node("neg", (3,)),
        Node("sub", (5, 2)),
        Node("prelu", (4, 1)),
        Node("div", (7, 1)),
        Node("max", (8, 6)),
        Node("min", (9, 2)),
    )
    inputs = (
        float_tensor("a", 3, 5, 19),
        float_tensor("b", 1, 1, 19),
        float_tensor("c", 1, 1, 1),
    )
    outputs = tuple(float_tensor(f"y{i}", 3, 5, 19) for i in range(4))
    stores = tuple(Store(n, f"y{i}") for i, n in enumerate((4, 6, 8, 10)))
    check(walk(target, nodes, inputs, outputs, stores), target, rng)


@pytest.mark.parametrize("name", TARGETS)
def test_half_precision_state_rounds_to_nearest_even(name, rng):
    target = target_or_skip(name)
    nodes = (
        Node("load", name="x"),
        Node("round16", (0,)),
        Node("load", name="s"),
        Node("add", (1, 2)),
    )
    inputs = (float_tensor("x", 3, 5, 19), float_tensor("s", 3, 5, 19, dtype="float16"))
    outputs = (
        float_tensor("y", 3, 5, 19),
        float_tensor("t", 3, 5, 19, dtype="float16"),
        float_tensor("r", 3, 5, 19, True, dtype="float16"),
    )
    kernel = walk(target, nodes, inputs, outputs, (Store(3, "y"), Store(1, "t"), Store(0, "r")))
    exponents = rng.uniform(-27, 15.9, (3, 5, 19))
    x = (np.exp2(exponents) * rng.choice([-1, 1], (3, 5, 19))).astype(np.float32)
    x[0, 0, :6] = [0.0, -0.0, 2049.0, 2051.0, 65504.0, 6.0e-8]
    s = (rng.standard_normal((3, 5, 19)) * np.exp2(rng.uniform(-20, 3, (3, 5, 19)))).astype(
        np.float16
    )
    check(kernel, target, rng, {"x": x, "s": s})


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("limit", [1, 7, 127])
def test_quantize_rounds_half_to_even_and_clamps(name, limit, rng):
    target = target_or_skip(name)
    nodes = (
        Node("load", name="x"),
        Node("quantize", (0,), value=0.5, limit=limit),
        Node("load", name="p"),
        Node("scalar", value=0.25),
        Node("dequantize", (1, 3)),
        Node("add", (4, 2)),
    )
    inputs = (float_tensor("x", 3, 5, 19), code_tensor(target, "p", 3, 5, 19, (1, 1, 1, 1)))
    outputs = (code_tensor(target, "q", 3, 5, 19), float_tensor("y", 3, 5, 19))
    kernel = walk(target, nodes, inputs, outputs, (Store(1, "q"), Store(5, "y")))
    x = rng.integers(-300, 300, (3, 5, 19)).astype(np.float32)
    x[0, 0, :4] = [1e9, -1e9, 3e38, -3e38]
    p = rng.integers(-127, 128, (3, 5, 19)).astype(np.int32)
    check(kernel, target, rng, {"x": x, "p": p})


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("scale", [6 / 127, 6 / 126.6, 6 / 130, 0.02])  # the last two saturate
@pytest.mark.parametrize("state", [False, True])
def test_what_rounding_leaves_gets_codes_of_its_own(name, scale, state, rng):
    target = target_or_skip(name)
    step = np.float32(scale)
    fine = np.float32(step / 254)
    nodes = (
        Node("load", name="x"),
        Node("round16", (0,)),
        Node("scalar", value=0.0),
        Node("max", (1 if state else 0, 2)),
        Node("scalar", value=6.0),
        Node("min", (3, 4)),
        Node("quantize", (5,), value=float(np.float32(1) / step), limit=127),
        Node("scalar", value=float(step)),
        Node("dequantize", (6, 7)),
        Node("sub", (5, 8)),
        Node("quantize", (9,), value=float(np.float32(1) / fine), limit=127),
    )
    outputs = (
        code_tensor(target, "q", 3, 5, 19),
        code_tensor(target, "rest", 3, 5, 19),
        float_tensor("s", 3, 5, 19, dtype="float16"),
    )
    stores = (Store(6, "q"), Store(10, "rest"), Store(1, "s"))
    kernel = walk(target, nodes, (float_tensor("x", 3, 5, 19),), outputs, stores)
    # Around the middle of steps, where the rest's codes are largest, and beyond the codes.
    x = ((rng.integers(0, 135, (3, 5, 19)) + 0.5) * scale).astype(np.float32)
    x[1] = np.nextafter(x[1], np.float32(0))
    x[2] = rng.uniform(-1, 8, x[2].shape)
    check(kernel, target, rng, {"x": x})

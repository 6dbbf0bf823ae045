from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.schedules.spec import (
    FloatConv,
    FusedKernel,
    GlobalMean,
    Node,
    Phase,
    Pool,
    Resize,
    Store,
    Walk,
    Window,
)
from tests.schedules.harness import (
    TARGETS,
    check,
    code_tensor,
    conv_phase,
    float_tensor,
    target_or_skip,
)


def anchored(target, anchor, source, h, w, c, external=False):
    """Return a kernel that stores the anchor as float32 and as codes."""
    nodes = (Node("anchor"), Node("quantize", (0,), value=2.5, limit=127))
    outputs = (
        float_tensor("y", h, w, c, external),
        code_tensor(target, "q", h, w, c, (1, 1, 2, 0)),
    )
    stores = (Store(0, "y"), Store(1, "q"))
    return FusedKernel("k", anchor, h, w, c, (source,), outputs, nodes, stores, target.code)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(
    "hw,c,window,stride,padding,dilation,include",
    [
        ((9, 12), 16, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), True),
        ((9, 7), 25, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), True),
        ((9, 7), 3, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), False),
        ((8, 16), 32, (17, 17), (8, 8), (8, 8, 8, 8), (1, 1), True),
        ((8, 16), 32, (17, 17), (8, 8), (8, 8, 8, 8), (1, 1), False),
        ((11, 9), 12, (3, 2), (1, 1), (0, 1, 2, 0), (2, 3), True),
    ],
)
def test_pool(name, kind, hw, c, window, stride, padding, dilation, include, rng):
    target = target_or_skip(name)
    size = [
        (n + padding[i] + padding[i + 2] - dilation[i] * (window[i] - 1) - 1) // stride[i] + 1
        for i, n in enumerate(hw)
    ]
    anchor = Pool("x", kind, window, stride, padding, dilation, include)
    kernel = anchored(target, anchor, float_tensor("x", *hw, c), *size, c)
    exact = kind == "max"
    if exact:
        check(kernel, target, rng)
    else:
        x = np.round(rng.standard_normal((*hw, c)) * 64).astype(np.float32)
        check(without_codes(kernel), target, rng, {"x": x}, ulps=2)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("c", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "hw,window,stride,padding,dilation,include",
    [
        ((13, 30), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), True),
        ((7, 41), (2, 3), (1, 1), (0, 2, 1, 2), (1, 2), False),
        ((5, 9), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), False),
    ],
)
def test_pool_of_few_channels(name, kind, c, hw, window, stride, padding, dilation, include, rng):
    target = target_or_skip(name)
    h, w = (
        (n + padding[i] + padding[i + 2] - dilation[i] * (window[i] - 1) - 1) // stride[i] + 1
        for i, n in enumerate(hw)
    )
    anchor = Pool("x", kind, window, stride, padding, dilation, include)
    kernel = anchored(target, anchor, float_tensor("x", *hw, c, True), h, w, c, True)
    if kind == "max":
        check(kernel, target, rng)
    else:
        x = np.round(rng.standard_normal((*hw, c)) * 64).astype(np.float32)
        check(without_codes(kernel), target, rng, {"x": x}, ulps=2)


def without_codes(kernel):
    """Drop the code output: averages differ in the last place, and codes then by one."""
    return FusedKernel(
        kernel.name, kernel.anchor, kernel.h, kernel.w, kernel.c, kernel.inputs,
        kernel.outputs[:1], kernel.nodes, kernel.stores[:1], kernel.code,
    )  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("c,external", [(16, False), (25, False), (3, True), (19, True)])
def test_global_mean(name, c, external, rng):
    target = target_or_skip(name)
    source = float_tensor("x", 9, 31, c, external)
    kernel = anchored(target, GlobalMean("x"), source, 1, 1, c)
    x = np.round(rng.standard_normal((9, 31, c)) * 64 + 200).astype(np.float32)
    check(without_codes(kernel), target, rng, {"x": x}, ulps=2)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("method", ["linear", "nearest_neighbor"])
@pytest.mark.parametrize("coordinate", ["half_pixel", "align_corners", "asymmetric"])
def test_resize(name, method, coordinate, rng):
    target = target_or_skip(name)
    rounding = "round" if coordinate == "align_corners" else "floor"
    anchor = Resize("x", method, coordinate, rounding)
    cases = (((4, 7), (8, 14), 16, False), ((9, 5), (7, 9), 19, True), ((1, 1), (3, 5), 8, False))
    for hw, size, c, external in cases:
        kernel = anchored(target, anchor, float_tensor("x", *hw, c), *size, c, external)
        check(kernel, target, rng)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "offset,stride,fill",
    [((1, 2, 0), (1, 1), 0.0), ((-1, -2, 0), (1, 1), 1.5), ((0, 0, 5), (2, 2), 0.0),
     ((0, 1, -4), (1, 1), 0.0), ((0, 0, 16), (1, 1), 0.0)],
)  # fmt: skip
@pytest.mark.parametrize("c", [12, 27])
def test_window(name, offset, stride, fill, c, rng):
    target = target_or_skip(name)
    anchor = Window("x", offset, stride, fill)
    kernel = anchored(target, anchor, float_tensor("x", 9, 11, 28), 7, 6, c)
    check(kernel, target, rng)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "c,o,k,stride,groups",
    [(3, 19, 3, 2, 1), (16, 16, 3, 1, 16), (24, 24, 3, 1, 24), (12, 8, 3, 1, 4), (25, 28, 1, 1, 1)],
)
def test_float_conv(name, c, o, k, stride, groups, rng):
    target = target_or_skip(name)
    h, w = -(-9 // stride), -(-7 // stride)
    weight = np.round(rng.standard_normal((o, k, k, c // groups)) * 8).astype(np.float32)
    phase = conv_phase((k, k), (1, 1), (k // 2, k // 2))
    anchor = FloatConv(("x",), weight, (phase,), (stride, stride), (1, 1), groups)
    kernel = anchored(target, anchor, float_tensor("x", 9, 7, c), h, w, o)
    x = np.round(rng.standard_normal((9, 7, c)) * 8).astype(np.float32)
    check(kernel, target, rng, {"x": x})


@pytest.mark.parametrize("name", TARGETS)
def test_float_conv_transposed_of_two_inputs(name, rng):
    target = target_or_skip(name)
    weight = np.round(rng.standard_normal((5, 2, 2, 7)) * 8).astype(np.float32)
    phases = tuple(Phase(y, x, ((y, x, 0, 0),)) for y in range(2) for x in range(2))
    anchor = FloatConv(("a", "b"), weight, phases, (1, 1), (2, 2))
    kernel = FusedKernel(
        "k", anchor, 8, 10, 5, (float_tensor("a", 4, 5, 4), float_tensor("b", 4, 5, 3, True)),
        (float_tensor("y", 8, 10, 5),), (Node("anchor"),), (Store(0, "y"),), target.code,
    )  # fmt: skip
    inputs = {
        n: np.round(rng.standard_normal((4, 5, c)) * 8).astype(np.float32)
        for n, c in (("a", 4), ("b", 3))
    }
    check(kernel, target, rng, inputs)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "c,hw", [(3, (7, 9)), (3, (4, 16)), (1, (5, 5)), (4, (3, 31)), (19, (5, 7))]
)
def test_first_walk_quantizes_a_frame(name, c, hw, rng):
    target = target_or_skip(name)
    nodes = (
        Node("load", name="x"),
        Node("load", name="k"),
        Node("sub", (0, 1)),
        Node("vector", name="gain"),
        Node("mul", (2, 3)),
        Node("quantize", (4,), value=11.0, limit=7),
    )
    kernel = FusedKernel(
        "walk", Walk(), *hw, c,
        (float_tensor("x", *hw, c, True), float_tensor("k", *hw, c, True)),
        (code_tensor(target, "q", *hw, c, (1, 1, 0, 2)), float_tensor("d", *hw, c, True)),
        nodes, (Store(5, "q"), Store(2, "d")), target.code,
        {"gain": rng.uniform(0.1, 2, c).astype(np.float32)},
    )  # fmt: skip
    check(kernel, target, rng)

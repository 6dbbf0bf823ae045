"""Kernels without products on NPUs: pooling, resize, mean, window, plain walks, every operation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from resq_tvm.schedules import meaning
from resq_tvm.schedules.npu.emit import fits
from resq_tvm.schedules.spec import (
    FusedKernel,
    GlobalMean,
    Node,
    Pool,
    Resize,
    Store,
    Walk,
    Window,
)
from tests.schedules.npu.harness import check, has_room, machine, machines
from tests.schedules.npu.kernels import CODE, codes, decisions, floats, limit

MEMORIES = ("", "sram")
FLOATS = ("float32", "float16")
HALF_ULPS = 2  # sums in float64, in another order, rounded to float32


def relu_of_anchor(anchor, inputs, outputs):
    """Return a kernel that rectifies what its anchor gives."""
    nodes = (Node("anchor"), Node("scalar", value=0.0), Node("max", (0, 1)))
    first = outputs[0]
    stores = tuple(Store(n, s.name) for n, s in zip((0, 2), outputs, strict=False))
    size = (first.h, first.w, first.c)
    return FusedKernel("spatial", anchor, *size, inputs, outputs, nodes, stores, CODE)


def check_drawn(draw, kernel, target, rng, ulps=0):
    """Check a kernel with drawn tiles, or the rules' where these are too large."""
    assume(has_room(kernel, target))
    decision = decisions(draw, kernel.h, kernel.w, 3)
    fitting = decision if fits(kernel, decision, target) else None
    check(kernel, target, rng, decision=fitting, ulps=ulps)


def drawn_input(draw, h, w, c):
    return floats("x", h, w, c, draw(st.sampled_from(FLOATS)), draw(st.sampled_from(MEMORIES)))


def drawn_outputs(draw, h, w, c):
    outputs = (
        floats("y", h, w, c, draw(st.sampled_from(FLOATS)), draw(st.sampled_from(MEMORIES))),
        floats("z", h, w, c),
    )
    return outputs[: draw(st.integers(1, 2))]


@settings(max_examples=12, derandomize=True)
@given(data=st.data())
def test_any_pool(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    target = draw(machines())
    c = draw(st.integers(1, 40))
    stride, k = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    reach = [(n - 1) * d + 1 for n, d in zip(k, dilation, strict=True)]
    # No window lies in the padding alone.
    h, w = (draw(st.integers(n, 17)) for n in reach)
    before = [draw(st.integers(0, n // 2)) for n in k]
    behind = [draw(st.integers(0, n // 2)) for n in k]
    out_h, out_w = (
        (n + a + b - r) // s + 1
        for n, a, b, r, s in zip((h, w), before, behind, reach, stride, strict=True)
    )
    kind = draw(st.sampled_from(["max", "avg"]))
    pool = Pool("x", kind, k, stride, (*before, *behind), dilation, draw(st.booleans()))
    kernel = relu_of_anchor(
        pool, (drawn_input(draw, h, w, c),), drawn_outputs(draw, out_h, out_w, c)
    )
    check_drawn(draw, kernel, target, rng, 0 if kind == "max" else HALF_ULPS)


@settings(max_examples=12, derandomize=True)
@given(data=st.data())
def test_any_resize(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    target = draw(machines())
    size = st.tuples(st.integers(1, 13), st.integers(1, 17))
    (h, w), (out_h, out_w), c = draw(size), draw(size), draw(st.integers(1, 30))
    resize = Resize(
        "x",
        draw(st.sampled_from(["linear", "nearest_neighbor"])),
        draw(st.sampled_from(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])),
        draw(st.sampled_from(["round", "floor", "ceil", "round_prefer_floor"])),
    )
    kernel = relu_of_anchor(
        resize, (drawn_input(draw, h, w, c),), drawn_outputs(draw, out_h, out_w, c)
    )
    check_drawn(draw, kernel, target, rng)


@settings(max_examples=12, derandomize=True)
@given(data=st.data())
def test_any_window(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    target = draw(machines())
    size = st.tuples(st.integers(1, 11), st.integers(1, 13), st.integers(1, 30))
    (h, w, c), out = draw(size), draw(size)
    offset = draw(st.tuples(*(st.integers(-6, 6) for _ in range(3))))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    window = Window("x", offset, stride, draw(st.sampled_from([0.0, -1.5, -np.inf])))
    kernel = relu_of_anchor(window, (drawn_input(draw, h, w, c),), drawn_outputs(draw, *out))
    check_drawn(draw, kernel, target, rng)


@settings(max_examples=6, derandomize=True)
@given(data=st.data())
def test_any_mean(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    h, w, c = draw(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 50)))
    kernel = relu_of_anchor(
        GlobalMean("x"), (drawn_input(draw, h, w, c),), drawn_outputs(draw, 1, 1, c)
    )
    check_drawn(draw, kernel, draw(machines()), rng, HALF_ULPS)


@settings(max_examples=15, derandomize=True)
@given(data=st.data())
def test_any_walk(data):
    """Floats, codes and broadcasts in; floats and codes out."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    target = draw(machines())
    h, w, c = draw(st.tuples(st.integers(1, 17), st.integers(1, 23), st.integers(1, 70)))
    bits, out_bits = (draw(st.sampled_from([2, 3, 4, 8])) for _ in range(2))
    shape = draw(st.sampled_from([(h, w, c), (1, 1, c), (1, 1, 1)]))
    memories = [draw(st.sampled_from(MEMORIES)) for _ in range(5)]
    inputs = (
        codes("a", h, w, c, bits, memories[0]),
        floats("b", h, w, c, "float16", memories[1]),
        floats("g", *shape, "float32", memories[2]),
    )
    nodes = (
        Node("load", name="a"),
        Node("scalar", value=0.25),
        Node("dequantize", (0, 1)),
        Node("load", name="b"),
        Node("add", (2, 3)),
        Node("load", name="g"),
        Node("mul", (4, 5)),
        Node("vector", name="slope"),
        Node("prelu", (6, 7)),
        Node("round16", (8,)),
        Node("quantize", (9,), value=1.5, limit=limit(out_bits)),
    )
    outputs = (
        codes("q", h, w, c, out_bits, memories[3]),
        floats("y", h, w, c, "float16", memories[4]),
    )
    kernel = FusedKernel(
        "walk", Walk(), h, w, c, inputs, outputs, nodes, (Store(10, "q"), Store(9, "y")), CODE,
        {"slope": rng.standard_normal(c).astype(np.float32)},
    )  # fmt: skip
    check_drawn(draw, kernel, target, rng)


BINARY = ("add", "sub", "mul", "div", "max", "min", "prelu")
UNARY = ("neg", "abs", "exp", "sigmoid", "tanh", "sqrt", "erf", "round16")


@pytest.mark.parametrize(
    "op,second",
    [*product(BINARY, ("tensor", "vector", "scalar")), *((op, "tensor") for op in UNARY)],
)
def test_every_operation(op, second, rng):
    h, w, c = 5, 7, 13
    other = {
        "tensor": Node("load", name="b"),
        "vector": Node("vector", name="v"),
        "scalar": Node("scalar", value=-0.75),
    }[second]
    args = (0, 1) if op in BINARY else (0,)
    nodes = (Node("load", name="a"), other, Node(op, args))
    inputs = tuple(floats(n, h, w, c) for n in "ab")
    kernel = FusedKernel(
        "op", Walk(), h, w, c, inputs, (floats("y", h, w, c),), nodes, (Store(2, "y"),), CODE,
        {"v": rng.standard_normal(c).astype(np.float32)},
    )  # fmt: skip
    check(kernel, machine(), rng)


def test_values_that_are_stored_are_not_overwritten(rng):
    """The vector unit reuses memory; what a store needs, or two steps do, has to stay."""
    h, w, c = 4, 5, 6
    nodes = (
        Node("load", name="a"),
        Node("neg", (0,)),
        Node("add", (0, 1)),
        Node("mul", (1, 1)),
        Node("sub", (3, 1)),
        Node("abs", (4,)),
    )
    names = ("y0", "y1", "y2", "y3", "y4")
    stores = tuple(Store(n, name) for n, name in zip((0, 1, 3, 4, 5), names, strict=True))
    outputs = tuple(floats(n, h, w, c) for n in names)
    kernel = FusedKernel(
        "kept", Walk(), h, w, c, (floats("a", h, w, c),), outputs, nodes, stores, CODE
    )
    assert meaning.is_exact(kernel)
    check(kernel, machine(), rng)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.schedules import meaning
from resq_tvm.schedules.ranges import node_ranges
from resq_tvm.schedules.spec import FusedKernel, Node, Store
from tests.schedules.harness import (
    TARGETS,
    check,
    code_tensor,
    float_tensor,
    target_or_skip,
)
from tests.schedules.test_conv import conv_of

UNARY = ("neg", "abs", "round16", "sigmoid")
BINARY = ("add", "sub", "mul", "max", "min", "prelu")


def kernel_of_nodes(target, data, rng):
    """Return a convolution with a random tree of nodes, stored as float, half and codes."""
    anchor, inputs, h, w = conv_of(target, rng, (6,), 20, (4, 5))
    c = 20
    nodes = [
        Node("anchor"),
        Node("vector", name="s"),
        Node("dequantize", (0, 1)),
        Node("vector", name="v"),
        Node("load", name="u"),
        Node("scalar", value=data.draw(st.sampled_from([0.0, 6.0, -65504.0, 65504.0]))),
    ]
    for _ in range(data.draw(st.integers(1, 6))):
        op = data.draw(st.sampled_from(UNARY + BINARY))
        args = [data.draw(st.integers(2, len(nodes) - 1)) for _ in range(1 + (op in BINARY))]
        if op == "prelu":
            args[1] = 3
        nodes.append(Node(op, tuple(args)))
    last = len(nodes) - 1
    value = data.draw(st.sampled_from([0.01, 3.0, 1000.0]))
    nodes.append(Node("quantize", (last,), value=value, limit=7))
    vectors = {
        "s": rng.uniform(1e-5, 1e-3, c).astype(np.float32),
        "v": rng.uniform(-1, 2, c).astype(np.float32),
    }
    outputs = (float_tensor("y", h, w, c), code_tensor(target, "q", h, w, c))
    stores = (Store(last, "y"), Store(last + 1, "q"))
    state = float_tensor("u", h, w, c, dtype=data.draw(st.sampled_from(["float16", "float32"])))
    return FusedKernel(
        "k", anchor, h, w, c, (*inputs, state), outputs, tuple(nodes), stores, target.code, vectors
    )


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_values_lie_within(data, seed):
    target, rng = target_or_skip("x86-generic"), np.random.default_rng(seed)
    kernel = kernel_of_nodes(target, data, rng)
    inputs = meaning.random_inputs(kernel, rng)
    inputs["x0"] = rng.choice([-127, 0, 127], inputs["x0"].shape)
    ranges = node_ranges(kernel)
    for i in range(2, len(kernel.nodes)):
        out = (float_tensor("y", kernel.h, kernel.w, kernel.c),)
        fields = {**vars(kernel), "outputs": out, "stores": (Store(i, "y"),)}
        value = meaning.run(FusedKernel(**fields), inputs)["y"].astype(np.float64)
        least, most = ranges[i]
        assert (value >= least).all() and (value <= most).all(), kernel.nodes[i]


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=12)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_dropped_clamps_change_nothing(name, data, seed):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    kernel = kernel_of_nodes(target, data, rng)
    exact = all(n.op != "sigmoid" for n in kernel.nodes)
    if not exact:  # approximated functions: codes may be one off
        fields = {**vars(kernel), "outputs": kernel.outputs[:1], "stores": kernel.stores[:1]}
        kernel = FusedKernel(**fields)
    check(kernel, target, rng, ulps=0 if exact else 64)


def test_what_a_relu_passed_needs_no_lower_limit(rng):
    target = target_or_skip("x86-generic")
    anchor, inputs, h, w = conv_of(target, rng, (6,), 20, (4, 5))
    nodes = (
        Node("anchor"),
        Node("vector", name="s"),
        Node("dequantize", (0, 1)),
        Node("scalar", value=0.0),
        Node("max", (2, 3)),
        Node("scalar", value=65504.0),
        Node("min", (4, 5)),
    )
    kernel = FusedKernel(
        "k", anchor, h, w, 20, inputs, (float_tensor("y", h, w, 20),), nodes, (Store(6, "y"),),
        target.code, {"s": np.full(20, 1e-3, np.float32)},
    )  # fmt: skip
    ranges = node_ranges(kernel)
    assert (ranges[4][0] == 0).all() and (ranges[6][1] < 65504).all()
    assert (ranges[2][0] < 0).all()

"""Kernels of which all is zero where nothing changed."""

from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.schedules.atrest import rests_at_zero
from resq_tvm.schedules.spec import Conv, FusedKernel, Gate, Node, Pool, Store, Walk, Window
from tests.schedules.npu.kernels import CODE, floats


def step(*nodes, anchor=None, gate=None):
    tensor = floats("x", 4, 4, 2)
    return FusedKernel(
        "k", anchor or Walk(), 4, 4, 2, (tensor,), (floats("y", 4, 4, 2),), nodes,
        (Store(len(nodes) - 1, "y"),), CODE, gate=gate,
    )  # fmt: skip


X, U = Node("load", name="x"), Node("load", name="u")


@pytest.mark.parametrize(
    ("kernel", "nothing"),
    [
        (step(X), True),
        (step(X, Node("quantize", (0,), value=2.0, limit=127)), True),
        (step(X, U, Node("add", (0, 1))), False),  # a keyframe's value
        (step(X, U, Node("add", (0, 1)), Node("sub", (2, 1))), True),
        (step(U, Node("scalar", value=1.0), Node("max", (0, 1)), Node("sub", (2, 0))), False),
        (step(X, U, Node("add", (1, 0)), Node("scalar", value=6.0), Node("min", (2, 3)),
              Node("min", (1, 3)), Node("sub", (4, 5))), True),
        (step(X, Node("scalar", value=1.0), Node("max", (0, 1))), False),
        (step(X, Node("scalar", value=1.0), Node("min", (0, 1))), True),
        (step(X, Node("sigmoid", (0,))), False),
        (step(X, Node("exp", (0,))), False),
        (step(U, Node("exp", (0,)), Node("sub", (1, 1))), False),  # infinity less itself
        (step(U, Node("scalar", value=0.0), Node("prelu", (0, 1))), False),  # of a slope of zero
        (step(X, U, Node("prelu", (0, 1))), True),
        (step(X, Node("vector", name="b"), Node("add", (0, 1))), False),
        (step(Node("anchor"), anchor=Pool("x", "max", (2, 2), (2, 2), (0,) * 4)), True),
        (step(Node("anchor"), anchor=Window("x", (0, 0, 0))), True),
        (step(Node("anchor"), anchor=Window("x", (0, 0, 0), fill=1.0)), False),
        (step(Node("anchor"), anchor=Pool("u", "max", (2, 2), (2, 2), (0,) * 4)), False),
        (step(Node("anchor"), anchor=Conv(("x", "u"), np.zeros((2, 1, 1, 4), np.int8), (),
                                          (1, 1), (1, 1))), False),
        (step(X, U, Node("gate", (0, 1)), Node("sub", (2, 1)), gate=Gate(1.0, 0, 4, 0)), True),
        (step(X, U, Node("gate", (0, 1)), gate=Gate(1.0, 0, 4, 0)), False),
    ],
)  # fmt: skip
def test_what_is_zero_without_differences(kernel, nothing):
    assert rests_at_zero(kernel, {"x"}) == nothing


def test_without_differences_to_read_nothing_rests():
    assert not rests_at_zero(step(X), set())

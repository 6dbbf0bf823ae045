"""Epilogues as vector programs, and these as JSON."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.schedules.npu.program import epilogue_of, from_json, to_json
from resq_tvm.schedules.spec import (
    Choice,
    FusedKernel,
    GlobalMean,
    Node,
    Pool,
    Resize,
    Sparse,
    Store,
    TensorSpec,
    Walk,
    Window,
)
from resq_tvm.targets.npu.commands import Step
from tests.schedules.npu.kernels import CODE, codes, conv_anchor, floats, residual_kernel

NUMBERS = st.floats(width=32, allow_nan=False)
FACTS = st.one_of(
    st.booleans(), st.integers(-9, 9), NUMBERS, st.text(max_size=5),
    st.lists(st.integers(-9, 9), max_size=4).map(tuple),
)  # fmt: skip
STEPS = st.builds(
    Step,
    op=st.sampled_from(["read", "add", "quantize", "pool", "write"]),
    args=st.lists(st.integers(0, 30), max_size=2).map(tuple),
    value=NUMBERS,
    limit=st.integers(0, 127),
    index=st.integers(0, 9),
    table=st.dictionaries(st.text(min_size=1, max_size=6), FACTS, max_size=4).map(
        lambda d: tuple(sorted(d.items()))
    ),
)


@settings(max_examples=100, derandomize=True)
@given(programs=st.lists(st.lists(STEPS, max_size=6).map(tuple), max_size=3))
def test_programs_come_back_from_json_as_they_were(programs):
    assert from_json(to_json(programs)) == programs


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e-45, float(np.float32(0.1)), -0.0])
def test_numbers_come_back_to_the_bit(value):
    (step,) = from_json(to_json([(Step("scalar", value=value),)]))[0]
    assert np.float32(step.value).tobytes() == np.float32(value).tobytes()


X = floats("x", 6, 7, 5)
ANCHORS = {
    "pool": Pool("x", "max", (2, 3), (2, 1), (0, 1, 0, 1)),
    "mean": GlobalMean("x"),
    "resize": Resize("x", "linear", "half_pixel"),
    "window": Window("x", (0, -1, 2), (1, 1), -math.inf),
}


@pytest.mark.parametrize("name", ANCHORS)
def test_what_a_spatial_operator_has_to_know_comes_back_from_json(name):
    kernel = FusedKernel(
        "k", ANCHORS[name], 3, 4, 5, (X,), (floats("y", 3, 4, 5),), (Node("anchor"),),
        (Store(0, "y"),), CODE,
    )  # fmt: skip
    epilogue = epilogue_of(kernel, (), True)
    assert epilogue.anchored and [s.op for s in epilogue.steps] == [name, "write"]
    assert from_json(to_json([epilogue.steps])) == [epilogue.steps]
    facts = epilogue.steps[0].facts
    if name != "mean":
        assert facts["size"][:2] == (6, 7)
    assert hash(epilogue.steps) == hash(from_json(to_json([epilogue.steps]))[0])


def test_operands_are_numbered_reads_first(rng):
    kernel = residual_kernel(rng, conv_anchor(rng, (3,), 4), (codes("x0", 5, 5, 3),), 5, 5)
    epilogue = epilogue_of(kernel, (), True)
    assert (epilogue.loads, epilogue.vectors, epilogue.writes) == (("u",), ("scale",), ("q", "z"))
    found = [(s.op, s.index) for s in epilogue.steps if s.op in ("read", "write")]
    assert found == [("read", 0), ("read", 2), ("read", 1), ("write", 3), ("write", 4)]
    assert [s.op for s in epilogue.steps] == [
        "read", "read", "dequantize", "read", "add", "scalar", "max", "max", "sub", "quantize",
        "write", "write",
    ]  # fmt: skip


def test_a_tensor_that_is_read_twice_is_one_operand():
    nodes = (Node("load", name="a"), Node("load", name="a"), Node("add", (0, 1)))
    kernel = FusedKernel(
        "k", Walk(), 2, 2, 3, (floats("a", 2, 2, 3),), (floats("y", 2, 2, 3),), nodes,
        (Store(2, "y"),), CODE,
    )  # fmt: skip
    epilogue = epilogue_of(kernel, (), True)
    assert not epilogue.anchored and epilogue.loads == ("a",)
    assert [s.index for s in epilogue.steps] == [0, 0, 0, 1]


def test_a_choice_writes_codes_and_then_their_bits():
    nodes = (Node("load", name="a"), Node("quantize", (0,), value=2.0, limit=127))
    choice = Choice((0, 4, 8), (0, 4, 0), 1)
    bits = TensorSpec("q_bits", 2, 2, 1, "uint8", 1)
    kernel = FusedKernel(
        "k", Walk(), 2, 2, 3, (floats("a", 2, 2, 3),), (codes("q", 2, 2, 3),), nodes,
        (Store(1, "q", choice),), CODE, sparse=Sparse({}, False, {"q": bits}, 2, 0, 0, 0),
    )  # fmt: skip
    epilogue = epilogue_of(kernel, (0.5, 0.25), True)
    assert [s.op for s in epilogue.steps] == [
        "read",
        "quantize",
        "choose",
        "bits",
        "write",
        "write",
    ]
    assert epilogue.steps[2].facts == {"pool": (0, 4, 8), "shifts": (0, 4, 0), "threshold": 0.25}
    assert [(s.args, s.index) for s in epilogue.steps[-2:]] == [((2,), 1), ((3,), 2)]
    assert epilogue.writes == ("q", "q_bits")

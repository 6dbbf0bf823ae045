from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.s_tir import Schedule

from resq_tvm.errors import CompileError
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.signature import digest, kernel_of, signature
from resq_tvm.schedules.space import (
    as_sample,
    candidates,
    knobs,
    replay,
    schedule_function,
    stand_in,
    trace_of,
    tunable,
)
from resq_tvm.schedules.spec import FusedKernel, Node, Store, Walk
from resq_tvm.targets.preset import get_target
from tests.schedules.harness import TARGETS, check, float_tensor, residual_kernel, target_or_skip
from tests.schedules.test_conv import conv_of
from tests.schedules.tuning.kernels import convolution

TARGET = get_target("auto")


def test_numbers_do_not_make_a_task():
    assert signature(convolution(1)) == signature(convolution(2))


@pytest.mark.parametrize("other", [{"o": 48}, {"channels": (24,)}, {"channels": (8, 8)}, {"k": 1}])
def test_structure_makes_a_task(other):
    assert digest(signature(convolution())) != digest(signature(convolution(**other)))


def test_epilogues_make_a_task():
    kernel = convolution()
    fewer = FusedKernel(**{**vars(kernel), "stores": kernel.stores[:1]})
    assert signature(kernel) != signature(fewer)


@pytest.mark.parametrize(
    "shape", [{}, {"channels": (8, 5)}, {"o": 48, "channels": (48,), "groups": 48}]
)
def test_signatures_make_kernels_again(shape, rng):
    text = signature(convolution(**shape))
    kernel = kernel_of(text, TARGET)
    assert signature(kernel) == text
    check(kernel, TARGET, rng)
    for broken in ("{", "{}", text.replace("Conv", "Pool"), text.replace('"taps"', '"tips"')):
        with pytest.raises(CompileError, match="compile anew"):
            kernel_of(broken, TARGET)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("groups,o", [(1, 40), (48, 48)])
def test_every_decision_is_the_same_function(name, groups, o, rng):
    target = target_or_skip(name)
    anchor, inputs, h, w = conv_of(target, rng, (48,), o, (5, 7), groups=groups)
    kernel = residual_kernel(target, anchor, inputs, h, w, rng)
    found = candidates(kernel, target, threads=2)
    assert found[0] == decide(kernel, target)
    assert len({as_sample(d) for d in found}) == len(found) > 5
    for i in rng.choice(len(found), 6, replace=False):
        check(kernel, target, rng, decision=found[i])


@settings(max_examples=20)
@given(data=st.data())
def test_traces_replay(data):
    kernel = convolution(o=data.draw(st.sampled_from([16, 40, 64])))
    space = knobs(kernel, TARGET)
    decision = data.draw(st.sampled_from(candidates(kernel, TARGET)))
    trace = trace_of(kernel, space, decision, contest=2, code="abc")
    again, notes = replay(trace, stand_in(kernel), replace(decision, tile_x=99, prefetch=99))
    assert again == decision and notes == {"contest": 2, "code": "abc"}


def test_heuristics_beyond_the_space_replay():
    kernel = convolution()
    decision = replace(decide(kernel, TARGET), tile_x=27, prefetch=9)
    trace = trace_of(kernel, knobs(kernel, TARGET), decision)
    assert replay(trace, stand_in(kernel), decide(kernel, TARGET)) == (decision, {})


@pytest.mark.parametrize("seed", range(5))
def test_the_space_can_be_sampled(seed):
    kernel = convolution()
    space = knobs(kernel, TARGET)
    module = stand_in(kernel)
    trace = schedule_function(space)(Schedule(module, seed=seed + 1)).trace
    decision, _ = replay(trace, module, decide(kernel, TARGET))
    assert all(getattr(decision, name) in values for name, values in space.items())


def test_kernels_without_a_choice():
    plain = float_tensor("x", 4, 4, 8)
    nodes = (Node("load", name="x"),)
    out = float_tensor("y", 4, 4, 8)
    kernel = FusedKernel(
        "k", Walk(), 4, 4, 8, (plain,), (out,), nodes, (Store(0, "y"),), TARGET.code
    )
    assert not tunable(kernel, TARGET) and knobs(kernel, TARGET) == {}
    assert np.all([tunable(convolution(), TARGET)])

"""The order of bands: rows are written before they are read, and stay until they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from resq_tvm.schedules.npu.bands import (
    Stage,
    can_run_by_bands,
    order_of_bands,
    rows_between,
)
from resq_tvm.schedules.spec import (
    CodeFormat,
    Conv,
    FusedKernel,
    GlobalMean,
    Node,
    Phase,
    Pool,
    Resize,
    Store,
    TensorSpec,
    Walk,
    Window,
)


def spec(name, h):
    return TensorSpec(name, h, 4, 2, "float32", 2)


def kernel_of(anchor, h, inputs, loads=()):
    nodes = (Node("anchor"), *(Node("load", name=name) for name in loads))
    return FusedKernel(
        "k", anchor, h, 4, 2, inputs, (spec("y", h),), nodes, (Store(0, "y"),),
        CodeFormat("int8", 0),
    )  # fmt: skip


def conv(name, taps, stride, pad, dilation=1, phases=1):
    offsets = tuple((k, 0, k * dilation - pad, 0) for k in range(taps))
    weight = np.zeros((2, taps, 1, 2), np.int8)
    return Conv((name,), weight, (Phase(0, 0, offsets),) * phases, (stride, 1), (1, 1))


@st.composite
def cascades(draw):
    """Draw kernels that read what earlier ones write, or what comes from outside."""
    heights = {"outside": draw(st.integers(1, 24))}
    stages = []
    for number in range(draw(st.integers(2, 6))):
        key = draw(st.sampled_from(list(heights)[-3:]))
        size = heights[key]
        kind = draw(st.sampled_from(["conv", "conv", "pool", "resize", "window", "walk"]))
        stride = draw(st.integers(1, 3))
        if kind == "conv":
            taps, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
            reach = (taps - 1) * dilation
            pad = draw(st.integers(0, reach))
            h = (size + draw(st.integers(pad, reach)) - reach - 1) // stride + 1
            anchor = conv("x", taps, stride, pad, dilation)
        elif kind == "pool":
            taps = draw(st.integers(1, 3))
            pad = draw(st.integers(0, taps - 1))
            h = (size + 2 * pad - taps) // stride + 1
            anchor = Pool("x", "max", (taps, 1), (stride, 1), (pad, 0, pad, 0))
        elif kind == "resize":
            h = draw(st.integers(1, 2 * size))
            method = draw(st.sampled_from(["linear", "nearest_neighbor"]))
            anchor = Resize("x", method, "half_pixel")
        elif kind == "window":
            offset = draw(st.integers(-3, 3))
            h = draw(st.integers(1, size + 2))
            anchor = Window("x", (offset, 0, 0), (stride, 1))
        else:
            h, anchor = size, Walk()
        assume(h >= 1)
        loads, inputs, reads = [], [spec("x", size)], [key]
        if kind == "walk":
            loads.append("x")
        for other in list(heights):
            if heights[other] in (h, 1) and draw(st.booleans()):
                loads.append(f"e{len(inputs)}")
                inputs.append(spec(loads[-1], heights[other]))
                reads.append(other)
        kernel = kernel_of(anchor, h, tuple(inputs), loads)
        stages.append(Stage(kernel, draw(st.integers(1, h)), tuple(reads), (number,)))
        heights[number] = h
    return stages


def run(stages, turns, rings):
    """Play a cascade with circular buffers; returns whether every row that is read is there."""
    lying = {key: {} for key in rings}  # slot → row
    for number, band in turns:
        stage = stages[number]
        for key, (first, end) in stage.read(band):
            if key in rings:
                for row in range(first, end):
                    if lying[key].get(row % rings[key]) != row:
                        return False
        for key in stage.writes:
            for row in range(*stage.written(band)):
                lying[key][row % rings[key]] = row
    return True


@settings(max_examples=300, derandomize=True)
@given(stages=cascades(), ahead=st.integers(0, 2))
def test_every_row_is_there_when_it_is_read(stages, ahead):
    turns = order_of_bands(stages, ahead)
    for number, stage in enumerate(stages):
        assert [b for n, b in turns if n == number] == list(range(stage.bands))
    rings = rows_between(stages, turns)
    assert set(rings) == {key for stage in stages for key in stage.writes}
    assert run(stages, turns, rings)
    assert all(rings[n] >= min(s.rows, s.kernel.h) for n, s in enumerate(stages))


def test_a_chain_of_layers_holds_few_rows():
    stages = [
        Stage(kernel_of(conv("x", 3, 1, 1), 64, (spec("x", 64),)), 2, (n,), (n + 1,))
        for n in range(4)
    ]
    turns = order_of_bands(stages, 0)
    assert turns[:6] == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)]
    rings = rows_between(stages, turns)
    assert rings == {1: 5, 2: 5, 3: 5, 4: 2}
    for key in (1, 2, 3):
        assert not run(stages, turns, rings | {key: 4})
    ahead = rows_between(stages, order_of_bands(stages, 1))
    assert ahead == {1: 7, 2: 7, 3: 7, 4: 2}


def test_rows_that_nobody_reads_are_written_all_the_same():
    cut = kernel_of(Window("x", (0, 0, 0)), 3, (spec("x", 20),))
    stages = [Stage(kernel_of(Walk(), 20, (spec("x", 20),), ("x",)), 4, ("a",), ("b",)),
              Stage(cut, 1, ("b",), ("c",))]  # fmt: skip
    turns = order_of_bands(stages, 0)
    assert turns == [(0, 0), (1, 0), (1, 1), (1, 2), (0, 1), (0, 2), (0, 3), (0, 4)]


@pytest.mark.parametrize(
    "anchor,may",
    [
        (conv("x", 3, 2, 1), True),
        (conv("x", 3, 1, 1, phases=2), False),
        (GlobalMean("x"), False),
        (Walk(), True),
    ],
)
def test_kernels_that_need_all_rows_at_once_stay_out(anchor, may):
    assert can_run_by_bands(kernel_of(anchor, 4, (spec("x", 4),))) == may

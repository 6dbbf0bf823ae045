"""Sparse poolings, resizes, slices, means, walks and gates, as in `test_sparse`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.schedules.spec import (
    FusedKernel,
    Gate,
    GlobalMean,
    Node,
    Pool,
    Resize,
    Store,
    Walk,
    Window,
)
from resq_tvm.targets.preset import Target
from tests.schedules.harness import (
    TARGETS,
    code_tensor,
    float_tensor,
    target_or_skip,
)
from tests.schedules.sparse_harness import Stream
from tests.schedules.sparse_scenes import (
    KINDS,
    MODES,
    SEEDS,
    SHIFTS,
    SIZES,
    drawn,
    pattern,
    play,
    residual,
    with_maps,
)


@pytest.mark.parametrize("name", TARGETS)
@drawn
@given(data=st.data(), seed=SEEDS, hw=SIZES, mode=MODES)
def test_pool(name, data, seed, hw, mode):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    k = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads = tuple(data.draw(st.integers(0, n // 2)) for n in (*k, *k))
    hw = tuple(max(a, b) for a, b in zip(hw, k, strict=True))
    h, w = ((hw[i] + pads[i] + pads[i + 2] - k[i]) // stride[i] + 1 for i in range(2))
    # A last window may begin in the padding behind the input, where nothing can be averaged.
    h, w = (min(n, (hw[i] + pads[i] - 1) // stride[i] + 1) for i, n in enumerate((h, w)))
    c = data.draw(st.integers(1, 40))
    kind, inside = data.draw(st.sampled_from(["max", "avg"])), data.draw(st.booleans())
    anchor = Pool("x", kind, k, stride, pads, (1, 1), inside)
    inputs = (float_tensor("x", *hw, c, data.draw(st.booleans())),)
    kernel, pool = residual(target, anchor, inputs, (h, w, c), rng, mode)
    play(kernel, target, data, rng, pool)


@pytest.mark.parametrize("name", TARGETS)
@drawn
@given(data=st.data(), seed=SEEDS, hw=SIZES, size=SIZES, mode=MODES)
def test_resize(name, data, seed, hw, size, mode):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    method = data.draw(st.sampled_from(["linear", "nearest_neighbor"]))
    coordinate = data.draw(st.sampled_from(["half_pixel", "align_corners", "asymmetric"]))
    rounding = "round" if coordinate == "align_corners" else "floor"
    c = data.draw(st.integers(1, 40))
    inputs = (float_tensor("x", *hw, c, data.draw(st.booleans())),)
    anchor = Resize("x", method, coordinate, rounding)
    kernel, pool = residual(target, anchor, inputs, (*size, c), rng, mode)
    play(kernel, target, data, rng, pool)


@pytest.mark.parametrize("name", TARGETS)
@drawn
@given(data=st.data(), seed=SEEDS, hw=SIZES, size=SIZES, mode=MODES)
def test_slice_and_pad(name, data, seed, hw, size, mode):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    offset = tuple(data.draw(st.integers(-3, 3)) for _ in range(2))
    shift = data.draw(st.integers(-4, 4))
    stride = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    c, channels = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    anchor = Window("x", (*offset, shift), stride, 0.0)
    inputs = (float_tensor("x", *hw, channels, data.draw(st.booleans())),)
    kernel, pool = residual(target, anchor, inputs, (*size, c), rng, mode)
    play(kernel, target, data, rng, pool)


@pytest.mark.parametrize("name", TARGETS)
@drawn
@given(data=st.data(), seed=SEEDS, hw=SIZES, mode=MODES)
def test_mean(name, data, seed, hw, mode):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    c = data.draw(st.integers(1, 40))
    inputs = (float_tensor("x", *hw, c, data.draw(st.booleans())),)
    kernel, pool = residual(target, GlobalMean("x"), inputs, (1, 1, c), rng, mode)
    play(kernel, target, data, rng, pool)


@pytest.mark.parametrize("name", TARGETS)
@settings(parent=drawn, max_examples=5)
@given(
    data=st.data(), seed=SEEDS, hw=SIZES, c=st.one_of(st.integers(1, 5), st.integers(6, 40)),
    mode=MODES,
)  # fmt: skip
def test_walk(name, data, seed, hw, c, mode):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    extra = data.draw(st.sampled_from(["plane", "vector", "scalar"]))
    shapes = {"plane": (*hw, c), "vector": (1, 1, c), "scalar": (1, 1, 1)}
    pool = None if mode == "full" else data.draw(st.sampled_from(list(SHIFTS)))
    external = data.draw(st.booleans())
    nodes = [
        Node("load", name="x"),
        Node("load", name="y"),
        Node("add", (0, 1)),
        Node("vector", name="gain"),
        Node("mul", (2, 3)),
        Node("load", name="state"),
        Node("add", (4, 5)),
        Node("quantize", (4,), value=1.7, limit=127 if pool is None else 2 ** (pool[-1] - 1) - 1),
    ]
    small = c <= 4
    outputs = [float_tensor("delta" if mode == "codes" else "full", *hw, c, external or small)]
    stores = [Store(4 if mode == "codes" else 6, outputs[0].name)]
    if pool is not None:
        outputs.append(code_tensor(target, "q", *hw, c, (1, 1, 0, 2)))
        stores.append(Store(7, "q"))
    inputs = (
        float_tensor("x", *hw, c, external or small),
        float_tensor("y", *shapes[extra], True),
        float_tensor("state", *hw, c, external or small, "float16"),
    )
    kernel = FusedKernel(
        "walk", Walk(), *hw, c, inputs, tuple(outputs), tuple(nodes), tuple(stores), target.code,
        {"gain": rng.uniform(0.3, 2, c).astype(np.float32)},
    )  # fmt: skip
    play(kernel, target, data, rng, pool, shared=extra == "plane" and data.draw(st.booleans()))


def gated(
    target: Target, hw: tuple[int, int], c: int, block: int, reach: int, key_dtype: str
) -> FusedKernel:
    """Return the kernel of a frame: what passes the gate, as a float and as codes."""
    nodes = (
        Node("load", name="x"),
        Node("load", name="key"),
        Node("gate", (0, 1)),
        Node("sub", (2, 1)),
        Node("quantize", (3,), value=2.0, limit=127),
    )
    inputs = (
        float_tensor("x", *hw, c, True),
        float_tensor("key", *hw, c, True, key_dtype),
    )
    outputs = (float_tensor("full", *hw, c, True), code_tensor(target, "q", *hw, c, (0, 1, 2, 1)))
    gate = Gate(reciprocal=2.5, threshold=1, block=block, reach=reach)
    return FusedKernel(
        "gate", Walk(), *hw, c, inputs, outputs, nodes, (Store(2, "full"), Store(4, "q")),
        target.code, gate=gate,
    )  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
@settings(parent=drawn, max_examples=6)
@given(data=st.data(), seed=SEEDS, hw=SIZES, c=st.integers(1, 5), reach=st.integers(0, 2))
def test_gate(name, data, seed, hw, c, reach):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    block = data.draw(st.sampled_from([1, 2, 3, 4, 8]))
    if data.draw(st.booleans()):  # rows that are whole blocks take another path
        hw = (hw[0], -(-hw[1] // block) * block)
    dtype = data.draw(st.sampled_from(["float32", "float16"]))
    pool = data.draw(st.sampled_from(list(SHIFTS)[:3]))
    threshold = data.draw(st.sampled_from([0.0, 40.0, 500.5, 3e9]))
    kernel = with_maps(gated(target, hw, c, block, reach, dtype), {}, {"q": pool})
    stream = Stream(kernel, target, full=True, thresholds=[1.5, threshold])
    for _ in range(2):
        key = rng.integers(-20, 21, (*hw, c)).astype(np.float32)
        stream.keyframe({"x": key, "key": key})
        for kind in rng.permutation([*KINDS, "none"]):
            x = key + 0.3 * rng.standard_normal(key.shape) * rng.integers(2)
            change = rng.choice([0.5, 5, 300]) * rng.standard_normal(key.shape)
            x = x + change * (pattern(rng, kind, *hw) > 0)[..., None]
            stream.frame({"x": x.astype(np.float32)}, {})
        stream.frame({"x": key}, {})
        assert not stream.flags.any()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("hw,c,block", [((6, 13), 3, 2), ((5, 14), 1, 3), ((9, 21), 4, 8)])
def test_gate_with_blocks_that_do_not_divide_rows(name, hw, c, block, rng):
    target = target_or_skip(name)
    kernel = with_maps(gated(target, hw, c, block, 0, "float32"), {}, {"q": (0, 8)})
    # About what a block of noise has, so that some are above it.
    expected = block**2 * c * (4 * 2.5) ** 2
    stream = Stream(kernel, target, full=True, thresholds=[1.5, expected])
    key = rng.integers(-20, 21, (*hw, c)).astype(np.float32)
    stream.keyframe({"x": key, "key": key})
    shares = []
    for _ in range(6):
        x = key + 4 * rng.standard_normal(key.shape).astype(np.float32)
        stream.frame({"x": x}, {})
        shares.append(float(stream.view("changed").mean()))
    assert 0 < np.mean(shares) < 1

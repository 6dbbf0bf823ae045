"""Sparse kernels keep exactly what dense ones would compute, and write only what changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st

from resq_tvm.device import available_cpus, prepare_thread_pool
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.listing import RUN
from resq_tvm.schedules.spec import (
    Conv,
    FloatConv,
    GlobalMean,
    Node,
    Phase,
    Pool,
    Resize,
    Walk,
    Window,
)
from resq_tvm.targets.preset import get_target
from tests.schedules.harness import (
    TARGETS,
    code_tensor,
    conv_phase,
    float_tensor,
    halo_for,
    target_or_skip,
)
from tests.schedules.sparse_harness import Stream
from tests.schedules.sparse_scenes import (
    KINDS,
    MODES,
    SEEDS,
    SIZES,
    Scene,
    drawn,
    play,
    residual,
    square,
    with_maps,
)


def padded(data: Any, k: tuple[int, int], dilation: int) -> list[tuple[int, int]]:
    """Draw the padding before and after, by axis."""
    most = [dilation * (n - 1) for n in k]
    return [(data.draw(st.integers(0, m)), data.draw(st.integers(0, m))) for m in most]


@pytest.mark.parametrize("name", TARGETS)
@drawn
@given(data=st.data(), seed=SEEDS, hw=SIZES, mode=MODES, shared=st.booleans())
def test_convolution(name, data, seed, hw, mode, shared):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    groups = data.draw(st.sampled_from([1, 1, 2]))
    count = 1 if groups > 1 else data.draw(st.integers(1, 3))
    channels = [groups * data.draw(st.integers(1, 20)) for _ in range(count)]
    o = groups * data.draw(st.integers(1, 33))
    k = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    pads = padded(data, k, dilation)
    spans = [dilation * (n - 1) + 1 for n in k]
    hw = tuple(max(n, s - sum(p)) for n, s, p in zip(hw, spans, pads, strict=True))
    h, w = ((n + sum(p) - s) // stride + 1 for n, p, s in zip(hw, pads, spans, strict=True))
    weight = rng.integers(-127, 128, (o, *k, sum(channels) // groups)).astype(np.int8)
    phase = conv_phase(k, (dilation, dilation), (pads[0][0], pads[1][0]))
    names = tuple(f"x{i}" for i in range(count))
    anchor = Conv(names, weight, (phase,), (stride, stride), (1, 1), groups)
    halo = halo_for(anchor, *hw, h, w)
    inputs = tuple(
        code_tensor(target, n, *hw, c, halo) for n, c in zip(names, channels, strict=True)
    )
    skip = data.draw(st.booleans())
    kernel, pool = residual(target, anchor, inputs, (h, w, o), rng, mode, skip and not shared)
    tile = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2)))
    play(kernel, target, data, rng, pool, shared, Decision("drawn", "dot", *tile))


@pytest.mark.parametrize("name", [n for n in TARGETS if not get_target(n).arm])
@drawn
@given(data=st.data(), seed=SEEDS, hw=SIZES, mode=MODES, shared=st.booleans())
def test_gathered_pixels(name, data, seed, hw, mode, shared):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    h, w = hw = (max(hw[0], RUN), hw[1])
    channels = [data.draw(st.integers(1, 20)) for _ in range(data.draw(st.integers(1, 3)))]
    o = data.draw(st.integers(1, 70))
    weight = rng.integers(-127, 128, (o, 1, 1, sum(channels))).astype(np.int8)
    names = tuple(f"x{i}" for i in range(len(channels)))
    anchor = Conv(names, weight, (Phase(0, 0, ((0, 0, 0, 0),)),), (1, 1), (1, 1))
    inputs = tuple(
        code_tensor(target, n, *hw, c, (0, 0, 0, 0)) for n, c in zip(names, channels, strict=True)
    )
    skip = data.draw(st.booleans())
    kernel, pool = residual(target, anchor, inputs, (h, w, o), rng, mode, skip and not shared)
    tile = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2)))
    ahead = data.draw(st.integers(0, 2))
    decision = Decision("drawn", "dot", *tile, prefetch=ahead, gather=True)
    play(kernel, target, data, rng, pool, shared, decision)


@pytest.mark.parametrize("name", TARGETS)
@drawn
@given(data=st.data(), seed=SEEDS, hw=SIZES, mode=MODES)
def test_depthwise(name, data, seed, hw, mode):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    c, k = data.draw(st.integers(2, 40)), data.draw(st.integers(1, 5))
    stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    pads = padded(data, (k, k), dilation)
    span = dilation * (k - 1) + 1
    hw = tuple(max(n, span - sum(p)) for n, p in zip(hw, pads, strict=True))
    h, w = ((n + sum(p) - span) // stride + 1 for n, p in zip(hw, pads, strict=True))
    weight = rng.integers(-127, 128, (c, k, k, 1)).astype(np.int8)
    phase = conv_phase((k, k), (dilation, dilation), (pads[0][0], pads[1][0]))
    anchor = Conv(("x",), weight, (phase,), (stride, stride), (1, 1), c)
    inputs = (code_tensor(target, "x", *hw, c, halo_for(anchor, *hw, h, w)),)
    kernel, pool = residual(target, anchor, inputs, (h, w, c), rng, mode)
    play(kernel, target, data, rng, pool)


def transposed(k: int, stride: int, pad: int) -> tuple[Phase, ...]:
    """Return the phases of a transposed convolution."""

    def reach(offset: int) -> list[tuple[int, int]]:
        taps = ((t, offset + pad - t) for t in range(k))
        return [(t, d // stride) for t, d in taps if d % stride == 0]

    return tuple(
        Phase(oy, ox, tuple((ky, kx, dy, dx) for ky, dy in reach(oy) for kx, dx in reach(ox)))
        for oy in range(stride)
        for ox in range(stride)
    )


@pytest.mark.parametrize("name", TARGETS)
@drawn
@given(data=st.data(), seed=SEEDS, hw=st.tuples(st.integers(2, 7), st.integers(2, 13)), mode=MODES)
def test_transposed_convolution(name, data, seed, hw, mode):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    k, stride = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 3))
    pad = data.draw(st.integers(0, 1))
    c, o = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    h, w = ((n - 1) * stride - 2 * pad + k for n in hw)
    weight = rng.integers(-127, 128, (o, k, k, c)).astype(np.int8)
    anchor = Conv(("x",), weight, transposed(k, stride, pad), (1, 1), (stride, stride))
    inputs = (code_tensor(target, "x", *hw, c, halo_for(anchor, *hw, h, w)),)
    kernel, pool = residual(target, anchor, inputs, (h, w, o), rng, mode, skip=True)
    tile = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2), st.just(1)))
    play(kernel, target, data, rng, pool, decision=Decision("drawn", "dot", *tile))


@pytest.mark.parametrize("name", TARGETS)
@drawn
@given(data=st.data(), seed=SEEDS, hw=st.tuples(st.integers(3, 6), st.integers(3, 12)), mode=MODES)
def test_float_convolution(name, data, seed, hw, mode):
    target, rng = target_or_skip(name), np.random.default_rng(seed)
    kind = data.draw(st.sampled_from(["dense", "depthwise", "transposed"]))
    c = data.draw(st.integers(2, 19))
    o = c if kind == "depthwise" else data.draw(st.integers(1, 19))
    weight = rng.integers(-8, 9, (o, 3, 3, 1 if kind == "depthwise" else c)).astype(np.float32)
    if kind == "transposed":
        anchor = FloatConv(("x",), weight, transposed(3, 2, 1), (1, 1), (2, 2))
        h, w = (2 * n - 1 for n in hw)
    else:
        stride = data.draw(st.integers(1, 2))
        groups = c if kind == "depthwise" else 1
        phase = conv_phase((3, 3), (1, 1), (1, 0))
        anchor = FloatConv(("x",), weight, (phase,), (stride, stride), (1, 1), groups)
        h, w = -(-hw[0] // stride), (hw[1] - 3) // stride + 1
    inputs = (float_tensor("x", *hw, c, data.draw(st.booleans())),)
    kernel, pool = residual(target, anchor, inputs, (h, w, o), rng, mode)
    play(kernel, target, data, rng, pool)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["convolution", "pool", "resize", "slice", "mean", "walk"])
def test_only_tiles_in_reach_are_computed(name, kind, rng):
    target, hw, c = target_or_skip(name), (16, 96), 8
    x = (float_tensor("x", *hw, c),)
    anchor, plane = {
        "convolution": (None, hw),
        "pool": (Pool("x", "max", (3, 3), (2, 2), (1, 1, 1, 1)), (8, 48)),
        "resize": (Resize("x", "linear", "half_pixel"), (32, 192)),
        "slice": (Window("x", (3, 20, 0)), (10, 50)),
        "mean": (GlobalMean("x"), (1, 1)),
        "walk": (Window("x", (0, 0, 0)), hw),
    }[kind]
    if anchor is None:
        anchor, x = square(target, hw, c, rng)
    kernel, pool = residual(target, anchor, x, (*plane, c), rng, "codes")
    if kind == "walk":
        nodes = (Node("load", name="x"), *kernel.nodes[1:])
        kernel = replace(kernel, anchor=Walk(), nodes=nodes)
    stream = Stream(with_maps(kernel, {"x": "seen"}, {"q": pool}), target, False, [0.0])
    Scene(stream, rng).keyframe()
    rest = stream.view("delta").copy()
    for y, column in ((7, 37), (8, 58), (9, 31)):
        seen, value = np.zeros(hw, np.uint8), stream.rest["x"].copy()
        seen[y, column], value[y, column] = 8, 100
        work = stream.frame({"x": value}, {"seen": seen})
        differs = (stream.view("delta") != rest)[0].any(-1)
        assert work.active.tolist() == [bool(differs[tile].any()) for tile in stream.tiles]
        assert work.active.sum() < len(stream.tiles) or kind == "mean"


@pytest.mark.parametrize("name", TARGETS)
def test_choices_where_tiles_overlap(name, rng):
    target, hw, c = target_or_skip(name), (5, 7), 12
    anchor, inputs = square(target, hw, c, rng)
    kernel, _ = residual(target, anchor, inputs, (*hw, c), rng, "codes")
    finest = Node("quantize", kernel.nodes[-1].args, value=1.0, limit=127)
    kernel = replace(kernel, nodes=(*kernel.nodes[:-1], finest))
    sparse = with_maps(kernel, {"x": "seen"}, {"q": (0, 4, 8)})
    scene = Scene(Stream(sparse, target, False, [20.0], Decision("k", "dot", 2, 4)), rng)
    scene.keyframe()
    bits = scene.stream.view("q_bits")
    seen: set[int] = set()
    for _ in range(8):
        scene.frame(["all"])
        seen |= {int(b) for b in bits.ravel()}
    assert seen == {0, 4, 8}


@pytest.mark.parametrize("name", TARGETS)
def test_a_kernel_whose_input_may_change_anywhere(name, rng):
    target = target_or_skip(name)
    anchor, inputs = square(target, (5, 9), 12, rng)
    kernel, _ = residual(target, anchor, inputs, (5, 9, 12), rng, "both")
    sparse = with_maps(kernel, {}, {"q": (0, 8)}, everywhere=True)
    stream = Stream(sparse, target, full=True, thresholds=[1.5])
    Scene(stream, rng).keyframe()
    for most in (127, 0, 3):
        x = rng.integers(-most, most + 1, (5, 9, 12)).astype(np.int32)
        assert stream.frame({"x": x}, {}).active.all()


def test_two_threads_share_the_tiles(rng):
    target = get_target("auto")
    if available_cpus() < 2:
        pytest.skip("one CPU")
    anchor, inputs = square(target, (37, 61), 24, rng)
    kernel, pool = residual(target, anchor, inputs, (37, 61, 24), rng, "both")

    def run() -> int:
        stream = Stream(with_maps(kernel, {"x": "seen"}, {"q": pool}), target, True, [8.0])
        stream.threads = 2
        scene = Scene(stream, rng)
        scene.keyframe()
        for kind in (*KINDS, "none", "few", "few"):
            scene.frame([kind])
        return int(tvm.get_global_func("runtime.NumThreads")())

    # A pool belongs to the thread that first used it: this one's may be too small already.
    prepare_thread_pool()
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(run).result() == 2


class Careless(Stream):
    """Does one wrong thing per frame."""

    mistake = ""

    def _launch(self, inputs: dict[str, Any], maps: dict[str, Any]) -> None:
        if self.mistake == "computes too much":
            self.flags[0] = 2
        super()._launch(inputs, maps)
        if self.mistake == "writes":
            self.view("delta")[0, 0, 0, 0] = 0
        if self.mistake == "miscounts":
            self.view("counts")[0] = 1


@pytest.mark.parametrize(
    "mistake,message",
    [
        ("", None),
        ("computes too much", "its counts"),
        ("writes", "delta was written"),
        ("miscounts", "counts of other kernels"),
        ("overlooks", "delta changed unmarked"),
    ],
)
def test_mistakes_are_noticed(mistake, message, rng):
    target = get_target("auto")
    anchor, inputs = square(target, (6, 40), 8, rng)
    kernel, pool = residual(target, anchor, inputs, (6, 40, 8), rng, "codes")
    stream = Careless(with_maps(kernel, {"x": "seen"}, {"q": pool}), target, False, [1.5])
    Scene(stream, rng).keyframe()
    seen, value = np.zeros((6, 40), np.uint8), stream.rest["x"].copy()
    value[3, 30], seen[3, 30] = 100, 0 if mistake == "overlooks" else 8
    stream.mistake = mistake
    with nullcontext() if message is None else pytest.raises(AssertionError, match=message):
        stream.frame({"x": value}, {"seen": seen})

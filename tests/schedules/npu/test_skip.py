"""Kernels that skip tiles: frame after frame on one machine, with junk where nothing changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.schedules import meaning
from resq_tvm.schedules.npu.emit import fits
from resq_tvm.schedules.npu.single import ENTRY, single
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import (
    Conv,
    FusedKernel,
    Gate,
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
from resq_tvm.targets.npu.functional import Machine
from tests.schedules.npu.harness import machine, no_races, orders
from tests.schedules.npu.kernels import (
    CODE,
    codes,
    conv_anchor,
    decisions,
    floats,
    limit,
    transposed_anchor,
)

MEMORIES = st.sampled_from(("", "sram"))


def seen(name, spec, memory=""):
    return TensorSpec(f"{name}_map", spec.h, spec.w, 1, "uint8", 1, memory=memory)


def residual_step(rng, anchor, inputs, plane, memories=("", ""), bits=8):
    """Return a kernel of differences: ``clip(u + conv(x) + d) − clip(u)``, as floats and codes."""
    h, w, c = plane
    delta, state = floats("d", h, w, c), floats("u", h, w, c, "float16")
    code = 0 if isinstance(anchor, Conv) else None
    nodes = [Node("anchor")] if not isinstance(anchor, Walk) else [Node("load", name="d")]
    if code is not None:
        nodes += [Node("vector", name="scale"), Node("dequantize", (0, 1))]
    n = len(nodes) - 1
    nodes += [
        Node("load", name="d"), Node("add", (n, n + 1)), Node("load", name="u"),
        Node("add", (n + 2, n + 3)), Node("scalar", value=0.0), Node("max", (n + 4, n + 5)),
        Node("max", (n + 3, n + 5)), Node("sub", (n + 6, n + 7)),
        Node("quantize", (n + 8,), value=float(np.float32(9.0)), limit=limit(bits)),
    ]  # fmt: skip
    scale = rng.uniform(1e-4, 1e-3, c).astype(np.float32)
    maps = {s.name: seen(s.name, s, memories[0]) for s in (*inputs, delta)}
    z = floats("z", h, w, c, memory=memories[1])
    q = codes("q", h, w, c, bits, memories[1])
    out = TensorSpec("out_map", h, w, 1, "uint8", 1, memory=memories[0])
    return FusedKernel(
        "step", anchor, h, w, c, (*inputs, delta, state), (z, q), tuple(nodes),
        (Store(n + 8, "z"), Store(n + 9, "q")), CODE, {"scale": scale} if code == 0 else {},
        sparse=Sparse(maps, False, {"z": out, "q": out}, 0, 0, 0, 0),
    )  # fmt: skip


def masks(rng, spec, share):
    """Return a map: rectangles of bits, or nothing."""
    found = np.zeros((spec.h, spec.w, 1), np.uint8)
    if rng.random() < share:
        y, x = rng.integers(spec.h), rng.integers(spec.w)
        found[y : y + rng.integers(1, 4), x : x + rng.integers(1, 4)] = 8
    return found


def draw_frame(rng, kernel, share):
    """Return a frame's inputs as they lie in memory, and as they are meant."""
    inputs = meaning.random_inputs(kernel, rng)
    given_, meant = {}, {}
    for spec in kernel.inputs:
        shape = (spec.h, spec.w, spec.c)
        one = kernel.sparse.maps.get(spec.name)
        if one is None:
            given_[spec.name] = meant[spec.name] = inputs[spec.name]
            continue
        bits = masks(rng, one, share)
        junk = np.full(shape, np.nan if spec.dtype == "float32" else 77)
        if spec.dtype == "int8":
            most = limit(spec.bits)
            junk = rng.integers(-most, most + 1, shape)
            inputs[spec.name] = rng.integers(-most, most + 1, shape)
        given_[spec.name] = np.where(bits != 0, inputs[spec.name], junk).astype(spec.dtype)
        given_[one.name] = bits
        meant[spec.name] = np.where(bits != 0, inputs[spec.name], 0).astype(
            "float32" if spec.dtype == "float32" else "int64"
        )
    return given_, meant


def check_frames(kernel, decision, target, rng, shares=(1, 0, 1, 0.5)):
    """Run frames one after the other; return how many commands each skipped."""
    made = single(kernel, decision, target)
    stream = made.stream
    program = stream.programs[ENTRY]
    no_races(stream, program)
    skipped = []
    frames = [draw_frame(rng, kernel, share) for share in shares]
    for name, order in orders(target.npu, stream, ENTRY):
        device = Machine(target.npu, stream, _with_junk(made))
        for number, (given_, meant) in enumerate(frames):
            for tensor, value in given_.items():
                device.write(made.tensors[tensor], value)
            executed = device.run(ENTRY, order=order)
            wanted = meaning.run(kernel, meant)
            for store in kernel.stores:
                one = kernel.sparse.out_maps[store.name]
                bits = device.read(made.tensors[one.name])
                found = device.read(made.tensors[store.name])
                what = f"{store.name} of frame {number} ({name})"
                np.testing.assert_array_equal(
                    np.where(bits != 0, found, 0), wanted[store.name], err_msg=what
                )
            skipped.append(len(executed.skipped))
    return skipped[: len(shares)], program


def _with_junk(made):
    """Return the DRAM image with constants, and junk where tensors lie."""
    dram = made.dram.copy()
    for place in made.tensors.values():
        if place.memory == "dram":
            junk = np.random.default_rng(7).integers(0, 256, place.nbytes, np.uint8)
            dram[place.address : place.address + place.nbytes] = junk
    return dram


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_convolutions(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    draw = data.draw
    taps = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    depthwise = draw(st.booleans())
    bits = draw(st.sampled_from((4, 8)))
    channels = (8,) if depthwise else draw(st.sampled_from(((3,), (5, 4))))
    out = 8 if depthwise else draw(st.sampled_from((5, 20)))
    h, w = draw(st.integers(3, 17)), draw(st.integers(3, 19))
    high = (h - 1) * stride[0] + (taps[0] - 1) * dilation[0] + draw(st.integers(0, 2))
    wide = (w - 1) * stride[1] + (taps[1] - 1) * dilation[1] + draw(st.integers(0, 2))
    anchor = conv_anchor(
        rng, channels, out, taps=taps, stride=stride, dilation=dilation,
        groups=8 if depthwise else 1, bits=(8, bits),
    )  # fmt: skip
    inputs = tuple(
        codes(f"x{i}", max(1, high), max(1, wide), c, bits, draw(MEMORIES))
        for i, c in enumerate(channels)
    )
    kernel = residual_step(rng, anchor, inputs, (h, w, out), (draw(MEMORIES), draw(MEMORIES)))
    decision = decisions(draw, h, w, 3)
    target = machine()
    if fits(kernel, decision, target):
        skipped, program = check_frames(kernel, decision, target, rng)
        flagged = sum(c.flag is not None for c in program.commands)
        assert flagged and skipped[1] == flagged > skipped[0]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_transposed_convolutions(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    draw = data.draw
    stride = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    taps = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    anchor = transposed_anchor(rng, 4, 5, taps=taps, stride=stride, pad=(1, 0))
    x = codes("x0", draw(st.integers(3, 8)), draw(st.integers(3, 8)), 4)
    h, w = x.h * stride[0], x.w * stride[1]
    kernel = residual_step(rng, anchor, (x,), (h, w, 5), (draw(MEMORIES), draw(MEMORIES)))
    decision = decisions(draw, -(-h // stride[0]), -(-w // stride[1]), 2)
    if fits(kernel, decision, machine()):
        check_frames(kernel, decision, machine(), rng)


ANCHORS = {
    "pool": lambda: Pool("x", "max", (3, 2), (2, 1), (1, 0, 1, 1), (1, 1), True),
    "mean": lambda: Pool("x", "avg", (2, 2), (2, 1), (0, 0, 0, 1), (1, 1), False),
    "resize": lambda: Resize("x", "linear", "half_pixel"),
    "window": lambda: Window("x", (-1, 2, 1), (2, 1), 0.0),
    "global": lambda: GlobalMean("x"),
    "walk": lambda: Walk(),
}


@pytest.mark.parametrize("name", ANCHORS)
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_spatial_operators(name, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    draw = data.draw
    anchor = ANCHORS[name]()
    x = floats("x", 13, 11, 6, memory=draw(MEMORIES))
    h, w = {"pool": (7, 11), "mean": (6, 11), "resize": (21, 17), "window": (8, 9),
            "global": (1, 1), "walk": (13, 11)}[name]  # fmt: skip
    inputs = () if name == "walk" else (x,)
    c = 5 if name == "window" else 6
    kernel = residual_step(rng, anchor, inputs, (h, w, c), (draw(MEMORIES), draw(MEMORIES)))
    decision = decisions(draw, h, w, 1)
    if fits(kernel, decision, machine()):
        skipped, _ = check_frames(kernel, decision, machine(), rng)
        assert skipped[1] > 0


def test_a_gate_leaves_blocks_out(rng):
    h, w, c = 20, 28, 3
    nodes = (
        Node("load", name="x"), Node("load", name="k"), Node("gate", (0, 1)), Node("sub", (2, 1)),
        Node("quantize", (3,), value=50.0, limit=127),
    )  # fmt: skip
    out = TensorSpec("out_map", h, w, 1, "uint8", 1, memory="sram")
    kernel = FusedKernel(
        "gate", Walk(), h, w, c, (floats("x", h, w, c), floats("k", h, w, c)),
        (codes("q", h, w, c),), nodes, (Store(4, "q"),), CODE,
        gate=Gate(50.0, 0, 4, 1), sparse=Sparse({}, False, {"q": out}, 0, 0, 0, 0),
    )  # fmt: skip
    target = machine()
    decision = replace(decide(kernel, target), tile_y=8, tile_x=8)
    made = single(kernel, decision, target, (0.5,))
    no_races(made.stream, made.stream.programs[ENTRY])
    device = Machine(target.npu, made.stream, made.dram)
    key = rng.random((h, w, c), np.float32)
    device.write(made.tensors["k"], key)
    flagged = sum(command.flag is not None for command in made.stream.programs[ENTRY].commands)
    for frame, left_out in ((key, True), (key + 1, False), (key, True)):
        device.write(made.tensors["x"], frame)
        executed = device.run(ENTRY)
        assert len(executed.skipped) == (flagged if left_out else 0)
        bits = device.read(made.tensors["out_map"])
        assert (bits != 0).all() != left_out and bits.any() != left_out
    one = key.copy()
    one[9, 9] += 1
    device.write(made.tensors["x"], one)
    assert 0 < len(device.run(ENTRY).skipped) < flagged
    found = np.where(device.read(made.tensors["out_map"]) != 0, device.read(made.tensors["q"]), 0)
    assert (found[9, 9] == 50).all() and np.count_nonzero(found) == c

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.errors import ArtifactError
from resq_tvm.passes.policy import Gate
from resq_tvm.reference import ops_policy
from resq_tvm.schedules import meaning
from resq_tvm.schedules.spec import GlobalMean, Node, Pool, Resize, Store, Walk, Window
from resq_tvm.targets.npu.commands import Step, Vector
from tests.targets.npu.machines import Bench, kernel_of, steps_of, tensor, whole

SHAPE = (3, 5, 6)
READ, NOTHING = Step("read"), Step("nothing")


def floats(rng, shape):
    value = (rng.standard_normal(shape) * 4).astype(np.float32)
    value.flat[:2] = 0, -0.0
    return value


def same_bits(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(
        np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8)
    )


BINARY = ["add", "sub", "mul", "div", "max", "min", "prelu"]
UNARY = ["neg", "abs", "exp", "sigmoid", "tanh", "sqrt", "erf", "round16"]


@pytest.mark.parametrize("op", BINARY + UNARY)
def test_every_operation_is_that_of_the_fused_kernel(op, rng):
    args = (0, 1) if op in BINARY else (0,)
    nodes = (
        Node("load", name="a"),
        Node("load", name="b"),
        Node(op, args),
        Node("mul", (2, 0)),  # the operand is read again: nothing may have overwritten it
    )
    kernel = kernel_of(
        Walk(),
        (tensor("a", *SHAPE), tensor("b", *SHAPE)),
        (tensor("y", *SHAPE), tensor("z", *SHAPE)),
        nodes,
        (Store(2, "y"), Store(3, "z")),
    )
    inputs = {"a": floats(rng, SHAPE), "b": floats(rng, SHAPE)}
    if op == "sqrt":
        inputs["a"] = np.abs(inputs["a"])
    bench = Bench()
    results = [bench.blank(*SHAPE, "f32") for _ in "yz"]
    operands = (*(bench.put(inputs[n], "f32") for n in "ab"), *results)
    program = bench.program(*steps_of(kernel, NOTHING, {"a": 0, "b": 1, "y": 2, "z": 3}))
    bench.run(whole(program, operands, *SHAPE))
    with np.errstate(all="ignore"):
        expected = meaning.run(kernel, inputs)
    same_bits(bench.get(operands[2]), expected["y"])
    same_bits(bench.get(operands[3]), expected["z"])


EPILOGUE = (
    Node("anchor"),
    Node("vector", name="scale"),
    Node("dequantize", (0, 1)),
    Node("vector", name="bias"),
    Node("add", (2, 3)),
    Node("load", name="key"),
    Node("add", (4, 5)),
    Node("scalar", value=0.0),
    Node("max", (6, 7)),
    Node("load", name="gain"),
    Node("mul", (8, 9)),
    Node("round16", (10,)),
    Node("sub", (10, 5)),
    Node("quantize", (12,), value=3.0, limit=7),
)


@pytest.mark.parametrize("codes", ["c4", "c8"])
def test_a_residual_epilogue_is_bit_exact(codes, rng):
    """Accumulators, vectors, a float16 keyframe value, a tensor of one pixel; three results."""
    vectors = {n: floats(rng, 6) for n in ("scale", "bias")}
    outputs = (tensor("y", *SHAPE), tensor("s", *SHAPE, "float16"), tensor("q", *SHAPE, "int8"))
    kernel = kernel_of(
        Walk(),
        (tensor("key", *SHAPE, "float16"), tensor("gain", 1, 1, 6)),
        outputs,
        EPILOGUE,
        (Store(10, "y"), Store(11, "s"), Store(13, "q")),
        vectors,
    )
    acc = rng.integers(-(1 << 27), 1 << 27, SHAPE, np.int32)
    inputs = {"key": floats(rng, SHAPE).astype(np.float16), "gain": floats(rng, (1, 1, 6))}
    # `run` knows accumulators only as an anchor's; a kernel of codes stands in for them here.
    nodes = (Node("load", name="acc"), *EPILOGUE[1:])
    as_loaded = kernel_of(
        Walk(),
        (tensor("acc", *SHAPE, "int8"), *kernel.inputs),
        outputs,
        nodes,
        kernel.stores,
        vectors,
    )
    expected = meaning.run(as_loaded, {"acc": acc, **inputs})

    bench = Bench()
    names = {"acc": 0, "scale": 1, "bias": 2, "key": 3, "gain": 4, "y": 5, "s": 6, "q": 7}
    operands = (
        bench.put(acc, "i32"),
        *(bench.put(vectors[n].reshape(1, 1, -1), "f32") for n in ("scale", "bias")),
        bench.put(inputs["key"], "f16"),
        bench.put(inputs["gain"], "f32"),
        bench.blank(*SHAPE, "f32"),
        bench.blank(*SHAPE, "f16"),
        bench.blank(*SHAPE, codes, gap=1),
    )
    bench.run(whole(bench.program(*steps_of(kernel, READ, names)), operands, *SHAPE))
    same_bits(bench.get(operands[5]), expected["y"])
    same_bits(bench.get(operands[6]), expected["s"])
    same_bits(bench.get(operands[7]), expected["q"])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("c", [1, 3, 4])
def test_packed_codes_leave_their_neighbours_alone(bits, c, rng):
    bench = Bench()
    limit = (1 << (bits - 1)) - 1
    value = rng.integers(-limit, limit + 1, (2, 3, c)).astype(np.float32)
    source, target = bench.put(value, "f32"), bench.blank(2, 3, c, f"c{bits}", gap=2)
    program = bench.program(
        Step("read"), Step("quantize", (0,), 1.0, limit), Step("write", (1,), index=1)
    )
    bench.run(whole(program, (source, target), 2, 3, c))
    before, after = bench.before, bench.machine.sram
    np.testing.assert_array_equal(bench.get(target), value.astype(np.int32))
    nbytes = -(-c * bits // 8)
    inside = np.zeros(after.size, bool)
    for pixel in range(6):
        inside[target.address + pixel * target.pixel :][:nbytes] = True
    np.testing.assert_array_equal(after[~inside], before[~inside])
    if c * bits % 8:
        last = after[target.address + nbytes - 1 :: target.pixel][:6]
        assert not (last >> (c * bits % 8)).any()


def test_what_has_one_row_is_spread_over_what_is_written(rng):
    bench = Bench()
    value = rng.integers(-7, 8, (1, 4, 1)).astype(np.float32)
    source, target = bench.put(value, "f32"), bench.blank(3, 4, 5, "c4")
    program = bench.program(
        Step("read"), Step("quantize", (0,), 1.0, 7), Step("write", (1,), index=1)
    )
    bench.run(whole(program, (source, target), 3, 4, 5))
    np.testing.assert_array_equal(
        bench.get(target), np.broadcast_to(value, (3, 4, 5)).astype(np.int32)
    )


# --- operators that read more than one pixel ---------------------------------------------------


def tiles(data, h, w):
    y0 = data.draw(st.integers(0, h - 1), "y0")
    x0 = data.draw(st.integers(0, w - 1), "x0")
    return y0, x0, data.draw(st.integers(1, h - y0), "h"), data.draw(st.integers(1, w - x0), "w")


def run_tile(kernel, step, x, tile, part, fmt="f32"):
    """Run a tile of a kernel on a part of its input (top, left, bottom, right; exclusive)."""
    y0, x0, h, w = tile
    top, left, bottom, right = part
    c = kernel.c
    bench = Bench()
    source = bench.put(x[top:bottom, left:right], fmt)
    target = bench.blank(h, w, c, "f32")
    program = bench.program(*steps_of(kernel, step, {"y": 1}))
    bench.run(Vector(program, h, w, c, (source, target), (y0, x0, 0), (top, left)))
    return bench.get(target)


def anchored(anchor, size, h, w, c):
    return kernel_of(
        anchor,
        (tensor("x", *size),),
        (tensor("y", h, w, c),),
        (Node("anchor"), Node("scalar", value=2.0), Node("add", (0, 1))),
        (Store(2, "y"),),
    )


def span(first, last, size):
    """Clip a range of positions to an axis; never empty."""
    low = min(max(first, 0), size - 1)
    return low, max(low + 1, min(last + 1, size))


def pairs(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["max", "avg"]),
    size=pairs(4, 12),
    c=st.integers(2, 5),
    window=pairs(2, 4),
    stride=pairs(1, 3),
    dilation=pairs(1, 2),
    edges=st.tuples(*[st.integers(0, 1)] * 4),
    include=st.booleans(),
    data=st.data(),
)
def test_pool(kind, size, c, window, stride, dilation, edges, include, data):
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    out = [(size[a] + edges[a] + edges[a + 2] - spans[a]) // stride[a] + 1 for a in range(2)]
    if min(out) < 1:
        return
    anchor = Pool("x", kind, window, stride, edges, dilation, include)
    kernel = anchored(anchor, (*size, c), *out, c)
    x = floats(np.random.default_rng(size[0]), (*size, c))
    expected = meaning.run(kernel, {"x": x})["y"]
    tile = tiles(data, *out)
    reach = [
        span(
            tile[a] * stride[a] - edges[a],
            (tile[a] + tile[a + 2] - 1) * stride[a] - edges[a] + spans[a] - 1,
            size[a],
        )
        for a in range(2)
    ]
    table = {
        "kind": kind,
        "window": list(window),
        "stride": list(stride),
        "padding": list(edges),
        "dilation": list(dilation),
        "count_include_pad": include,
        "size": list(size),
    }
    part = (reach[0][0], reach[1][0], reach[0][1], reach[1][1])
    got = run_tile(kernel, Step("pool", table=tuple(sorted(table.items()))), x, tile, part)
    y0, x0, h, w = tile
    same_bits(got, expected[y0 : y0 + h, x0 : x0 + w])


MODES = [
    ("linear", "half_pixel", ""),
    ("linear", "align_corners", ""),
    ("linear", "asymmetric", ""),
    ("linear", "pytorch_half_pixel", ""),
    ("nearest_neighbor", "half_pixel", "round_prefer_floor"),
    ("nearest_neighbor", "asymmetric", "floor"),
]


@settings(max_examples=60)
@given(
    mode=st.sampled_from(MODES),
    size=pairs(1, 9),
    out=pairs(1, 14),
    c=st.integers(1, 4),
    data=st.data(),
)
def test_resize(mode, size, out, c, data):
    kernel = anchored(Resize("x", *mode), (*size, c), *out, c)
    x = floats(np.random.default_rng(out[0]), (*size, c))
    expected = meaning.run(kernel, {"x": x})["y"]
    tile = tiles(data, *out)
    reach = []
    for a in range(2):
        rows = meaning.axis_table(kernel.anchor, size[a], out[a])
        used = slice(tile[a], tile[a] + tile[a + 2])
        reach.append((int(rows.low[used].min()), int(rows.high[used].max()) + 1))
    method, coordinate, rounding = mode
    table = {
        "method": method,
        "coordinate": coordinate,
        "rounding": rounding,
        "size": list(size),
        "out": list(out),
    }
    part = (reach[0][0], reach[1][0], reach[0][1], reach[1][1])
    got = run_tile(kernel, Step("resize", table=tuple(sorted(table.items()))), x, tile, part)
    y0, x0, h, w = tile
    same_bits(got, expected[y0 : y0 + h, x0 : x0 + w])


@settings(max_examples=60)
@given(
    size=st.tuples(*[st.integers(1, 8)] * 3),
    out=st.tuples(*[st.integers(1, 8)] * 3),
    offset=st.tuples(*[st.integers(-3, 4)] * 3),
    stride=pairs(1, 3),
    data=st.data(),
)
def test_window(size, out, offset, stride, data):
    kernel = anchored(Window("x", offset, stride, 0.25), size, *out)
    x = floats(np.random.default_rng(out[0]), size)
    expected = meaning.run(kernel, {"x": x})["y"]
    tile = tiles(data, *out[:2])
    reach = [
        span(
            tile[a] * stride[a] + offset[a],
            (tile[a] + tile[a + 2] - 1) * stride[a] + offset[a],
            size[a],
        )
        for a in range(2)
    ]
    table = {"offset": list(offset), "stride": list(stride), "fill": 0.25, "size": list(size)}
    part = (reach[0][0], reach[1][0], reach[0][1], reach[1][1])
    got = run_tile(kernel, Step("window", table=tuple(sorted(table.items()))), x, tile, part)
    y0, x0, h, w = tile
    same_bits(got, expected[y0 : y0 + h, x0 : x0 + w])


def test_mean(rng):
    kernel = anchored(GlobalMean("x"), (7, 9, 5), 1, 1, 5)
    x = floats(rng, (7, 9, 5))
    got = run_tile(kernel, Step("mean"), x, (0, 0, 1, 1), (0, 0, 7, 9))
    same_bits(got, meaning.run(kernel, {"x": x})["y"])


@pytest.mark.parametrize("op", ["pool", "resize", "window"])
def test_a_tile_that_lacks_pixels_is_refused(op, rng):
    tables = {
        "pool": {
            "kind": "max", "window": [2, 2], "stride": [2, 2], "padding": [0] * 4,
            "dilation": [1, 1], "count_include_pad": True, "size": [8, 8],
        },
        "resize": {
            "method": "linear", "coordinate": "half_pixel", "rounding": "", "size": [8, 8],
            "out": [16, 16],
        },
        "window": {"offset": [0, 0, 0], "stride": [1, 1], "fill": 0.0, "size": [8, 8, 2]},
    }  # fmt: skip
    bench = Bench()
    source, target = bench.put(floats(rng, (3, 8, 2)), "f32"), bench.blank(4, 4, 2, "f32")
    step = Step(op, table=tuple(sorted(tables[op].items())))
    program = bench.program(step, Step("write", (0,), index=1))
    with pytest.raises(ArtifactError, match=r"rows -1 to \d of operand 0 are needed, which has 3"):
        bench.run(Vector(program, 4, 4, 2, (source, target), (0, 0, 0), (1, 0)))


# --- the policy --------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 7, 1100])
@pytest.mark.parametrize(
    "pool,shifts", [([0, 8], [0, 0]), ([0, 4, 8], [0, 3, 0]), ([2, 4, 8], [5, 4, 0])]
)
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_choice_of_bits_is_the_reference_policy(c, pool, shifts, scale, rng):
    codes = np.rint(rng.standard_normal((4, 5, c)) * 10.0 ** rng.uniform(-1, 1.5, (4, 5, 1)))
    codes = np.clip(codes, -127, 127).astype(np.int8)
    codes[0, 0] = 0
    threshold = 9.3
    expected, bits = ops_policy.choose_bits(
        torch.from_numpy(codes), pool, shifts, float(np.float32(threshold) * np.float32(scale))
    )
    bench = Bench()
    operands = (
        bench.put(codes.astype(np.float32), "f32"),
        bench.blank(4, 5, c, "c8"),
        bench.blank(4, 5, 1, "u8"),
    )
    table = (("pool", pool), ("shifts", shifts), ("threshold", threshold))
    program = bench.program(
        Step("read"),
        Step("quantize", (0,), 1.0, 127),
        Step("choose", (1,), table=table),
        Step("bits", (2,)),
        Step("write", (2,), index=1),
        Step("write", (3,), index=2),
    )
    bench.run(whole(program, operands, 4, 5, c), threshold_scale=scale)
    np.testing.assert_array_equal(bench.get(operands[1]), expected.numpy().astype(np.int32))
    np.testing.assert_array_equal(bench.get(operands[2])[..., 0], bits.numpy())
    assert len(np.unique(bits.numpy())) > 1


@pytest.mark.parametrize("size", [(16, 24), (21, 35)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gate_of_a_frame_is_that_of_the_reference(size, scale, rng):
    """Energies by tiles of blocks, changed blocks from all of them, pixels by tiles of any size."""
    h, w = size
    block, rows, columns = 8, -(-h // 8), -(-w // 8)
    key = rng.random((h, w, 3)).astype(np.float32)
    x = key + rng.normal(0, 0.003, key.shape).astype(np.float32)
    x[9:12, 17:19] += 0.2
    gate = Gate(reciprocal=301.7, threshold=500.0, block=block, reach=1)
    changed = ops_policy.changed_pixels(
        torch.from_numpy(x[None]),
        torch.from_numpy(key[None]),
        replace(gate, threshold=float(np.float32(gate.threshold) * np.float32(scale))),
    )[0].numpy()
    assert 0 < changed.mean() < 1

    bench = Bench()
    frame, kept = bench.put(x, "f32"), bench.put(key, "f32")
    energies, flags = (bench.blank(rows, columns, 1, "f32") for _ in range(2))
    result = bench.blank(h, w, 3, "f32")
    first = bench.program(
        Step("read"),
        Step("read", index=1),
        Step("sub", (0, 1)),
        Step("energy", (2,), gate.reciprocal, table=(("block", block),)),
        Step("write", (3,), index=2),
    )
    second = bench.program(
        Step("read"),
        Step("changed", (0,), table=(("reach", 1), ("threshold", gate.threshold))),
        Step("write", (1,), index=1),
    )
    third = bench.program(
        Step("read"),
        Step("read", index=1),
        Step("spread", index=2, table=(("block", block),)),
        Step("select", (2, 0, 1)),
        Step("write", (3,), index=3),
    )
    commands = []
    for top in range(0, h, block):
        tile = min(block, h - top)
        operands = (
            rows_of(frame, top, tile), rows_of(kept, top, tile), rows_of(energies, top // block, 1)
        )  # fmt: skip
        commands.append(Vector(first, tile, w, 3, operands, (top, 0, 0)))
    commands.append(whole(second, (energies, flags), rows, columns, 1))
    for top in range(0, h, 5):
        tile = min(5, h - top)
        operands = (
            rows_of(frame, top, tile), rows_of(kept, top, tile), flags, rows_of(result, top, tile)
        )  # fmt: skip
        commands.append(Vector(third, tile, w, 3, operands, (top, 0, 0)))
    bench.run(*commands, threshold_scale=scale)
    same_bits(bench.get(result), np.where(changed, x, key))


def rows_of(operand, first, count):
    return replace(operand, address=operand.address + first * operand.row, h=count)


# --- errors ------------------------------------------------------------------------------------


def test_wrong_programs_are_named(rng):
    value = np.full((1, 1, 2), 9, np.float32)
    for steps, message in [
        ((READ, Step("quantize", (0,), 1.0, 127), Step("write", (1,), index=1)), "code of 9"),
        ((READ, Step("frobnicate", (0,))), "no operation 'frobnicate'"),
        ((READ, Step("neg", (1,))), r"step 1 \(neg\) of its vector program has wrong arguments"),
        ((READ, Step("write", (0,), index=2)), r"value of \(1, 1, 2\) elements is written"),
    ]:
        bench = Bench()
        operands = (
            bench.put(value, "f32"), bench.blank(1, 1, 2, "c4"), bench.blank(1, 1, 1, "f32")
        )  # fmt: skip
        command = whole(bench.program(*steps), operands, 1, 1, 2)
        with pytest.raises(ArtifactError, match=message):
            bench.run(command)
    bench = Bench()
    with pytest.raises(ArtifactError, match="there is no vector program 7"):
        bench.run(whole(7, (), 1, 1, 1))
    bench = Bench()
    program = bench.program(READ)
    with pytest.raises(ArtifactError, match=r"operand 0 has \(1, 1, 2\) elements"):
        bench.run(whole(program, (bench.put(value, "f32"),), 1, 1, 3))
    with pytest.raises(ArtifactError, match=r"is malformed \(IndexError"):
        bench.run(whole(program, (), 1, 1, 1))


@given(st.data())
def test_windows_with_something_in_them(data):
    """Windows may overlap, and be empty."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    h, w = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    spans = [
        tuple(sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for _ in range(m))
        for n, m in ((h, data.draw(st.integers(1, 4))), (w, data.draw(st.integers(1, 4))))
    ]
    plane = (rng.random((h, w, 1)) < 0.2).astype(np.uint8) * 8
    table = (("columns", tuple(spans[1])), ("rows", tuple(spans[0])))
    down, across = len(spans[0]), len(spans[1])
    bench = Bench()
    seen, found = bench.put(plane, "u8"), bench.blank(down, across, 1, "u8")
    total = bench.blank(1, 1, 1, "u8")
    number = bench.program(
        Step("active", index=0, table=table), Step("write", (0,), index=1), Step("any", (0,)),
        Step("write", (2,), index=2),
    )  # fmt: skip
    bench.run(Vector(number, down, across, 1, (seen, found, total)))
    wanted = [[plane[a:b, c:d].any() for c, d in spans[1]] for a, b in spans[0]]
    np.testing.assert_array_equal(bench.get(found)[..., 0], wanted)
    assert bench.get(total).item() == np.any(wanted)

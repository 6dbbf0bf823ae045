"""Tiles whose pixels all have few bits run a narrower scheme: the same sums, bit for bit."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm

from resq_tvm.passes.limits import CodeLimits
from resq_tvm.schedules import meaning
from resq_tvm.schedules.arm.assembly import shifted
from resq_tvm.schedules.arm.depth import Window
from resq_tvm.schedules.arm.loops import LOOPS
from resq_tvm.schedules.context import input_maps, output_maps
from resq_tvm.schedules.emit import emit
from resq_tvm.schedules.listing import MARGIN
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import Choice, Coarse, Node, Sparse, Store, TensorSpec
from resq_tvm.targets.emulated.board import EmulatedBoard
from resq_tvm.targets.emulated.kernels import run_kernel
from resq_tvm.targets.preset import PRESETS
from resq_tvm.targets.toolchain import export_options
from tests.schedules.arm.test_kernels import SHAPES
from tests.schedules.harness import accumulator_kernel, code_tensor, float_tensor
from tests.schedules.test_conv import conv_of
from tests.tools import board_tools

MASK, SHIFT = 8, 4  # of pool {0, 4, 8}
# largest code of few bits, largest weight → the usual scheme, that of few bits
SCHEMES = {
    (7, 127): ("smull", "smlal"),
    (7, 7): ("smlal", "pairs"),
    (3, 3): ("smlal", "deep"),
}


def sparse_case(shape, limit, weights, rng, core="cortex-a53"):
    channels, o, hw, k, stride, dilation = SHAPES[shape]
    target = PRESETS[core]
    anchor, inputs, h, w = conv_of(target, rng, channels, o, hw, k, stride, dilation)
    weight = rng.integers(-weights, weights + 1, anchor.weight.shape).astype(np.int8)
    weight[0], weight[1] = weights, -weights
    anchor = replace(
        anchor, weight=weight, limits=(127, weights), coarse=Coarse(MASK, SHIFT, limit)
    )
    kernel = accumulator_kernel(target, anchor, inputs, h, w)
    maps = {s.name: TensorSpec(f"{s.name}_bits", s.h, s.w, 1, "uint8", 1) for s in inputs}
    done = TensorSpec("y_changed", h, w, 1, "uint8", 1)
    names = frozenset(s.name for s in inputs)
    sparse = Sparse(maps, False, {"y": done}, 1, 1, 0, h * w + MARGIN, None, names)
    return target, replace(kernel, sparse=sparse)


def run(kernel, target, given, maps):
    """Run a kernel on the emulated board, from a workspace of zeros; returns its output."""
    func, constants = emit(kernel, decide(kernel, target), target)
    module = tvm.compile(
        tvm.IRModule({"main": func.with_attr("global_symbol", "main")}),
        target=tvm.target.Target(target.llvm),
    )
    zero, sparse = kernel.code.zero_point, kernel.sparse
    physical = [meaning.to_physical(s, given[s.name], zero) for s in kernel.inputs]
    physical += [maps[m.name][None, :, :, None] for m in input_maps(sparse)]
    physical += [np.zeros(1, np.float32), *(a for _, a in constants)]
    kept = [np.zeros(s.shape, s.dtype) for s in (*kernel.outputs, *output_maps(sparse))]
    kept += [np.zeros(kernel.h * kernel.w, np.uint8), np.zeros(sparse.list_size, np.int32)]
    kept += [np.zeros(2, np.int32)]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        module.export_library(str(library), **export_options(target))
        board = EmulatedBoard(target.core)
        arrays, _ = run_kernel(board, library, "main", physical, kept, timeout_s=120)
    return meaning.to_logical(kernel.outputs[0], arrays[0], zero)


@pytest.mark.aarch64
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", SCHEMES)
def test_sums_are_those_of_the_usual_scheme(sizes, shape, rng):
    board_tools()
    limit, weights = sizes
    target, kernel = sparse_case(shape, limit, weights, rng)
    decision = decide(kernel, target)
    if shape in ("rows", "wide"):
        assert (decision.method, decision.coarse) == SCHEMES[sizes]
    given, maps = {}, {}
    for spec in kernel.inputs:
        # The left half has few bits, a pixel here and there the most; a corner has none.
        bits = np.where(rng.random((spec.h, spec.w)) < 0.15, 8, 4).astype(np.uint8)
        bits[:, : spec.w // 2] = np.minimum(bits[:, : spec.w // 2], 4)
        bits[: spec.h // 3, : spec.w // 3] = 0
        shape_ = (spec.h, spec.w, spec.c)
        few = rng.integers(-limit, limit + 1, shape_) << SHIFT
        few[:, :2] = limit << SHIFT
        codes = np.where(bits[..., None] == 8, rng.integers(-127, 128, shape_), few)
        given[spec.name] = np.where(bits[..., None] == 0, 0, codes).astype(np.int32)
        maps[f"{spec.name}_bits"] = bits
    expected = meaning.run(kernel, given)["y"]
    np.testing.assert_array_equal(run(kernel, target, given, maps), expected)


@pytest.mark.aarch64
def test_few_bits_are_really_taken_for_granted(rng):
    board_tools()
    target, kernel = sparse_case("rows", 7, 127, rng)
    (spec,) = kernel.inputs
    codes = rng.integers(-127, 128, (spec.h, spec.w, spec.c)).astype(np.int32)
    codes = np.clip(codes, -(7 << SHIFT), 7 << SHIFT)
    bits = np.full((spec.h, spec.w), 4, np.uint8)  # which is not true of these codes
    found = run(kernel, target, {"x0": codes}, {"x0_bits": bits})
    cut = (codes >> SHIFT) << SHIFT
    np.testing.assert_array_equal(found, meaning.run(kernel, {"x0": cut})["y"])


def test_where_nothing_is_gained_there_is_one_scheme(rng):
    for core in ("cortex-a72", "cortex-a76"):
        target, kernel = sparse_case("wide", 7, 127, rng, core)
        assert decide(kernel, target).coarse == ""
    target, kernel = sparse_case("wide", 7, 127, rng)
    dense = replace(kernel, sparse=None)
    assert decide(dense, target).coarse == ""


def test_every_load_of_a_pixel_is_shifted_once_before_it_is_used():
    for name, make in LOOPS.items():
        loop = make(Window("chunks", 4, 1))
        changed = shifted(loop, 3)
        assert shifted(loop, 0) is loop
        for before, after in zip(
            (loop.start, *loop.rounds, *loop.last),
            (changed.start, *changed.rounds, *changed.last),
            strict=True,
        ):
            loads = [line for line in before if line.startswith("ldr q") and "[{p" in line]
            shifts = [line for line in after if line.startswith("sshr")]
            assert len(shifts) == len(loads), name
            assert [line for line in after if not line.startswith("sshr")] == before


@pytest.mark.parametrize(
    ("pool", "shifts", "expected"),
    [
        ((0, 4, 8), (8, 4, 0), Coarse(8, 4, 7)),
        ((0, 3, 4), (8, 2, 0), Coarse(4, 2, 3)),
        ((0, 2, 4, 8), (8, 6, 4, 0), Coarse(8, 4, 7)),
        ((0, 8), (8, 0), None),
        ((1, 2, 3), (2, 1, 0), None),  # a 3 is a 1 and a 2
    ],
)
def test_what_few_bits_are_follows_from_the_pool(pool, shifts, expected, rng):
    target = PRESETS["cortex-a53"]
    limits = CodeLimits()
    anchor, inputs, h, w = conv_of(target, rng, (16,), 16, (4, 8))
    x = float_tensor("x", 4, 8, 16)
    nodes = (Node("load", name="x"), Node("quantize", (0,), value=1.0, limit=127))
    q = code_tensor(target, "q", 4, 8, 16)
    kernel = accumulator_kernel(target, anchor, inputs, h, w)
    writer = replace(
        kernel, anchor=None, inputs=(x,), outputs=(q,), nodes=nodes,
        stores=(Store(1, "q", Choice(pool, shifts, 0)),),
    )  # fmt: skip
    limits.apply(writer, ["x"], ["q"])
    assert limits.apply(kernel, ["q"], ["y"]).anchor.coarse == expected

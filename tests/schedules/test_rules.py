from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resq_tvm.errors import CompileError
from resq_tvm.schedules.resample import axis_table
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import Conv, FusedKernel, Node, Resize, Sparse, Store, Walk
from resq_tvm.targets.preset import PRESETS
from tests.schedules.harness import code_tensor, conv_phase, float_tensor


def conv_kernel(target, c, o, h, w, k=3, groups=1):
    weight = np.ones((o, k, k, c // groups), np.int8)
    phase = conv_phase((k, k), (1, 1), (k // 2, k // 2))
    anchor = Conv(("x",), weight, (phase,), (1, 1), (1, 1), groups)
    nodes = (Node("anchor"),)
    return FusedKernel(
        "k", anchor, h, w, o, (code_tensor(target, "x", h, w, c, (k // 2,) * 4),),
        (float_tensor("y", h, w, o),), nodes, (Store(0, "y"),), target.code,
    )  # fmt: skip


@pytest.mark.parametrize("name", [n for n, t in PRESETS.items() if not t.arm])
@pytest.mark.parametrize(
    "shape", [(3, 16, 9, 7), (64, 64, 64, 128), (512, 128, 1, 1), (25, 25, 45, 60)]
)
def test_register_tiles_fit_the_plane_and_the_registers(name, shape):
    target = PRESETS[name]
    decision = decide(conv_kernel(target, *shape), target)
    assert (decision.rule, decision.method) == ("dot", "dot")
    assert decision.tile_y <= shape[2] and decision.tile_x <= shape[3]
    assert decision.tile_o <= -(-shape[1] // 16)
    lanes = decision.tile_y * decision.tile_x * decision.tile_o * 16
    assert lanes <= target.registers * target.register_lanes


def test_vnni_tiles_hide_the_latency_of_the_dot_product():
    target = PRESETS["x86-avx512-vnni"]
    for shape in ((64, 64, 64, 128), (256, 512, 4, 8), (12, 12, 90, 120)):
        decision = decide(conv_kernel(target, *shape), target)
        assert decision.tile_y * decision.tile_x * decision.tile_o >= 4


def test_depthwise_rules():
    vnni, avx2 = PRESETS["x86-avx512-vnni"], PRESETS["x86-avx2"]
    assert decide(conv_kernel(vnni, 32, 32, 9, 9, 3, 32), vnni).method == "quads"
    assert decide(conv_kernel(avx2, 32, 32, 9, 9, 3, 32), avx2).tile_x == 4
    assert decide(conv_kernel(avx2, 32, 32, 9, 9, 3, 32), avx2).method == "taps"
    # A window of 81 taps would be unrolled to thousands of statements.
    assert decide(conv_kernel(vnni, 32, 32, 9, 9, 9, 32), vnni).method == "taps"


def test_everything_else_goes_by_lanes():
    target = PRESETS["x86-generic"]
    x = float_tensor("x", 3, 3, 16)
    kernel = FusedKernel(
        "k", Walk(), 3, 3, 16, (x,), (float_tensor("y", 3, 3, 16),),
        (Node("load", name="x"),), (Store(0, "y"),), target.code,
    )  # fmt: skip
    assert decide(kernel, target).method == "lanes"


def test_unknown_coordinates_and_roundings_are_named():
    with pytest.raises(CompileError, match="'tilted' is unknown; use half_pixel"):
        axis_table(Resize("x", "linear", "tilted"), 4, 8)
    with pytest.raises(CompileError, match="rounding 'up' is unknown"):
        axis_table(Resize("x", "nearest_neighbor", "half_pixel", "up"), 4, 8)


@pytest.mark.parametrize(
    ("preset", "side", "parallel"),
    [
        ("x86-avx512-vnni", 16, False),
        ("x86-avx512-vnni", 17, True),
        ("cortex-a72", 4, False),
        ("cortex-a72", 5, True),
    ],
)
def test_small_planes_with_tiles_left_out_are_for_one_thread(preset, side, parallel):
    target = PRESETS[preset]
    kernel = conv_kernel(target, 64, 64, side, side, k=1)
    assert decide(kernel, target).parallel
    sparse = Sparse({}, False, {}, 1, 1, 0, 64, None, frozenset())
    assert decide(replace(kernel, sparse=sparse), target).parallel == parallel

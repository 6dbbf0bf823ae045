"""ARM kernels on the emulated boards, bit for bit, at the extremes of codes and weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resq_tvm.errors import CompileError
from resq_tvm.schedules import meaning
from resq_tvm.schedules.arm.schemes import AVAILABLE, applicable, choose
from resq_tvm.schedules.choice import by_rules, preferring
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.emit import emit
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import Phase
from resq_tvm.targets.preset import PRESETS
from tests.schedules.harness import (
    accumulator_kernel,
    check,
    code_tensor,
    conv_phase,
    residual_kernel,
    two_code_kernel,
)
from tests.schedules.test_conv import conv_of
from tests.tools import board_tools

pytestmark = pytest.mark.aarch64

# channels, outputs, (h, w), kernel, stride, dilation
SHAPES = {
    "stem": ((3,), 16, (9, 14), (3, 3), 2, 1),
    "rows": ((16,), 20, (5, 9), (3, 3), 1, 1),
    "wide": ((64,), 32, (3, 11), (3, 3), 1, 1),
    "dilated": ((12,), 25, (9, 7), (3, 3), 1, 4),
    "joined": ((19, 3), 28, (6, 9), (3, 3), 2, 1),
    "points": ((40,), 33, (3, 7), (1, 1), 1, 1),
    "dense": ((72,), 9, (1, 1), (1, 1), 1, 1),
}
# scheme: core, largest code, largest weight
SCHEMES = {
    "smull": ("cortex-a53", 127, 127),
    "smlal": ("cortex-a53", 7, 127),
    "pairs": ("cortex-a53", 7, 7),
    "deep": ("cortex-a53", 3, 3),
    "nibble": ("cortex-a53", 1, 1),
    "ternary": ("cortex-a53", 1, 1),
    "sdot": ("cortex-a76", 127, 127),
    "smmla": ("cortex-a710", 127, 127),
}


def case(shape, core, codes, weights, rng, residual=True):
    channels, o, hw, k, stride, dilation = shape
    target = PRESETS[core]
    anchor, inputs, h, w = conv_of(target, rng, channels, o, hw, k, stride, dilation)
    weight = rng.integers(-weights, weights + 1, anchor.weight.shape).astype(np.int8)
    weight[0], weight[1] = weights, -weights
    anchor = replace(anchor, weight=weight, limits=(codes, weights))
    made = residual_kernel(target, anchor, inputs, h, w, rng)
    kernel = made if residual else accumulator_kernel(target, anchor, inputs, h, w)
    given = meaning.random_inputs(kernel, rng)
    for name in anchor.inputs:
        given[name][:2] = codes
    return target, kernel, given


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_exact(scheme, shape, rng):
    board_tools()
    target, kernel, given = case(SHAPES[shape], *SCHEMES[scheme], rng, residual=shape != "wide")
    if scheme not in applicable(kernel, target):
        with pytest.raises(CompileError, match="let the rules choose"):
            check(kernel, target, rng, given, decision=Decision("dot", scheme, 1, 4))
        return
    tile_x = min(4, kernel.w)
    check(kernel, target, rng, given, decision=Decision("dot", scheme, 1, tile_x))


@pytest.mark.parametrize("scheme", ["smull", "pairs", "deep", "ternary"])
@pytest.mark.parametrize("core", ["cortex-a72", "cortex-a55"])
def test_other_cores_and_tiles(scheme, core, rng):
    board_tools()
    _, codes, weights = SCHEMES[scheme]
    target, kernel, given = case(SHAPES["rows"], core, codes, weights, rng)
    for tile in ((2, 2), (1, 3)):
        decision = Decision("dot", scheme, *tile, inner_o=tile == (2, 2))
        check(kernel, target, rng, given, decision=decision)


@pytest.mark.parametrize("codes", [127, 7, 1])
@pytest.mark.parametrize("shape", [(16, (9, 14), 3, 1), (40, (7, 9), 5, 2)])
def test_depthwise(shape, codes, rng):
    board_tools()
    c, hw, k, stride = shape
    target = PRESETS["cortex-a53"]
    anchor, inputs, h, w = conv_of(target, rng, (c,), c, hw, (k, k), stride, groups=c)
    weight = rng.integers(-codes, codes + 1, anchor.weight.shape).astype(np.int8)
    weight[0], weight[1] = codes, -codes
    anchor = replace(anchor, weight=weight, limits=(codes, codes))
    kernel = residual_kernel(target, anchor, inputs, h, w, rng)
    assert decide(kernel, target).method == "narrow"
    given = meaning.random_inputs(kernel, rng)
    given[anchor.inputs[0]][:3] = codes
    check(kernel, target, rng, given)
    check(two_code_kernel(target, anchor, inputs, h, w, rng), target, rng)


@pytest.mark.parametrize("shape", ["rows", "joined", "points"])
@pytest.mark.parametrize("scheme", ["smull", "sdot", "smmla"])
def test_inputs_with_two_codes(scheme, shape, rng):
    board_tools()
    core, codes, weights = SCHEMES[scheme]
    channels, o, hw, k, stride, dilation = SHAPES[shape]
    target = PRESETS[core]
    anchor, inputs, h, w = conv_of(target, rng, channels, o, hw, k, stride, dilation)
    anchor = replace(anchor, limits=(codes, weights))
    kernel = two_code_kernel(target, anchor, inputs, h, w, rng)
    check(kernel, target, rng, decision=Decision("dot", scheme, 1, 4))


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a76", "cortex-a710"])
@pytest.mark.parametrize("groups", [2, 3])
def test_groups(core, groups, rng):
    board_tools()
    target = PRESETS[core]
    channels, outputs = (32, 32) if groups == 2 else (9, 6)
    anchor, inputs, h, w = conv_of(target, rng, (channels,), outputs, (4, 9), groups=groups)
    anchor = replace(anchor, limits=(127, 127))
    check(accumulator_kernel(target, anchor, inputs, h, w), target, rng)


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a76"])
def test_transposed(core, rng):
    board_tools()
    target = PRESETS[core]
    anchor, inputs, h, w = conv_of(target, rng, (16,), 12, (4, 6), (2, 2))
    phases = tuple(
        Phase(oy, ox, ((oy, ox, 0, 0),)) for oy in range(2) for ox in range(2)
    )  # kernel 2, stride 2
    anchor = replace(anchor, phases=phases, out_stride=(2, 2), limits=(127, 127))
    check(accumulator_kernel(target, anchor, inputs, 2 * h, 2 * w), target, rng)


def test_a_scheme_that_would_overflow_is_refused_and_passed_over(rng):
    target, kernel, _ = case(SHAPES["rows"], "cortex-a53", 7, 7, rng)
    assert choose(kernel, target)[0] == "pairs"
    wide = replace(kernel, anchor=replace(kernel.anchor, limits=(127, 7)))
    assert choose(wide, target)[0] == "smlal"
    assert choose(wide, target, "pairs")[0] == "smlal"
    assert "pairs" not in applicable(wide, target)
    with pytest.raises(CompileError, match="scheme pairs cannot hold the sums"):
        emit(wide, Decision("dot", "pairs", 1, 4), target)
    huge = replace(kernel.anchor, weight=np.full_like(kernel.anchor.weight, 127), limits=(127, 127))
    assert choose(replace(kernel, anchor=huge), target)[0] == "smull"


def test_a_wish_is_granted_where_the_sums_fit(rng):
    target, kernel, _ = case(SHAPES["rows"], "cortex-a72", 7, 7, rng)
    rules = by_rules(target)
    assert rules(kernel).decision.method == "smull"
    wish = preferring(rules, target, "pairs")
    assert wish(kernel).decision.method == "pairs"
    wide = replace(kernel, anchor=replace(kernel.anchor, limits=(127, 7)))
    assert wish(wide).decision.method == "smull"
    with pytest.raises(CompileError, match="cortex-a72 has no kernel scheme 'sdot'; it has"):
        preferring(rules, target, "sdot")
    host = PRESETS["x86-avx2"]
    with pytest.raises(CompileError, match="none: it is no ARM core"):
        preferring(by_rules(host), host, "smull")


def test_what_could_overflow_is_told(rng):
    target, kernel, _ = case(SHAPES["wide"], "cortex-a53", 3, 3, rng)
    tall = np.full((4, 9, 9, 640), 3, np.int8)  # more than int16 holds
    anchor = replace(
        kernel.anchor, weight=tall, phases=(conv_phase((9, 9), (1, 1), (0, 0)),), limits=(3, 3)
    )
    x = code_tensor(target, "x0", 9, 12, 640)
    kernel = accumulator_kernel(target, anchor, (x,), 1, 4)
    decision = decide(kernel, target)
    assert (decision.method, decision.rule) == ("smlal", "dot (deep, pairs could overflow)")


def test_each_core_has_schemes_of_its_own():
    assert "sdot" not in AVAILABLE["neon"] and "smmla" not in AVAILABLE["neon-dot"]
    for name, target in PRESETS.items():
        if target.arm:
            rng = np.random.default_rng(1)
            _, kernel, _ = case(SHAPES["rows"], name, 127, 127, rng)
            assert decide(kernel, target).method in AVAILABLE[target.isa]

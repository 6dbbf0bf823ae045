"""What the benchmark of ARM layers rests on: kernels cut right, wrong ones found, true means."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import arm_layers
from benchmarks.arm_layers import crop, distinct, execute, read, write
from benchmarks.arm_layers_page import Row, gains, mean_gain, network_gain, page
from resq_tvm.passes.programs import KernelRecord
from resq_tvm.schedules import meaning
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import Conv, FusedKernel
from resq_tvm.targets.emulated.board import EmulatedBoard
from resq_tvm.targets.preset import get_target
from tests.schedules.harness import code_tensor, conv_phase, halo_for, residual_kernel
from tests.tools import board_tools

TARGET = get_target("cortex-a53")
H, W, C, O = 12, 8, 32, 32  # noqa: E741


def kernel_of(rng: np.random.Generator, stride: int = 1) -> FusedKernel:
    weight = rng.integers(-7, 8, (O, 3, 3, C)).astype(np.int8)
    phase = conv_phase((3, 3), (1, 1), (1, 1))
    anchor = Conv(("x",), weight, (phase,), (stride, stride), (1, 1), limits=(7, 7))
    h, w = H * stride, W * stride
    x = code_tensor(TARGET, "x", h, w, C, halo_for(anchor, h, w, H, W))
    return residual_kernel(TARGET, anchor, (x,), H, W, rng)


def record_of(kernel: FusedKernel, layer: str = "layer") -> KernelRecord:
    return KernelRecord("keyframe", layer, kernel, decide(kernel, TARGET), "heuristic", ())


def row(
    layer: str, scheme: str, cycles: int, core: str = "cortex-a53", *, layers: int = 1,
    channels: int = 64, kernel: str = "smull", depth: int = 576, cached: int = 0,
) -> Row:  # fmt: skip
    return Row(
        core, scheme, layer, layers, f"conv {layer}", channels, depth, 1000, 4000, kernel, cycles,
        0.9 * cycles, cached,
    )  # fmt: skip


@pytest.mark.parametrize("stride", [1, 2])
def test_a_cut_kernel_computes_the_first_rows(rng: np.random.Generator, stride: int) -> None:
    kernel = kernel_of(rng, stride)
    cut = crop(kernel, 4)
    assert (cut.h, cut.w) == (4, W)
    inputs = meaning.random_inputs(kernel, rng)
    expected = meaning.run(kernel, inputs)
    fewer = {s.name: inputs[s.name][: s.h] for s in cut.inputs}
    # the last row also depends on a row that the cut input no longer has
    for name, value in meaning.run(cut, fewer).items():
        np.testing.assert_array_equal(value[:3], expected[name][:3])
    for before, after in zip(kernel.inputs, cut.inputs, strict=True):
        assert (after.halo, after.w, after.c_phys) == (before.halo, before.w, before.c_phys)


def test_what_cannot_be_cut_stays_whole(rng: np.random.Generator) -> None:
    kernel = kernel_of(rng)
    assert crop(kernel, H) is kernel
    other = replace(kernel, inputs=(*kernel.inputs[:-1], replace(kernel.inputs[-1], h=H - 1)))
    assert crop(other, 4) is other


def test_layers_that_differ_in_any_scheme_are_run_apart(rng: np.random.Generator) -> None:
    alike, narrow = kernel_of(rng), kernel_of(rng, 2)
    first = {name: record_of(alike, name) for name in "abc"}
    second = {**first, "c": record_of(narrow, "c")}
    assert distinct({"W8A8": first}) == {"a": 3}
    assert distinct({"W8A8": first, "W4A4": second}) == {"a": 2, "c": 1}


@pytest.mark.slow
def test_a_kernel_that_computes_something_else_ends_the_benchmark(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    board_tools()
    kernel = crop(kernel_of(rng), 2)
    record, board = record_of(kernel), EmulatedBoard("cortex-a53")
    region = execute(kernel, record, TARGET, board)
    assert 0 < region.bound <= region.cycles

    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    weight = anchor.weight.copy()
    weight[5, 1, 1, 3] ^= 1
    wrong = replace(kernel, anchor=replace(anchor, weight=weight))
    program_of = arm_layers.program_of
    monkeypatch.setattr(arm_layers, "program_of", lambda k, *rest: program_of(wrong, *rest))
    with pytest.raises(SystemExit, match=r"layer on cortex-a53 by .* differ from the reference"):
        execute(kernel, record, TARGET, board)


def test_gains_are_means_over_layers_with_channels_enough() -> None:
    rows = [
        row("a", "W8A8", 400, layers=3),
        row("b", "W8A8", 400),
        row("stem", "W8A8", 400, channels=3),
        row("a", "W4A4", 200, layers=3),
        row("b", "W4A4", 100),
        row("stem", "W4A4", 800, channels=3),
    ]
    found = gains(rows, "cortex-a53", "W4A4")
    assert [g.value for g in found] == [2, 4]
    assert mean_gain(found) == pytest.approx(math.exp((3 * math.log(2) + math.log(4)) / 4))
    assert network_gain(rows, "cortex-a53", "W4A4") == pytest.approx(2000 / 1500)
    assert gains(rows, "cortex-a72", "W4A4") == []


def text(rows: list[Row]) -> str:
    return "\n".join(page(rows, ["stamp"]))


def test_the_page_says_what_was_met_and_what_was_missed() -> None:
    rows = [row("a", "W8A8", 200), row("a", "W4A4", 100), row("a", "W2A2", 100)]
    told = text(rows)
    assert "| cortex-a53 | gain of W4A4 | 1.7 × | 2.000 × | met |" in told
    assert "| cortex-a53 | gain of W2A2 | 3.0 × | 2.000 × | missed by 33.3% |" in told
    assert "| 96% (96% to 96%) | met; 0 of 1 layers are below |" in told
    slow = text([row("a", "W8A8", 400)])
    assert "| 48% (48% to 48%) | missed by 39.9%; 1 of 1 layers are below |" in slow


def test_the_page_says_where_low_bits_do_not_pay() -> None:
    core = "cortex-a72"
    rows = [
        row("a", "W8A8", 200, core, cached=240), row("a", "W4A4", 200, core),
        row("short", "W8A8", 200, core, depth=64), row("short", "W4A4", 200, core, depth=64),
        row("a", "W2A2", 100, core, kernel="nibble", cached=200),
        row("short", "W2A2", 190, core, kernel="nibble", depth=64),
    ]  # fmt: skip
    told = text(rows)
    assert "Do not pay on cortex-a72 (gain of what BOPs promise): W4A4 1.00 × of 4 ×." in told
    assert "The compiler chooses the kernels of W8A8 (smull) for W4A4 there." in told
    assert "W2A2 on cortex-a72 does not pay on conv short (1.05 ×)." in told
    assert "on cortex-a72: W2A2 1.05 × beside 2.00 ×." in told
    assert "on cortex-a72: W2A2 1.20 ×, the least 1.20 × on conv a." in told


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [row("a", "W8A8", 200, cached=240)]
    write(tmp_path / "rows.json", ["stamp"], rows)
    assert read(tmp_path / "rows.json") == (["stamp"], rows)

"""The tables of networks on emulated boards say what was counted."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.arm_networks import Agreement, Result, compare, table
from resq_tvm.simulate import ProgramCount, SimulatedReport
from resq_tvm.targets.emulated.cores import get_core

LAYERS = [("conv", "conv2d", 1000), ("wise", "depthwise", 100)]


def result() -> Result:
    kernels = [SimpleNamespace(name=f"{p}_{n}", layer=n) for p in "kr" for n, _, _ in LAYERS]
    manifest = SimpleNamespace(
        scheme="W8A8->W4A4",
        target=SimpleNamespace(name="cortex-a72"),
        kernels=kernels,
        layers=[
            SimpleNamespace(name=name, model_dump=dict(name=name, op=op, macs=macs).copy)
            for name, op, macs in LAYERS
        ],
        bops={"macs": 1100, "bops_keyframe": 400, "bops_residual": 100},
        has_residual=True,
        state_bytes=0,
    )
    keyframe = ProgramCount(
        1, 4.0, 1000.0, 900.0, 800.0, 0.0, {"k_conv": 500.0, "k_wise": 100.0, "k_add": 300.0}
    )
    residual = ProgramCount(1, 2.0, 500.0, 450.0, 400.0, 0.0, {"r_conv": 250.0, "r_wise": 50.0})
    report = SimulatedReport(manifest, 4, keyframe, residual, get_core("cortex-a72"), [])  # type: ignore[arg-type]
    agreement = [Agreement(kind, 10, 0, 0.0, 0.1, 0.1) for kind in ("keyframe", "residual")]
    return Result("net", "W8A8->W4A4", report, agreement)


def test_differences_are_counted_to_the_last_bit() -> None:
    here = (np.array([1.0, 2.0, 4.0], np.float32), np.zeros(2, np.float32) + 3)
    there = (np.nextafter(here[0], np.float32(9)), here[1].copy())
    found = compare("keyframe", here, there, here[0])
    assert (found.numbers, found.differing) == (5, 3)
    assert 0 < found.largest < 1e-6 and found.error_here == 0 < found.error
    assert compare("keyframe", here, here, here[0]).differing == 0


def test_lines() -> None:
    found = result()
    assert found.speed_line() == (
        "| net | cortex-a72 | 4.0 | 2.0 | 0.50 | 0.25 | 2.5 | 0.62 | 0.44 | 1.10 | 2.20 |"
    )
    keyframe, residual = found.cycle_lines()
    assert "| 2.00 | 0.0 | 1.00 |" in keyframe and "| 4.00 | 0.0 | 2.00 |" in residual
    lines = table([found], 1)
    assert lines[0].startswith("All times and cycles are simulated")
    for head, row in zip(lines, lines[2:], strict=False):
        if head.startswith("| network"):
            assert head.count("|") == row.count("|")


def test_rows_for_the_table_of_engines() -> None:
    rows = result().rows()
    assert [row.engine.rpartition(", ")[2] for row in rows] == ["keyframe", "residual", "T = 4"]
    assert not any(row.peer for row in rows)
    assert rows[-1].milliseconds == pytest.approx((4 + 3 * 2) / 4)

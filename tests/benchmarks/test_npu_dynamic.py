"""Dynamic networks on NPUs: what is simulated, and what the page says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import resq_tvm as resq
from benchmarks.npu_dynamic import Bench, measure_break_even, replaced
from benchmarks.npu_dynamic_page import (
    BreakEven,
    ClipResult,
    Drive,
    Programs,
    Work,
    break_even_page,
    clip_page,
    drive_lines,
)
from benchmarks.npu_networks import UNITS
from resq_tvm.breakeven import SHARES
from resq_tvm.evaluate.judge import Errors
from resq_tvm.network import Network
from resq_tvm.predict import make_preprocessor
from resq_tvm.zoo.initialize import smooth_images

SHAPE = (1, 3, 32, 64)


@pytest.fixture(scope="module")
def net() -> Network:
    layers = [
        torch.nn.Conv2d(3, 40, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(40, 8, 3, padding=1)
    ]  # fmt: skip
    return resq.load(torch.nn.Sequential(*layers).eval(), input_shape=SHAPE)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_rectangle_of_the_frame_is_replaced(layout: str) -> None:
    shape = (1, 3, 20, 30) if layout == "NCHW" else (1, 20, 30, 3)
    frame = np.zeros(shape, np.float32)
    channel = 1 if layout == "NCHW" else 3
    network = SimpleNamespace(inputs=[SimpleNamespace(layout=layout)])
    for share in SHARES:
        other = replaced(network, frame, share)  # type: ignore[arg-type]
        assert other.shape == shape
        assert (other != 0).any(axis=channel).mean() == pytest.approx(share, abs=0.02)


def test_every_unit_has_less_to_do(net: Network, tmp_path: Path) -> None:
    frames = [f[None] for f in smooth_images(2, *SHAPE[2:], seed=1).numpy()]
    dynamic = resq.calibrate(net, [frames], "W8A8->W8A{0,8}", period=2, samples=2, candidates=4)
    subject = SimpleNamespace(
        net=net, dynamic=dynamic, prepare=make_preprocessor(None, net.inputs)
    )  # fmt: skip
    found = measure_break_even(subject, Bench(tmp_path, ["npu-mobile"]), "npu-mobile")  # type: ignore[arg-type]
    assert found.thresholds == (3e-4, 3e-4)
    works = [point.frame for point in found.points]
    assert works[0].blocks == {0: 1.0}
    empty = [work.blocks[0] for work in works[:-1]] + [works[-1].blocks.get(0, 0.0)]
    assert empty == sorted(empty, reverse=True) and empty[-1] < 0.1
    for unit in ("matrix", "vector", "dram"):
        cycles = [work.units[unit] for work in works]
        assert cycles == sorted(cycles) and cycles[0] < cycles[-1]
    assert len({work.units["issue"] for work in works}) == 1
    assert [p.scheme for p in found.statics] == ["W8A8->W8A8", "W8A8->W8A4"]
    assert found.frame.residual is None and found.frame.keyframe.state_megabytes == 0


def work(*cycles: int, matrix: float = 1e6) -> Work:
    units = {**dict.fromkeys(UNITS, 0.5e6), "matrix": matrix}
    bound = dict(zip(UNITS, (0.75, 0.25, 0.0, 0.0), strict=True))
    return Work(cycles, units, bound, 4.0, 2.0, {0: 0.6, 8: 0.4} if len(cycles) > 1 else {})


def programs(keyframe: Work, residual: Work | None, bops: float = 64.0) -> Programs:
    scheme = "W8A8" if residual is None else "W8A8->W8A{0,8}"
    return Programs("npu-x", 1e9, scheme, 1 if residual is None else 3, keyframe, residual, bops)


FRAME = programs(work(3_000_000), None)


def test_the_page_of_a_clip_tells_medians_means_and_recovery() -> None:
    dynamic = programs(work(4_000_000), work(1_000_000, 1_000_000, 1_000_000, 3_000_000))
    every, unseen = Errors(8, 2.0, 6.0, 3.0), Errors(4, 2.0, 2.1, 2.0)
    lines = clip_page(ClipResult("net", 6, ((FRAME, dynamic),), "px", every, unseen))
    assert "simulated" in lines[0]
    # (4 + 2 · 1.5) / 3 million cycles at 1 GHz; nine tenths of 1, 1, 1, 3 are at most 2.4.
    assert "| npu-x | 3.000 | 4.000 | 1.000 | 2.400 | 2.333 | 2.333 | 0.78 |" in lines
    assert "| all | 3.00 | 2.00 | 6.00 | 0.75 |" in lines
    assert "| unseen | 2.00 | 2.00 | 2.10 | – |" in lines
    assert any("| residual | 1.000 | 0.500" in x and "0: 60.0%, 8: 40.0%" in x for x in lines)


def test_the_page_of_a_break_even_says_up_to_where_skipping_pays() -> None:
    rising = (1_000_000, 1_500_000, 2_000_000, 2_500_000, 3_500_000)
    points = tuple(programs(work(4_000_000), work(c, matrix=c)) for c in rising)
    statics = (programs(work(4_000_000), work(4_000_000)), programs(work(1), work(900_000)))
    found = BreakEven((3e-4, 3e-4), FRAME, statics, points)
    lines = break_even_page([found])
    assert "tau = 0.0003" in lines[0] and "simulated" in lines[0]
    assert "tau from 0.0003 to 2" in break_even_page([replace(found, thresholds=(3e-4, 2.0))])[0]
    assert len([line for line in lines if line.startswith("| npu-x |")]) == len(SHARES) + 3
    # 3 million lie halfway between those of 50 % and 100 %.
    assert found.stops_paying(3_000_000) == pytest.approx(0.75)
    assert "against frame W8A8 up to 75.0% replaced" in lines[-1]
    assert "against static W8A8->W8A{0,8} always" in lines[-1]
    assert lines[-1].endswith("against static W8A8->W8A{0,8} never.")
    assert "takes 29% of the cycles" in lines[-1]
    assert "matrix 29%, vector 100%, DRAM 100%, issue 100%" in lines[-1]


def test_the_page_of_a_drive_puts_cycles_beside_bops() -> None:
    dynamic = programs(work(4_000_000, matrix=1e6), work(2_500_000, matrix=0.25e6))
    static = replace(dynamic, bops=48.0)
    lines = drive_lines(Drive(FRAME, (static, dynamic), pixel_bops=32.0))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0][:8] == ["npu-x", "W8A8", "3.000", "–", "–", "3.000", "1.00", "1.00"]
    assert cells[1][6:8] == ["0.75", "1.00"]
    # Products: (1 + 2 · 0.25) / 3 of those of W8A8; the rest is as it was.
    assert cells[2][5:12] == ["3.000", "0.50", "1.00", "0.50", "1.00", "1.00", "1.00"]

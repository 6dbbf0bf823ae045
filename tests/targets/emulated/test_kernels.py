"""Compiled TVM kernels on the emulated board."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from resq_tvm.errors import TargetError
from resq_tvm.targets.emulated.board import EmulatedBoard
from resq_tvm.targets.emulated.kernels import MEASURED, WARM_UP, run_kernel
from resq_tvm.targets.preset import get_target
from resq_tvm.targets.toolchain import export_options
from tests.tools import board_tools

pytestmark = pytest.mark.aarch64


@T.prim_func
def scale(
    a: T.Buffer((64, 16), "float32"),
    b: T.Buffer((16,), "int8"),
    c: T.Buffer((64, 16), "float32"),
):
    T.func_attr({"global_symbol": "scale", "tirx.noalias": True})
    for i in T.serial(64):
        for j in T.vectorized(16):
            c[i, j] = a[i, j] * T.Cast("float32", b[j])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    board_tools()
    target = get_target("cortex-a72")
    machine = tvm.target.Target(target.llvm)
    with machine:
        module = tvm.tirx.build(tvm.IRModule({"scale": scale}), target=machine)
    path = tmp_path_factory.mktemp("kernel") / "scale.so"
    module.export_library(str(path), **export_options(target))
    return path


@pytest.fixture
def arrays(rng: np.random.Generator) -> list[np.ndarray]:
    a = rng.standard_normal((64, 16)).astype(np.float32)
    return [a, rng.integers(-128, 128, 16).astype(np.int8)]


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a72"])
def test_outputs_and_cycles(core: str, library: Path, arrays: list[np.ndarray]) -> None:
    blank = np.full((64, 16), np.nan, np.float32)
    (c,), done = run_kernel(EmulatedBoard(core), library, "scale", arrays, [blank])
    assert np.array_equal(c, arrays[0] * arrays[1].astype(np.float32)) and np.isnan(blank).all()
    (kernel,) = (
        f for f in done.regions[MEASURED].functions if re.fullmatch("scale_compute_?", f.name)
    )
    # 4 multiplications, loads and stores of 128 bits for each of 64 rows.
    assert kernel.library == library.name and kernel.bound >= 64 * 4
    assert done.regions[WARM_UP].instructions >= kernel.instructions
    assert done.seconds() > 0


def test_caches_are_cold_but_for_fresh_inputs(library: Path, arrays: list[np.ndarray]) -> None:
    board = EmulatedBoard("cortex-a53", cache_model=True)
    blank = [np.zeros((64, 16), np.float32)]
    regions = [
        run_kernel(board, library, "scale", arrays, blank, **options)[1].regions[MEASURED]
        for options in ({}, {"evict": 4 << 20}, {"evict": 4 << 20, "fresh": [0]})
    ]
    warm, cold, fresh = regions
    assert warm.l2_misses < fresh.l2_misses < cold.l2_misses
    assert warm.cycles < fresh.cycles < cold.cycles


def test_what_is_wrong_is_told(library: Path, arrays: list[np.ndarray]) -> None:
    board, blank = EmulatedBoard("cortex-a53"), [np.zeros((64, 16), np.float32)]
    with pytest.raises(TargetError, match="has no function missing"):
        run_kernel(board, library, "missing", arrays, blank)
    with pytest.raises(TargetError, match="kernel_runner"):
        run_kernel(board, library.parent / "none.so", "scale", arrays, blank)
    with pytest.raises(TargetError, match="complex64 cannot be sent"):
        run_kernel(board, library, "scale", [arrays[0].astype(np.complex64)], blank)

"""Building fused kernels for tests, and running them on the targets that this CPU has."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

from resq_tvm.schedules import meaning
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.emit import emit
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import (
    Conv,
    FusedKernel,
    Node,
    Phase,
    Store,
    TensorSpec,
)
from resq_tvm.targets.emulated.board import EmulatedBoard
from resq_tvm.targets.emulated.kernels import run_kernel
from resq_tvm.targets.preset import PRESETS, Target, missing_features
from resq_tvm.targets.toolchain import export_options, is_foreign

TARGETS = [name for name, target in PRESETS.items() if not is_foreign(target)]


def target_or_skip(name: str) -> Target:
    """Return a preset, or skip where this CPU lacks it."""
    target = PRESETS[name]
    if missing := missing_features(target):
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    return target


def code_tensor(
    target: Target, name: str, h: int, w: int, c: int, halo: tuple[int, int, int, int] = (0,) * 4
) -> TensorSpec:
    """Describe a tensor of codes."""
    c_phys = 4 if c <= 4 else -(-c // 8) * 8
    return TensorSpec(name, h, w, c, target.code.dtype, c_phys, halo)


def float_tensor(
    name: str, h: int, w: int, c: int, external: bool = False, dtype: str = "float32"
) -> TensorSpec:
    """Describe a float tensor."""
    return TensorSpec(name, h, w, c, dtype, c if external else -(-c // 8) * 8)


def conv_phase(k: tuple[int, int], dilation: tuple[int, int], pad: tuple[int, int]) -> Phase:
    """Return the one phase of an ordinary convolution."""
    return Phase(
        0,
        0,
        tuple(
            (y, x, y * dilation[0] - pad[0], x * dilation[1] - pad[1])
            for y in range(k[0])
            for x in range(k[1])
        ),
    )


def halo_for(anchor: Conv, h: int, w: int, out_h: int, out_w: int) -> tuple[int, int, int, int]:
    """Return the halo that a convolution needs around an ``h`` × ``w`` input."""
    top = left = bottom = right = 0
    for phase in anchor.phases:
        last_y = (out_h - 1 - phase.oy) // anchor.out_stride[0] * anchor.in_stride[0]
        last_x = (out_w - 1 - phase.ox) // anchor.out_stride[1] * anchor.in_stride[1]
        for _, _, dy, dx in phase.taps:
            top, left = max(top, -dy), max(left, -dx)
            bottom, right = max(bottom, last_y + dy - h + 1), max(right, last_x + dx - w + 1)
    return top, left, bottom, right


def execute(
    kernel: FusedKernel,
    target: Target,
    inputs: dict[str, NDArray[Any]],
    decision: Decision | None = None,
) -> dict[str, NDArray[Any]]:
    """Compile and run a kernel; returns logical outputs and checks the halos."""
    func, constants = emit(kernel, decision or decide(kernel, target), target)
    module = tvm.compile(
        tvm.IRModule({"main": func.with_attr("global_symbol", "main")}),
        target=tvm.target.Target(target.llvm),
    )
    zero = kernel.code.zero_point
    physical = [meaning.to_physical(s, inputs[s.name], zero) for s in kernel.inputs]
    blank = [np.full(s.shape, 99, s.dtype) for s in kernel.outputs]
    given = [*physical, *(a for _, a in constants)]
    if is_foreign(target):
        arrays = _emulate(module, target, given, blank)
    else:
        results = [tvm.runtime.tensor(a) for a in blank]
        module["main"](*(tvm.runtime.tensor(a) for a in given), *results)
        arrays = [r.numpy() for r in results]
    out = {}
    for spec, array in zip(kernel.outputs, arrays, strict=True):
        out[spec.name] = meaning.to_logical(spec, array, zero)
        assert meaning.halo_is_zero(spec, array, zero), "halo"
    return out


def _emulate(
    module: Any, target: Target, given: list[NDArray[Any]], blank: list[NDArray[Any]]
) -> list[NDArray[Any]]:
    """Run a kernel on the target's emulated board."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        module.export_library(str(library), **export_options(target))
        board = EmulatedBoard(target.core)
        return run_kernel(board, library, "main", given, blank, timeout_s=120)[0]


def check(
    kernel: FusedKernel,
    target: Target,
    rng: np.random.Generator,
    inputs: dict[str, NDArray[Any]] | None = None,
    ulps: int = 0,
    decision: Decision | None = None,
) -> None:
    """Compare a kernel with its meaning: exact, or within ``ulps`` for float outputs."""
    inputs = inputs or meaning.random_inputs(kernel, rng)
    expected = meaning.run(kernel, inputs)
    actual = execute(kernel, target, inputs, decision)
    for name, value in expected.items():
        if ulps and kernel.tensor(name).dtype == "float32":
            scale = np.maximum(np.abs(value), np.float32(1e-6))
            error = np.abs(actual[name].astype(np.float64) - value) / scale
            assert error.max() <= ulps * 2.0**-23, (name, error.max() * 2.0**23)
        else:
            np.testing.assert_array_equal(actual[name], value, err_msg=name)


def accumulator_kernel(
    target: Target,
    anchor: Conv,
    inputs: tuple[TensorSpec, ...],
    h: int,
    w: int,
    external: bool = False,
) -> FusedKernel:
    """Return a convolution that stores its accumulators as float32 (exact below 2^24)."""
    c = anchor.weight.shape[0]
    nodes = (Node("anchor"), Node("scalar", value=1.0), Node("dequantize", (0, 1)))
    out = float_tensor("y", h, w, c, external)
    return FusedKernel("acc", anchor, h, w, c, inputs, (out,), nodes, (Store(2, "y"),), target.code)


def residual_kernel(
    target: Target,
    anchor: Conv,
    inputs: tuple[TensorSpec, ...],
    h: int,
    w: int,
    rng: np.random.Generator,
) -> FusedKernel:
    """Return a residual step: dequantize, add state, relu, subtract relu of the state, quantize."""
    c = anchor.weight.shape[0]
    nodes = (
        Node("anchor"),
        Node("vector", name="scale"),
        Node("dequantize", (0, 1)),
        Node("load", name="u"),
        Node("add", (2, 3)),
        Node("scalar", value=0.0),
        Node("max", (4, 5)),
        Node("max", (3, 5)),
        Node("sub", (6, 7)),
        Node("quantize", (8,), value=float(np.float32(3.7)), limit=7),
    )
    scale = (rng.uniform(0.5, 1.5, c) / np.sqrt(anchor.weight[0].size) / 4000).astype(np.float32)
    return FusedKernel(
        "residual", anchor, h, w, c, (*inputs, float_tensor("u", h, w, c)),
        (code_tensor(target, "q", h, w, c, (1, 2, 1, 3)), float_tensor("z", h, w, c, True)),
        nodes, (Store(9, "q"), Store(4, "z")), target.code, {"scale": scale},
    )  # fmt: skip


def two_code_kernel(
    target: Target,
    anchor: Conv,
    inputs: tuple[TensorSpec, ...],
    h: int,
    w: int,
    rng: np.random.Generator,
) -> FusedKernel:
    """Return a layer of a keyframe whose inputs have two codes; the second ones lie otherwise."""
    c = anchor.weight.shape[0]
    rest = tuple(
        replace(s, name=f"rest_{s.name}", halo=tuple(n + 1 for n in s.halo))  # type: ignore[arg-type]
        for s in inputs
    )
    nodes = (
        Node("anchor"),
        Node("vector", name="scale"),
        Node("dequantize", (0, 1)),
        Node("rest"),
        Node("vector", name="fine"),
        Node("dequantize", (3, 4)),
        Node("add", (2, 5)),
        Node("quantize", (6,), value=float(np.float32(3.7)), limit=127),
    )
    scale = (rng.uniform(0.5, 1.5, c) / np.sqrt(anchor.weight[0].size) / 4000).astype(np.float32)
    anchor = replace(anchor, rest=tuple(s.name for s in rest))
    return FusedKernel(
        "two", anchor, h, w, c, (*inputs, *rest),
        (code_tensor(target, "q", h, w, c, (1, 2, 1, 3)), float_tensor("z", h, w, c, True)),
        nodes, (Store(7, "q"), Store(6, "z")), target.code, {"scale": scale, "fine": scale / 254},
    )  # fmt: skip

"""Compiled programs against the reference executor on random networks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm.runtime.vm import VirtualMachine

from resq_tvm.passes.pipeline import generate_code, run_phases
from resq_tvm.reference.executor import Executor
from resq_tvm.targets.preset import get_target, missing_features
from resq_tvm.verify import verify
from tests.graphs import annotated, frames, random_network

SCHEMES = "W8A8->W4A4 W8A16->W8A4 W4A4->W2A2 W8A8->W8A4 W8A12->W8A8 W4A10->W4A4".split()
TARGETS = ["x86-avx512-vnni", "x86-avx2", "x86-generic"]


def built(mod: tvm.IRModule, target: str, state_dtype: str, recurrent: bool) -> Any:
    preset = get_target(target)
    if missing_features(preset):
        pytest.skip(f"this CPU lacks {', '.join(missing_features(preset))} of {target}")
    lowered = run_phases(mod, preset, state_dtype=state_dtype, recurrent=recurrent)
    executable = generate_code(lowered, preset)
    return SimpleNamespace(executable=executable, params=lowered.params, lowered=lowered)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(6))
def test_kernels_agree_with_the_reference(seed: int, target: str) -> None:
    mod = annotated(random_network(seed), SCHEMES[seed])
    compiled = built(mod, target, ["float16", "float32"][seed % 2], seed % 4 == 3)
    report = verify(compiled, frames(mod, 3, seed))
    assert report.kernels
    assert report.failures == []
    assert report.outputs_differing == 0
    assert report.differing_share < 0.01


@pytest.mark.parametrize("seed", range(20, 26))
def test_programs_agree_with_the_reference(seed: int) -> None:
    mod = annotated(random_network(seed), "W8A8->W8A8")
    compiled = built(mod, "auto", "float32", False)
    vm = VirtualMachine(compiled.executable, tvm.cpu())
    params = [tvm.runtime.tensor(a) for a in compiled.params.values()]
    key, frame = frames(mod, 2, seed)
    key_outputs, state = vm["keyframe"](tvm.runtime.tensor(key), params)
    outputs, _ = vm["residual"](tvm.runtime.tensor(frame), list(state), params)
    again, _ = vm["residual"](tvm.runtime.tensor(key), list(state), params)
    for got, want in zip(again, key_outputs, strict=True):
        np.testing.assert_array_equal(got.numpy(), want.numpy())

    from resq_tvm.passes.partition import Partition

    programs = Partition("float32")(mod)
    with torch.no_grad():
        want_key, want_state = Executor(programs["keyframe"])(torch.from_numpy(key))
        want, _ = Executor(programs["residual"])(torch.from_numpy(frame), *want_state)
    for got, expected in zip([*key_outputs, *outputs], [*want_key, *want], strict=True):
        scale = float(expected.abs().max()) + 1e-6
        # A code that falls on the other side of a rounding edge moves a sum by one step.
        assert np.abs(got.numpy() - expected.numpy()).mean() < 0.01 * scale

"""The verifier must notice a wrong kernel."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from resq_tvm.compiler import build
from resq_tvm.passes.pipeline import generate_code, run_phases
from resq_tvm.schedules.spec import CodeFormat, TensorSpec
from resq_tvm.targets.preset import get_target
from resq_tvm.verify import pack, unpack, verify
from tests.dynamic import SIDE, dynamic, small_network
from tests.graphs import annotated, frames, random_network


def test_one_changed_weight_is_a_failure_of_its_layer_and_spreads() -> None:
    mod = annotated(random_network(2), "W8A8->W8A8")
    target = get_target("auto")
    lowered = run_phases(mod, target, state_dtype="float32", recurrent=False)
    executable = generate_code(lowered, target)
    clip = frames(mod, 2)
    sound = SimpleNamespace(executable=executable, params=lowered.params, lowered=lowered)
    report = verify(sound, clip)
    assert report.failures == []
    assert report.outputs > 0
    assert report.outputs_differing == 0

    name = next(n for n, a in lowered.params.items() if a.dtype == np.int8)
    broken = {n: a.copy() for n, a in lowered.params.items()}
    broken[name] += 1
    report = verify(SimpleNamespace(executable=executable, params=broken, lowered=lowered), clip)
    assert report.failures
    assert report.failures[0] == name.rsplit(".", 1)[0]
    assert report.kernels[report.failures[0]].largest > 0


def test_a_changed_threshold_and_a_stale_tile_are_failures_of_their_kernels() -> None:
    compiled = build(dynamic(small_network(), tau=0.3), frame_program=False)
    key = np.random.default_rng(0).standard_normal((1, SIDE, SIDE, 3)).astype(np.float32)
    corner, other = key.copy(), key.copy()
    corner[:, :5, :7] += 1
    other[:, 20:, 20:] += 1
    clip = [key, corner, other, key]
    report = verify(compiled, clip)
    assert report.failures == []
    assert report.outputs_differing == 0

    chosen = [
        k for k in compiled.lowered.kernels.values() if any(s.choice for s in k.kernel.stores)
    ]
    names = {k.kernel.name for k in chosen}
    loose = {n: a * 100 if n == "thresholds" else a for n, a in compiled.params.items()}
    report = verify(replace(compiled, params=loose), clip)
    assert report.failures and set(report.failures) <= names

    # What a keyframe leaves is not taken note of: tiles hold what they held before the first.
    workspace = [
        replace(t, refresh=False, output=None, fill=0 if t.refresh else t.fill)
        for t in compiled.lowered.workspace
    ]
    stale = replace(compiled, lowered=replace(compiled.lowered, workspace=workspace))
    assert verify(stale, clip).failures


def test_pack_and_unpack_are_inverse_around_halo_and_padding() -> None:
    code = CodeFormat("uint8", 128)
    spec = TensorSpec("t", 3, 2, 5, "uint8", 8, (1, 2, 0, 1))
    codes = np.arange(-15, 15, dtype=np.int8).reshape(1, 3, 2, 5)
    physical = pack(codes, spec, code)
    assert physical.shape == spec.shape
    assert (physical[0, 0] == 128).all()
    np.testing.assert_array_equal(unpack(physical, spec, code), codes[0])

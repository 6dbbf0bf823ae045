from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.runtime.vm import VirtualMachine

from resq_tvm.passes.executable import OBSERVED
from resq_tvm.passes.pipeline import generate_code, run_phases
from resq_tvm.targets.preset import get_target
from tests.graphs import annotated, frames, random_network


@pytest.fixture(scope="module")
def network():
    mod = annotated(random_network(3), "W8A8->W8A4")
    lowered = run_phases(mod, get_target(), state_dtype="float16", recurrent=False)
    params = [tvm.runtime.tensor(a) for a in lowered.params.values()]
    return generate_code(lowered, get_target()), lowered.kernels, params, frames(mod, 2, 0)


def run(machine, suffix, params, pair):
    first, second = (tvm.runtime.tensor(f) for f in pair)
    outputs, state = machine[f"keyframe{suffix}"](first, params)
    later, _ = machine[f"residual{suffix}"](second, state, params)
    return [np.from_dlpack(t).copy() for t in (*outputs, *later)]


def test_observed_programs_compute_the_same_and_tell_every_kernel(network):
    executable, kernels, params, pair = network
    seen = []

    def note(_function, name, before, *_values):
        if before and not name.startswith("vm."):
            seen.append(name)
        return 0

    machine = VirtualMachine(executable, tvm.cpu())
    machine.set_instrument(note)
    observed = run(machine, OBSERVED, params, pair)
    assert sorted(seen) == sorted(kernels)
    usual = run(VirtualMachine(executable, tvm.cpu()), "", params, pair)
    for one, other in zip(observed, usual, strict=True):
        np.testing.assert_array_equal(one, other)


def test_programs_in_machine_code_tell_nothing(network):
    executable, _, params, pair = network
    machine = VirtualMachine(executable, tvm.cpu())
    seen = []
    machine.set_instrument(lambda _function, name, *_rest: seen.append(name) or 0)
    run(machine, "", params, pair)
    assert not [n for n in seen if not n.startswith("vm.")]

"""Candidates on the emulated board: right outputs, and the same seconds whenever they are run."""

from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.tuning.build import machine_code, program_of
from resq_tvm.schedules.tuning.emulated import (
    EmulatedDevice,
    emulated_fingerprint,
    is_emulated,
)
from resq_tvm.schedules.tuning.scenes import Scene
from resq_tvm.targets.preset import get_target
from tests.schedules.harness import residual_kernel
from tests.schedules.test_conv import conv_of
from tests.tools import board_tools

pytestmark = pytest.mark.aarch64


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a76"])
def test_a_kernel_is_right_and_always_takes_the_same(core: str) -> None:
    board_tools()
    target, rng = get_target(core), np.random.default_rng(3)
    anchor, inputs, h, w = conv_of(target, rng, (16,), 32, (6, 9), (3, 3))
    kernel = residual_kernel(target, anchor, inputs, h, w, rng)
    program = program_of(kernel, decide(kernel, target), target)
    built = machine_code(program, target), program.constants
    scene = Scene(kernel)
    times = []
    for _ in range(2):
        device = EmulatedDevice(target)
        device.load(scene, 1 << 20)
        for outputs, seconds in device.run([built, built], 12, None):
            assert scene.complaint(outputs) == ""
            times += seconds
    assert len(times) == 4 and len(set(times)) == 1 and times[0] > 0


def test_records_say_that_they_are_simulated() -> None:
    target = get_target("cortex-a53")
    assert is_emulated(target) and not is_emulated(get_target("x86-generic"))
    fingerprint = emulated_fingerprint(target)
    assert fingerprint.simulated and fingerprint.folder.endswith("-simulated")

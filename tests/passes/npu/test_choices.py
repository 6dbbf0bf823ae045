"""Choices of bits where the memory cannot hold whole pixels of a convolution."""

import numpy as np
from tvm import relax

from resq_tvm.targets.npu.description import preset_npus
from resq_tvm.targets.preset import npu_target
from tests.dynamic import dynamic
from tests.passes.npu.harness import check_exact, network

CHANNELS = 96


def machine(sram: int):
    npu = preset_npus()["npu-micro"]
    return npu_target(npu.model_copy(update={"sram": npu.sram.model_copy(update={"bytes": sram})}))


def wide_network():
    """Return layers whose weights take more room than what is between them; two outputs."""
    rng = np.random.default_rng(5)

    def conv(emit, x, inputs, name):
        weight = (rng.standard_normal((CHANNELS, 3, 3, inputs)) * 0.1).astype("float32")
        layout = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
        made = relax.op.nn.conv2d(x, relax.const(weight), padding=[1] * 4, **layout)
        return emit(relax.op.nn.relu(emit(made, name)), f"{name}_relu")

    def build(emit, x):
        first = conv(emit, x, 3, "first")
        second = conv(emit, first, CHANNELS, "second")
        third = conv(emit, second, CHANNELS, "third")
        return [emit(relax.op.add(third, second), "sum")]

    return network(build, (1, 12, 10, 3))


def test_a_small_memory_gets_kernels_that_choose():
    qnet = dynamic(wide_network(), tau=0.5)
    frames = [np.random.default_rng(n).random((1, 12, 10, 3), np.float32) for n in range(3)]
    weights = CHANNELS * 9 * CHANNELS
    devices = {
        size: check_exact(qnet.module, machine(size), frames, state_dtype="float16")
        for size in (weights, 8 * weights)
    }
    chosen = {
        size: [n for n in device.lowered.kernels if n.endswith("_choice")]
        for size, device in devices.items()
    }
    assert len(chosen[weights]) >= 1 and not chosen[8 * weights]
    for device in devices.values():
        executed = device.machine.run("residual")
        assert len(executed.blocks) >= 2  # products by zero can be left out all the same

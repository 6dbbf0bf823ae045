"""Residual programs that skip tiles: frames in a row beside the reference."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from resq_tvm.targets.npu.commands import HostCall, Matrix
from resq_tvm.targets.npu.description import preset_npus
from resq_tvm.targets.preset import npu_target
from tests.dynamic import dynamic, small_network
from tests.passes.npu.harness import check_exact, exact_network, network

op = relax.op


def moving(shape, seed):
    """Return a keyframe, a change, the keyframe, a change elsewhere, all new, the keyframe."""
    rng = np.random.default_rng(seed)
    key = rng.random(shape, np.float32)
    one, other = key.copy(), key.copy()
    one[:, : shape[1] // 3, : shape[2] // 4] = rng.random((), np.float32)
    other[:, -2:, -3:] += 0.5
    return [key, one, key, other, rng.random(shape, np.float32), key]


def small(npu, **sram):
    preset = preset_npus()[npu]
    return npu_target(preset.model_copy(update={"sram": preset.sram.model_copy(update=sram)}))


def run_again(device, frames):
    """Return how many commands every residual frame skips, and how many could be."""
    device.reset()
    device.order = "stream"
    skipped = []
    for number, frame in enumerate(frames):
        name = "residual" if number else "keyframe"
        program = device.lowered.stream.programs[name]
        place = program.inputs[0]
        device.machine.write(place, frame.reshape(place.h, place.w, place.c))
        executed = device.machine.run(name, device._host)
        skipped.append(len(executed.skipped))
    residual = device.lowered.stream.programs["residual"].commands
    return skipped[1:], sum(c.flag is not None for c in residual)


@pytest.mark.parametrize("npu", ["npu-micro", "npu-uniform"])
def test_a_network_frame_after_frame(npu):
    qnet = dynamic(small_network(), tau=0.1)
    frames = moving((1, 32, 32, 3), 1)
    device = check_exact(qnet.module, small(npu, bytes=1 << 16), frames, state_dtype="float16")
    skipped, flagged = run_again(device, frames)
    assert skipped[1] == skipped[4] == flagged  # nothing differs from the keyframe
    assert 0 < skipped[0] < flagged and 0 < skipped[2] < flagged
    assert skipped[3] < min(skipped[0], skipped[2])
    # Constants are asked for by what the gate found, tiles by their own flags.
    commands = device.lowered.stream.programs["residual"].commands
    assert len({c.flag for c in commands if isinstance(c, Matrix)}) > 4


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed):
    qnet = dynamic(exact_network(seed, 7), tau=0.3)
    shape = [int(n) for n in qnet.module["main"].params[0].ty.shape]
    frames = moving(tuple(shape), seed)
    check_exact(
        qnet.module, small("npu-micro", bytes=1 << (15 + seed % 3)), frames, state_dtype="float16"
    )


def test_whole_tensors_for_the_host():
    """What the host reads has no map beside it: its kernel runs everywhere."""

    def build(emit, x):
        weight = relax.const(np.random.default_rng(0).random((4, 3, 3, 3)).astype("float32") * 0.1)
        layout = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
        y = emit(op.nn.conv2d(x, weight, padding=[1] * 4, **layout), "conv")
        return [emit(op.image.resize2d(y, (24, 20), layout="NHWC", method="nearest_neighbor",
                                       coordinate_transformation_mode="asymmetric",
                                       rounding_method="floor"), "resize")]  # fmt: skip

    npu = preset_npus()["npu-micro"]
    vector = npu.vector.model_copy(update={"operators": ("mean", "window", "choose", "gate")})
    target = npu_target(npu.model_copy(update={"name": "npu-bare", "vector": vector}))
    qnet = dynamic(network(build, (1, 12, 10, 3)), tau=0.2)
    device = check_exact(qnet.module, target, moving((1, 12, 10, 3), 2), state_dtype="float16")
    residual = device.lowered.stream.programs["residual"]
    (call,) = [item for item in residual.items if isinstance(item, HostCall)]
    assert "d_conv" in call.reads[0].name  # a difference, whose kernel runs everywhere
    guarded = {c.kernel for c in residual.commands if c.flag is not None}
    names = {device.lowered.stream.kernels[k] for k in guarded}
    assert names and not any("d_conv" in name for name in names)

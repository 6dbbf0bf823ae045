"""Whole programs on simulated NPUs against the reference executor: keyframe, then residuals.

Networks of integer layers and IEEE operations agree in every bit. Where sigmoids, averages or
interpolation come in, the reference rounds differently in the last place, and a code may fall on
the other side of a rounding edge: outputs then agree on the mean, and every order of the commands
gives the same bits (docs/numerics.md).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import relax

from resq_tvm.errors import CompileError
from resq_tvm.passes.npu.lower import lower_npu
from resq_tvm.targets.npu.commands import HostCall, Matrix
from resq_tvm.targets.npu.description import OPERATORS
from resq_tvm.targets.npu.timing import simulate
from resq_tvm.targets.preset import get_target
from tests.graphs import annotated, frames, random_network, with_policy
from tests.passes.npu.harness import (
    SCHEMES,
    Device,
    check_exact,
    exact_network,
    network,
    op,
    reference,
)
from tests.schedules.npu.harness import machine

PRESETS = ("npu-mobile", "npu-micro", "npu-uniform")
MEMORIES = ("sram", "dram", "auto")
DTYPES = ("float16", "float32")
DRIFT = 0.01  # mean difference from the reference, as a part of the largest value


@pytest.mark.parametrize("seed", range(18))
def test_networks_of_exact_operators_agree_in_every_bit(seed):
    mod = annotated(exact_network(seed), SCHEMES[seed % len(SCHEMES)])
    check_exact(
        mod, get_target(PRESETS[seed % 3]), frames(mod, 3, seed),
        state_dtype=DTYPES[seed // 3 % 2], state_memory=MEMORIES[seed // 2 % 3],
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(18, 21))
def test_keyframes_of_two_codes_agree_in_every_bit(seed):
    mod = annotated(exact_network(seed), ["W8A16->W8A8", "W8A12->W4A4", "W8A16"][seed % 3])
    check_exact(mod, get_target(PRESETS[seed % 3]), frames(mod, 3, seed), state_dtype="float16")


SMALL = {
    "odd array": machine(array=(1, 3, 5), sram=40_000, accumulators=1000),
    "no depthwise unit": machine(array=(4, 6, 8), sram=30_000, accumulators=2000, depthwise=False),
    "spatial operators on the host": machine(operators=("choose",)),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(30, 34))
def test_small_machines_agree_in_every_bit(name, seed):
    mod = annotated(exact_network(seed), SCHEMES[2 + seed % 3])
    check_exact(mod, SMALL[name], frames(mod, 2, seed), state_dtype=DTYPES[seed % 2])


@pytest.mark.parametrize("tau", [0.05, 0.5, 3.0])
def test_choices_of_bits_agree_in_every_bit(tau):
    seed = int(tau * 20)
    mod = with_policy(annotated(exact_network(seed), "W8A8->W8A{0,4,8}"), tau)
    device = check_exact(mod, get_target("npu-micro"), frames(mod, 3, seed), state_dtype="float16")
    programs = device.lowered.stream.vector_programs
    assert any(step.op == "choose" for program in programs for step in program)


GATES = {
    "many small blocks": {"scale": 0.02, "threshold": 500.0, "block": 4, "reach": 1},
    "large blocks alone": {"scale": 0.05, "threshold": 50.0, "block": 8, "reach": 0},
    "far reach": {"scale": 0.02, "threshold": 3000.0, "block": 2, "reach": 2},
}


@pytest.mark.parametrize("seed", [1, 7])
@pytest.mark.parametrize("gate", GATES)
def test_gates_of_changed_blocks_agree_in_every_bit(gate, seed):
    mod = annotated(exact_network(seed), "W8A8->W8A{0,4,8}")
    mod = with_policy(mod, 0.5, GATES[gate])
    key, part, _ = frames(mod, 3, seed)
    part[:, :4] = key[:, :4]
    corner = key.copy()
    corner[:, 3:, 5:] += 1
    device = check_exact(mod, machine(), [key, part, corner], state_dtype=DTYPES[seed // 4])
    programs = device.lowered.stream.vector_programs
    assert any(step.op == "changed" for program in programs for step in program)


@pytest.mark.parametrize("seed", range(50, 58))
def test_all_operators_agree_on_the_mean_and_in_every_order(seed):
    mod = annotated(random_network(seed), SCHEMES[seed % len(SCHEMES)])
    target = get_target(PRESETS[seed % 3])
    state_dtype = DTYPES[seed % 2]
    device = Device(mod, target, state_dtype=state_dtype)
    first, second = frames(mod, 2, seed)
    wanted = reference(mod, state_dtype, [first, second])
    runs = []
    for order in device.orders:
        device.order = order
        device.reset()
        runs.append([device.frame(n, f) for n, f in enumerate((first, second, first))])
    for found, outputs in zip(runs[0][:2], wanted, strict=True):
        for got, want in zip(found, outputs, strict=True):
            scale = np.abs(want).max() + 1e-6
            assert np.abs(got - want.reshape(got.shape)).mean() < DRIFT * scale
    # The residual of a keyframe is the keyframe.
    for got, want in zip(runs[0][2], runs[0][0], strict=True):
        np.testing.assert_array_equal(got, want)
    for other in runs[1:]:
        for found, same in zip(other, runs[0], strict=True):
            for got, want in zip(found, same, strict=True):
                np.testing.assert_array_equal(got, want)


def weight(out: int, k: int, c: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return relax.const((rng.standard_normal((out, k, k, c)) / (k * c**0.5)).astype("float32"))


def conv(x: Any, out: int, k: int = 3, groups: int = 1, seed: int = 0) -> Any:
    kernel = weight(out, k, int(x.ty.shape[3]) // groups, seed)
    pad = [k // 2] * 4
    return op.nn.conv2d(x, kernel, [1, 1], pad, [1, 1], groups, "NHWC", "OHWI")


def joined(emit: Any, x: Any) -> list[Any]:
    """Transposed convolutions, a concatenation that a layer reads, several outputs."""
    a = emit(op.nn.relu(emit(conv(x, 5), "a")), "ra")
    up = op.nn.conv2d_transpose(
        a, weight(7, 3, 5), [2, 2], [1] * 4, [1, 1], [1, 1], 1, "NHWC", "OHWI"
    )
    b = emit(op.nn.relu(emit(up, "b")), "rb")
    apart = op.nn.conv2d_transpose(
        a, weight(4, 1, 5), [2, 2], [0] * 4, [1, 1], [1, 1], 1, "NHWC", "OHWI"
    )
    c = emit(op.nn.relu(emit(apart, "c")), "rc")  # three of its phases have no taps
    both = emit(op.concat([b, c], axis=3), "both")
    d = emit(op.nn.relu(emit(conv(both, 6), "d")), "rd")
    return [emit(conv(d, 2, 1), "e"), b, emit(op.add(emit(conv(d, 6, 1, 3), "f"), d), "g")]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("preset", PRESETS)
def test_transposed_joined_and_several_outputs(preset, scheme):
    mod = annotated(network(joined), scheme)
    for state_dtype, state_memory in zip(DTYPES, MEMORIES[:2], strict=True):
        device = check_exact(
            mod, get_target(preset), frames(mod, 3), state_dtype=state_dtype,
            state_memory=state_memory,
        )  # fmt: skip
        assert not any(device.lowered.opaque.values())


def two_layers(emit: Any, x: Any) -> list[Any]:
    hidden = emit(op.nn.relu(emit(conv(x, 8), "a")), "ra")
    return [emit(conv(hidden, 4), "b")]


@pytest.mark.parametrize("memory", MEMORIES[:2])
def test_state_lies_where_it_is_told_to(memory):
    mod = annotated(network(two_layers), "W8A8->W4A4")
    device = check_exact(
        mod, get_target("npu-micro"), frames(mod, 3), state_dtype="float16", state_memory=memory
    )
    places = device.state()
    assert places and {p.memory for p in places} == {memory}
    stream = device.lowered.stream
    read = stream.programs["residual"].state
    assert [replace(a, name="") for a in places] == [replace(b, name="") for b in read]
    target = get_target("npu-micro")
    written = simulate(target.npu, stream, "keyframe").state_written
    loaded = simulate(target.npu, stream, "residual").state_read
    size = sum(p.nbytes for p in places)
    assert (written, loaded) == (0, 0) if memory == "sram" else min(written, loaded) >= size


@pytest.mark.parametrize("seed", range(6))
def test_what_the_host_reads_or_writes_lies_in_dram(seed):
    """With float32 state, outputs are state, too."""
    mod = annotated(exact_network(seed), "W8A8->W4A4")
    for target in (get_target("npu-mobile"), SMALL["spatial operators on the host"]):
        stream = lower_npu(mod, target, state_dtype="float32", state_memory="sram").stream
        for program in stream.programs.values():
            calls = [item for item in program.items if isinstance(item, HostCall)]
            seen = [p for call in calls for p in (*call.reads, *call.writes)]
            for place in (*program.inputs, *program.outputs, *seen):
                assert place.memory == "dram", (program.name, place)


def test_state_that_does_not_fit_the_chip_is_told():
    mod = annotated(network(two_layers, (1, 40, 40, 3)), "W8A8->W4A4")
    small = machine(sram=20_000)
    with pytest.raises(CompileError, match=r"state takes \d+ bytes, npu-drawn has 10000 bytes"):
        lower_npu(mod, small, state_dtype="float16", state_memory="sram")
    device = check_exact(mod, small, frames(mod, 2), state_dtype="float16")
    assert {p.memory for p in device.state()} == {"dram"}
    with pytest.raises(CompileError, match="state memory 'disk' is unknown; use auto, sram, dram"):
        lower_npu(mod, small, state_dtype="float16", state_memory="disk")


def spatial(emit: Any, x: Any) -> list[Any]:
    """Operators that a plain machine lacks, each by itself."""
    a = emit(conv(x, 8), "a")
    pooled = emit(op.nn.max_pool2d(a, [2, 2], [2, 2], layout="NHWC"), "pooled")
    b = emit(conv(emit(op.sigmoid(pooled), "s"), 8, 1), "b")
    back = op.image.resize2d(b, (6, 6), layout="NHWC", method="nearest_neighbor",
                             coordinate_transformation_mode="asymmetric",
                             rounding_method="floor")  # fmt: skip
    return [emit(conv(emit(back, "back"), 4), "c")]


def test_what_the_machine_lacks_runs_on_the_host():
    mod = annotated(network(spatial, (1, 6, 6, 3)), "W8A8->W8A8")
    full = Device(mod, machine(), state_dtype="float32")
    assert not any(full.lowered.opaque.values())
    bare = Device(mod, machine(operators=(), functions=()), state_dtype="float32")
    for name, program in bare.lowered.stream.programs.items():
        calls = [item for item in program.items if isinstance(item, HostCall)]
        assert len(calls) == len(bare.lowered.opaque[name]) >= 2
        for call, told in zip(calls, bare.lowered.opaque[name], strict=True):
            assert told.lower().startswith(call.operator)
    first, second = frames(mod, 2)
    for number, frame in enumerate((first, second, first)):
        for got, want in zip(bare.frame(number, frame), full.frame(number, frame), strict=True):
            np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


def test_codes_that_the_host_writes_take_whole_bytes():
    mod = annotated(network(spatial, (1, 6, 6, 3)), "W4A4")
    wide, narrow = set(), set()
    for operators, found in (((), wide), (OPERATORS, narrow)):
        device = Device(mod, machine(operators=operators), state_dtype="float32")
        stream = device.lowered.stream
        found |= {c.source.bits for p in stream.programs.values() for c in p.commands
                  if isinstance(c, Matrix)}  # fmt: skip
        calls = [i for p in stream.programs.values() for i in p.items if isinstance(i, HostCall)]
        formats = {place.format for call in calls for place in (*call.reads, *call.writes)}
        assert formats <= {"f32", "f16", "c8"}
    assert (wide, narrow) == ({4, 8}, {4})


def test_functions_that_the_machine_lacks_run_on_the_host_behind_a_layer():
    def build(emit: Any, x: Any) -> list[Any]:
        a = emit(op.sigmoid(emit(conv(x, 8), "a")), "sa")
        b = emit(op.tanh(emit(conv(a, 8), "b")), "tb")
        return [emit(conv(b, 4), "c")]

    mod = annotated(network(build), "W8A8->W8A8")
    full = Device(mod, machine(), state_dtype="float32")
    bare = Device(mod, machine(functions=("tanh",)), state_dtype="float32")
    assert not any(full.lowered.opaque.values())
    told = [name for names in bare.lowered.opaque.values() for name in names]
    assert told and all("sigmoid" in name for name in told)
    for number, frame in enumerate(frames(mod, 3)):
        for got, want in zip(bare.frame(number, frame), full.frame(number, frame), strict=True):
            np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


def test_what_cannot_run_is_listed_at_once():
    gate = GATES["far reach"]
    mod = with_policy(annotated(network(two_layers), "W8A8->W8A{0,8}"), 0.5, gate)
    with pytest.raises(CompileError) as caught:
        lower_npu(mod, machine(operators=()), state_dtype="float16")
    text = str(caught.value)
    assert re.match(r"(\d) kernel\(s\) cannot run on npu-drawn: ", text)
    listed = text.partition(": ")[2].partition("; use a machine")[0].split("; ")
    assert len(listed) == int(text[0]) >= 2 and "\n" not in text
    assert all(name.startswith("residual_") for name in listed)
    assert sum("the choice of bits" in name for name in listed) == 2
    assert sum("the gate of changed blocks" in name for name in listed) == 1
    lower_npu(mod, machine(operators=("choose", "gate")), state_dtype="float16")

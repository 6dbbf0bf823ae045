"""Cascades: bit-exact, without missing waits, and with less traffic than kernels one by one."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resq_tvm.errors import CompileError
from resq_tvm.passes.npu.arrangement import Group
from resq_tvm.passes.npu.cascade import Cascade, place_cascades
from resq_tvm.passes.npu.lower import lower_npu
from resq_tvm.passes.npu.memory import Arena, Value
from resq_tvm.schedules.npu.context import working_bytes
from resq_tvm.schedules.spec import TensorSpec
from resq_tvm.targets.npu.commands import Load, Matrix, Store, Vector
from resq_tvm.targets.npu.stream_file import from_bytes, to_bytes
from resq_tvm.targets.npu.timing import simulate
from resq_tvm.targets.preset import get_target
from tests.graphs import annotated, frames, with_policy
from tests.passes.npu.harness import SCHEMES, check_exact, exact_network, network, op, tall_network
from tests.passes.npu.test_lower import conv
from tests.schedules.npu.harness import machine

ARRAYS = ((4, 8, 8), (1, 3, 5), (4, 6, 8))


def block(emit: Any, x: Any) -> list[Any]:
    """Layers with a shortcut between them: its sum in float32 is what costs most."""
    a = emit(op.nn.relu(emit(conv(x, 8, seed=1), "a")), "ra")
    b = emit(op.nn.relu(emit(conv(a, 8, seed=2), "b")), "rb")
    c = emit(op.nn.relu(op.add(emit(conv(b, 8, seed=3), "c"), a)), "rc")
    return [emit(conv(c, 4, seed=4), "d")]


def rings_of(stream: Any, program: str) -> set[int]:
    """Return the rows of all circular buffers that a program's commands name."""
    found = set()
    for command in stream.programs[program].commands:
        if isinstance(command, Matrix):
            found.add(command.source.ring)
        elif isinstance(command, Vector):
            found |= {o.ring for o in command.operands}
    return found - {0}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(64, 32), (61, 33)])
def test_a_block_with_a_shortcut_stays_on_the_chip(shape, scheme):
    target = machine(sram=1 << 15)
    mod = annotated(network(block, (1, *shape, 3)), scheme)
    plain = lower_npu(mod, target, state_dtype="float16").stream
    device = check_exact(mod, target, frames(mod, 3), state_dtype="float16", cascades="on")
    stream = device.lowered.stream
    for name in stream.programs:
        before, after = (simulate(target.npu, s, name) for s in (plain, stream))
        assert not rings_of(plain, name) and rings_of(stream, name)
        assert after.dram_read + after.dram_written < before.dram_read + before.dram_written
        assert after.cycles < before.cycles
    assert {r.origin for r in device.lowered.kernels.values()} <= {"cascade", "heuristic"}
    assert "cascade" in {r.origin for r in device.lowered.kernels.values()}


@pytest.mark.parametrize("seed", [2, 3, 5, 7, 9, 11, 14, 26, 27, 29, 31, 41, 45, 46, 50, 51, 58])
def test_tall_networks_agree_in_every_bit(seed):
    mod = annotated(tall_network(seed, 10), SCHEMES[seed % len(SCHEMES)])
    target = machine(
        array=ARRAYS[seed % 3], sram=(24_000, 32_000, 48_000)[seed // 3 % 3],
        accumulators=(2000, 4000)[seed % 2],
    )  # fmt: skip
    device = check_exact(
        mod, target, frames(mod, 2, seed), state_dtype=("float16", "float32")[seed // 3 % 2],
        state_memory=("auto", "dram")[seed % 2], cascades="on",
    )  # fmt: skip
    stream = device.lowered.stream
    assert any(rings_of(stream, name) for name in stream.programs)


@pytest.mark.parametrize("seed", range(70, 76))
def test_networks_of_many_operators_agree_whether_or_not_something_cascades(seed):
    mod = annotated(exact_network(seed, 12), SCHEMES[seed % len(SCHEMES)])
    check_exact(
        mod, machine(sram=32_000, accumulators=4000), frames(mod, 2, seed), state_dtype="float16",
        cascades="auto",
    )  # fmt: skip


@pytest.mark.parametrize(
    "gate", [None, {"scale": 0.02, "threshold": 500.0, "block": 4, "reach": 1}]
)
@pytest.mark.parametrize("seed", [3, 11])
def test_layers_that_choose_bits_run_between_cascades(seed, gate):
    mod = with_policy(annotated(tall_network(seed, 10), "W8A8->W8A{0,4,8}"), 0.5, gate)
    device = check_exact(
        mod, machine(sram=48_000), frames(mod, 2, seed), state_dtype="float16", cascades="on"
    )
    assert "cascade" in {r.origin for r in device.lowered.kernels.values()}


def test_what_fits_whole_needs_no_cascade():
    mod = annotated(network(block, (1, 12, 8, 3)), "W8A8->W4A4")
    target = get_target("npu-mobile")
    streams = [
        lower_npu(mod, target, state_dtype="float16", cascades=c).stream for c in ("off", "auto")
    ]
    cycles = [
        [simulate(target.npu, s, name).cycles for name in ("keyframe", "residual")] for s in streams
    ]
    assert all(a <= b for a, b in zip(cycles[1], cycles[0], strict=True))


def test_auto_is_never_slower():
    mod = annotated(network(block, (1, 61, 33, 3)), "W8A8->W4A4")
    target = machine(sram=1 << 15)
    found = {}
    for cascades in ("off", "on", "auto", "search"):
        stream = lower_npu(mod, target, state_dtype="float16", cascades=cascades).stream
        found[cascades] = [simulate(target.npu, stream, n).cycles for n in stream.programs]
    for index in range(2):
        assert found["auto"][index] <= min(found["off"][index], found["on"][index])
        assert found["search"][index] <= found["auto"][index]


def test_tiles_and_buffers_lie_apart():
    """Circular buffers lie in the part of the SRAM for tensors, constants and tiles behind it."""
    target = machine(sram=1 << 15)
    mod = annotated(network(block, (1, 64, 32, 3)), "W8A8")
    stream = lower_npu(mod, target, state_dtype="float16", cascades="on").stream
    border = target.npu.sram.bytes - working_bytes(target.npu)
    for command in stream.programs["keyframe"].commands:
        if isinstance(command, Load | Store):
            assert command.sram >= border
        elif isinstance(command, Vector):
            for operand in command.operands:
                if operand.ring:
                    assert operand.address + operand.ring * operand.row <= border + operand.row
    assert from_bytes(to_bytes(stream), "again") == stream


def test_weights_are_loaded_once():
    target = machine(sram=1 << 15)
    mod = annotated(network(block, (1, 64, 32, 3)), "W8A8")
    low = lower_npu(mod, target, state_dtype="float16", cascades="on")
    loads = Counter(c.dram for c in low.stream.programs["keyframe"].commands if isinstance(c, Load))
    names = list(low.params)
    held = [names[n] for r in low.kernels.values() if r.origin == "cascade" for n in r.params]
    assert len(held) > 4
    for name in held:
        # Weights are loaded by tiles of output channels, constants at once.
        assert loads[low.stream.params[name]] == held.count(name)


def test_an_unknown_choice_is_refused():
    mod = annotated(network(block, (1, 8, 8, 3)), "W8A8")
    with pytest.raises(CompileError, match="cascades 'always' is unknown; use auto, on, off"):
        lower_npu(mod, machine(), state_dtype="float16", cascades="always")


def test_frames_differ_after_a_cascade():
    """The results are not those of junk that agrees by chance: another frame, another output."""
    mod = annotated(network(block, (1, 64, 32, 3)), "W8A8")
    device = check_exact(
        mod, machine(sram=1 << 15), frames(mod, 1), state_dtype="float16", cascades="on"
    )
    first, second = frames(mod, 2, 5)
    assert not np.array_equal(device.frame(0, first)[0], device.frame(0, second)[0])


def test_what_a_cascade_makes_or_reads_is_there_from_its_first_kernel_to_its_last():
    spec = TensorSpec("t", 20, 4, 2, "float32", 2)
    values = {
        "before": Value(spec, 0, 1), "read": Value(spec, 1, 3), "ring": Value(spec, 3, 4),
        "inside": Value(spec, 4, 5), "kept": Value(spec, 4, 8), "behind": Value(spec, 6, 7),
    }  # fmt: skip
    cascade = Cascade(Group(2, 5, 1, 0), (), (), {"ring": 3, "inside": 20}, 0)
    place_cascades(SimpleNamespace(values=values), [cascade], Arena(0, 4096))
    assert {n: (v.first, v.last) for n, v in values.items()} == {
        "before": (0, 1), "read": (1, 5), "ring": (2, 5),
        "inside": (2, 5), "kept": (2, 8), "behind": (6, 7),
    }  # fmt: skip
    assert (values["ring"].spec.ring, values["ring"].nbytes) == (3, 3 * 4 * 2 * 4)
    assert (values["inside"].spec.ring, values["inside"].nbytes) == (0, 20 * 4 * 2 * 4)
    assert {values[n].address for n in ("ring", "inside")} == {0, 128}
    assert all(v.address < 0 for n, v in values.items() if n not in cascade.rings)

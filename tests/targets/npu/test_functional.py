from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resq_tvm.errors import ArtifactError
from resq_tvm.schedules import meaning
from resq_tvm.targets.npu.commands import (
    HostCall,
    Load,
    Program,
    Store,
    Stream,
)
from resq_tvm.targets.npu.functional import Machine
from resq_tvm.targets.npu.timing import simulate
from tests.targets.npu.layer import Layer, dense
from tests.targets.npu.machines import small_npu


@pytest.fixture
def layer(rng):
    return Layer(rng)


def test_a_tiled_layer_is_its_kernel_bit_by_bit(layer):
    machine = layer.machine(tuple(layer.commands()))
    assert machine.run("keyframe").blocks == {}
    expected = meaning.run(layer.kernel, {"x": layer.x})
    np.testing.assert_array_equal(machine.read(layer.codes), expected["q"])
    np.testing.assert_array_equal(machine.read(layer.floats), expected["y"])
    np.testing.assert_array_equal(machine.read(layer.source), layer.x)
    assert len(np.unique(expected["q"])) > 5


def test_order_decides(layer):
    """Two buffers let the next tile's load run early; with one, the same order is a mistake."""
    commands = layer.commands()
    early = list(range(len(commands)))
    for load in range(7, len(commands), 5):  # every tile's load, before the last tile's products
        early.remove(load)
        early.insert(early.index(load - 4), load)
    good, bad = (layer.machine(tuple(c)) for c in (commands, layer.commands(buffers_used=1)))
    expected = meaning.run(layer.kernel, {"x": layer.x})["q"]
    good.run("keyframe", order=early)
    np.testing.assert_array_equal(good.read(layer.codes), expected)
    bad.run("keyframe")
    np.testing.assert_array_equal(bad.read(layer.codes), expected)
    bad.run("keyframe", order=early)
    assert (bad.read(layer.codes) != expected).any()
    for wrong in (early[1:], [*early, 0], [0] * len(early)):
        with pytest.raises(ValueError, match="order must name"):
            good.run("keyframe", order=wrong)


@pytest.mark.parametrize("when", ["start", "end"])
def test_the_order_that_the_cycle_model_finds_is_a_right_one(layer, when):
    machine = layer.machine(tuple(layer.commands()))
    timing = simulate(machine.npu, machine.stream, "keyframe")
    order = np.argsort(getattr(timing.commands, when), kind="stable")
    assert (order != np.arange(len(order))).any()
    machine.run("keyframe", order=order)
    expected = meaning.run(layer.kernel, {"x": layer.x})["q"]
    np.testing.assert_array_equal(machine.read(layer.codes), expected)


def test_host_calls_run_in_their_place_and_order_does_not_cross_them(layer):
    commands = layer.commands()
    call = HostCall("negate", "negative", (layer.floats,), (layer.floats,), ((1,), (1,)))

    def host(called, machine):
        assert called is call
        machine.write(layer.floats, -machine.read(layer.floats))

    expected = meaning.run(layer.kernel, {"x": layer.x})["y"]
    for items, sign in (((tuple(commands), call), -1), ((call, tuple(commands)), 1)):
        machine = layer.machine(*items)
        machine.run("keyframe", host, order=range(len(commands)))
        np.testing.assert_array_equal(machine.read(layer.floats), sign * expected)
    with pytest.raises(ArtifactError, match="'negate' on the host"):
        machine.run("keyframe")


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 5),
    piece=st.integers(1, 20),
    gaps=st.tuples(*[st.integers(0, 3)] * 4),
    begins=st.tuples(*[st.integers(0, 5)] * 2),
)
def test_transfers_move_their_pieces_and_nothing_else(rows, columns, piece, gaps, begins):
    dram_column, sram_column = piece + gaps[0], piece + gaps[1]
    dram_row, sram_row = columns * dram_column + gaps[2], columns * sram_column + gaps[3]
    shape = (begins[0], begins[1], rows, columns, piece)
    move = (*shape, dram_row, dram_column, sram_row, sram_column)
    program = Program("p", (), (), (), ((Load(*move),),))
    back = Program("q", (), (), (), ((Store(*move),),))
    dram = np.random.default_rng(0).integers(0, 256, 1024, np.uint8)
    stream = Stream("npu-micro", ("k",), (), {}, 1024, {"p": program, "q": back})
    machine = Machine(small_npu(2048), stream, dram.copy())

    expected = machine.sram.copy()
    pieces = [
        (begins[0] + r * dram_row + c * dram_column, begins[1] + r * sram_row + c * sram_column)
        for r in range(rows)
        for c in range(columns)
    ]
    for outside, inside in pieces:
        expected[inside : inside + piece] = dram[outside : outside + piece]
    machine.run("p")
    np.testing.assert_array_equal(machine.sram, expected)
    machine.sram[:] = ~machine.sram
    for outside, inside in pieces:
        dram[outside : outside + piece] = machine.sram[inside : inside + piece]
    machine.run("q")
    np.testing.assert_array_equal(machine.dram, dram)


def test_sram_keeps_its_state_and_begins_as_junk():
    load = Program("load", (), (), (), ((Load(0, 64, 1, 1, 16, 0, 0, 0, 0),),))
    keep = Program("keep", (), (), (), ((Store(16, 64, 1, 1, 16, 0, 0, 0, 0),),))
    stream = Stream("npu-micro", ("k",), (), {}, 32, {"load": load, "keep": keep})
    dram = np.arange(32, dtype=np.uint8)
    machine = Machine(small_npu(), stream, dram)
    machine.run("keep")
    assert (machine.dram[16:] != dram[:16]).any() and machine.dram is dram
    machine.run("load")
    machine.run("keep")
    np.testing.assert_array_equal(dram[16:], np.arange(16))
    for memory in (machine.sram, machine.accumulators):
        assert len(np.unique(memory)) == 256


@pytest.mark.parametrize(
    "change,message",
    [
        ({"dram": 10}, r"Load of kernel 'k'\): DRAM bytes 10 to 42 lie outside its 32"),
        ({"dram": -1}, "DRAM bytes -1 to 31"),
        ({"sram": 4096 - 8}, r"SRAM bytes 4088 to 4120 lie outside its 4096"),
        ({"rows": 2, "dram_row": 8}, "DRAM bytes 0 to 40"),
        ({"rows": 2, "sram_row": -8}, "SRAM bytes -8 to 32"),
    ],
)
def test_transfers_that_reach_outside_are_named(change, message):
    move = replace(Load(0, 0, 1, 1, 32, 0, 0, 0, 0), **change)
    stream = Stream("npu-micro", ("k",), (), {}, 32, {"p": Program("p", (), (), (), ((move,),))})
    machine = Machine(small_npu(4096), stream, np.zeros(32, np.uint8))
    with pytest.raises(ArtifactError, match=message):
        machine.run("p")


def test_what_does_not_fit_together_is_refused():
    npu = small_npu()
    stream = Stream("npu-micro", (), (), {}, 32)
    with pytest.raises(ArtifactError, match="for 'npu-other', not for 'npu-micro'"):
        Machine(npu, replace(stream, npu="npu-other"), np.zeros(32, np.uint8))
    for dram in (np.zeros(31, np.uint8), np.zeros(32, np.int8)):
        with pytest.raises(ArtifactError, match="not of the 32 bytes"):
            Machine(npu, stream, dram)
    locked = np.zeros(32, np.uint8)
    locked.flags.writeable = False
    with pytest.raises(ArtifactError, match="cannot be written"):
        Machine(npu, stream, locked)
    machine = Machine(npu, stream, np.zeros(32, np.uint8))
    with pytest.raises(ArtifactError, match="has no program 'keyframe'"):
        machine.run("keyframe")
    with pytest.raises(ArtifactError, match=r"'x' is \(1, 2, 3\), and not \(2, 3\)"):
        machine.write(dense("x", 0, 1, 2, 3, "c8"), np.zeros((2, 3)))
    with pytest.raises(ArtifactError, match="tensor 'x': DRAM bytes 30 to 36"):
        machine.read(dense("x", 30, 1, 2, 3, "c8"))


@pytest.mark.parametrize("format", ["f32", "f16", "c2", "c4", "c8", "u8", "i32"])
@pytest.mark.parametrize("memory", ["dram", "sram"])
def test_tensors_are_read_as_they_were_written(format, memory, rng):
    stream = Stream("npu-micro", (), (), {}, 4096)
    machine = Machine(small_npu(4096), stream, np.zeros(4096, np.uint8))
    value = rng.integers(0, 2, (3, 4, 5)).astype(np.float32)
    place = dense("x", 7, 3, 4, 5, format, memory)
    machine.write(place, value)
    np.testing.assert_array_equal(machine.read(place), value)


def test_a_flag_of_zero_skips(layer):
    commands = layer.commands()
    flag = layer.machine(tuple(commands)).sram.size - 1
    flagged = tuple(replace(c, flag=flag) for c in commands)
    for value in (0, 1, 255):
        machine = layer.machine(flagged)
        before = machine.read(layer.codes)
        machine.sram[flag] = value
        executed = machine.run("keyframe")
        assert executed.skipped == (set() if value else set(range(len(commands))))
        expected = meaning.run(layer.kernel, {"x": layer.x})["q"] if value else before
        np.testing.assert_array_equal(machine.read(layer.codes), expected)

"""Places of tensors: nothing that lives at the same time shares a byte."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.passes.npu.memory import Arena, Value, keep_on_chip, spill
from resq_tvm.schedules.npu.context import ALIGNMENT
from resq_tvm.schedules.spec import TensorSpec


def tensor(nbytes):
    return TensorSpec("t", 1, nbytes, 1, "uint8", 1)


@st.composite
def values(draw):
    """Draw tensors with lifetimes; some have places already, some may not stay on the chip."""
    made = []
    for _ in range(draw(st.integers(1, 25))):
        first = draw(st.integers(-1, 12))
        value = Value(tensor(draw(st.integers(1, 700))), first, first + draw(st.integers(0, 6)))
        value.fixed = draw(st.sampled_from([False, False, False, True]))
        value.movable = draw(st.booleans())
        value.readers = draw(st.integers(0, 3))
        made.append(value)
    return made


def apart(a, b):
    """Whether two values differ in time, in memory or in address."""
    return (
        a.memory != b.memory
        or a.last < b.first
        or b.last < a.first
        or a.address + a.nbytes <= b.address
        or b.address + b.nbytes <= a.address
    )


@settings(max_examples=200, derandomize=True)
@given(made=values(), room=st.integers(0, 4000), begin=st.sampled_from([0, 64, 640]))
def test_tensors_that_live_together_lie_apart(made, room, begin):
    chip, outside = Arena(begin, begin + room), Arena(begin)
    keep_on_chip(made, chip)
    stayed = [v for v in made if v.memory == "sram"]
    assert all(v.movable and not v.fixed for v in stayed)
    assert all(begin <= v.address and v.address + v.nbytes <= begin + room for v in stayed)
    spill(made, outside)
    assert all(v.address >= begin and v.address % ALIGNMENT == 0 for v in made)
    assert all(apart(a, b) for a, b in combinations(made, 2))
    ends = [v.address + v.nbytes for v in made if v.memory == "dram"]
    assert outside.top >= max(ends, default=0)


@settings(max_examples=100, derandomize=True)
@given(made=values())
def test_memory_is_used_again(made):
    """An arena takes no more than the sum of all, and what lives alone begins at its start."""
    arena = Arena(0)
    spill(made, arena)
    sizes = [-(-v.nbytes // ALIGNMENT) * ALIGNMENT for v in made]
    assert arena.top <= sum(sizes)
    for value in made:
        others = [v for v in made if v is not value]
        if all(v.last < value.first or value.last < v.first for v in others):
            assert value.address == 0


def test_a_gap_between_two_is_filled():
    arena = Arena(0, 64 * 4)
    assert arena.place(64, 0, 9) == 0
    assert arena.place(100, 0, 3) == 64
    assert arena.place(10, 0, 9) == 192
    assert arena.place(1, 2, 5) is None  # full
    assert arena.place(128, 4, 5) == 64
    assert arena.place(65, 6, 7) == 64
    assert arena.place(1, 6, 7) is None


def test_what_saves_most_transfers_for_its_time_stays():
    often, seldom = (Value(tensor(600), 0, 4, readers=n) for n in (3, 1))
    short = Value(tensor(600), 0, 1, readers=1)
    chip = Arena(0, 640)
    keep_on_chip([seldom, often, short], chip)
    assert [v.memory for v in (often, seldom, short)] == ["dram", "dram", "sram"]
    keep_on_chip([seldom, often], Arena(0, 1280))
    assert often.memory == seldom.memory == "sram" and often.address < seldom.address


def test_what_has_a_place_keeps_it():
    fixed = Value(tensor(100), 0, 3, fixed=True, address=4096)
    other = Value(tensor(100), 0, 3)
    spill([fixed, other], Arena(128))
    assert (fixed.address, other.address) == (4096, 128)

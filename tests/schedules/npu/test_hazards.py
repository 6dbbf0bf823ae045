"""The waits of random programs against a list of every access."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.schedules.npu.hazards import Access, Hazards
from resq_tvm.targets.npu.commands import Engine

TENSORS = 96  # bytes of every memory that tensors take
END = TENSORS + 64  # scratch lies behind, in sram and acc


@dataclass
class Command:
    engine: Engine
    waits: tuple
    reads: set = field(default_factory=set)  # (memory, byte)
    writes: set = field(default_factory=set)


class Recorder:
    """Drives `Hazards` and keeps a list of all that was touched."""

    def __repr__(self):
        return "\n".join(map(str, self.commands))

    def __init__(self):
        self.hazards = Hazards()
        self.commands = []
        self.tensors = {}  # key → memory, start, end, bytes that were written
        self.written = set()  # whatever was: (memory, byte)
        self.passing = set()  # keys of tensors whose bytes are written again

    def declare(self, key, memory, start, end, passing=False):
        for old, (where, first, last, _) in list(self.tensors.items()):
            if where == memory and first < end and start < last:
                del self.tensors[old]
        self.tensors[key] = (memory, start, end, set())
        self.hazards.declare(key, memory, start, end, passing)
        if passing:
            self.passing.add(key)

    def command(self, engine, reads, writes):
        waits = self.hazards.command(engine, reads, writes)
        spots = [{s for a in part for s in self.spots(a)} for part in (reads, writes)]
        self.commands.append(Command(engine, waits, *spots))
        self.written |= spots[1]

    def spots(self, access):
        memory = self.tensors[access.key][0] if access.key in self.tensors else access.key
        return {(memory, byte) for byte in range(access.start, access.end)}

    def ended_before(self):
        """Return, for every command, the numbers of those that surely ended before it began."""
        last, known, of_engine = {}, [], {e: [] for e in Engine}
        for number, command in enumerate(self.commands):
            before = set()
            direct = [last[command.engine]] if command.engine in last else []
            direct += [of_engine[e][count - 1] for e, count in command.waits]
            for other in direct:
                before |= {other} | known[other]
            known.append(before)
            last[command.engine] = number
            of_engine[command.engine].append(number)
        return known

    def unordered(self):
        """Yield pairs that touch the same byte, one of them writing, without an order."""
        known = self.ended_before()
        for j, later in enumerate(self.commands):
            for i, earlier in enumerate(self.commands[:j]):
                clash = earlier.writes & (later.reads | later.writes) | earlier.reads & later.writes
                if clash and i not in known[j]:
                    yield i, j, sorted(clash)[0]


def span(draw, first, last):
    start = draw(st.integers(first, last - 1))
    return start, draw(st.integers(start + 1, min(last, start + 24)))


@st.composite
def programs(draw):
    """Draw tensors that come and go, and commands on them and on scratch memory."""
    recorder = Recorder()
    for memory in ("dram", "sram"):
        recorder.declare(f"input in {memory}", memory, 0, 32)
        recorder.tensors[f"input in {memory}"][3].update(range(32))
    count = 0
    for _ in range(draw(st.integers(2, 30))):
        if not recorder.tensors or draw(st.integers(0, 3)) == 0:
            count += 1
            memory = draw(st.sampled_from(["dram", "sram"]))
            recorder.declare(f"t{count}", memory, *span(draw, 0, TENSORS), draw(st.booleans()))
            continue
        reads, writes = [], []
        for accesses in (reads, writes):
            for _ in range(draw(st.integers(0, 2))):
                accesses += drawn_access(draw, recorder, accesses is writes)
        recorder.command(draw(st.sampled_from(list(Engine))), reads, writes)
    return recorder


def drawn_access(draw, recorder, written):
    if draw(st.booleans()):
        access = Access(draw(st.sampled_from(["sram", "acc"])), *span(draw, TENSORS, END))
        # Scratch is written before it is read.
        if written or recorder.spots(access) <= recorder.written:
            return [access]
        return []
    key = draw(st.sampled_from(sorted(recorder.tensors)))
    _, start, end, done = recorder.tensors[key]
    access = Access(key, *span(draw, start, end))
    touched = set(range(access.start, access.end))
    # Every byte of a tensor is written, and then read; of most tensors it is written once.
    if not written:
        return [access] if touched <= done else []
    if touched & done and key not in recorder.passing:
        return []
    done |= touched
    return [access]


@settings(max_examples=300, derandomize=True)
@given(recorder=programs())
def test_no_wait_is_missing(recorder):
    assert list(recorder.unordered()) == []


@settings(max_examples=100, derandomize=True)
@given(recorder=programs())
def test_waits_name_other_engines_commands_that_came_before_once(recorder):
    counts = dict.fromkeys(Engine, 0)
    known = {engine: {} for engine in Engine}
    for command in recorder.commands:
        engines = [engine for engine, _ in command.waits]
        assert command.engine not in engines and engines == sorted(set(engines))
        for engine, count in command.waits:
            assert known[command.engine].get(engine, 0) < count <= counts[engine]
            known[command.engine][engine] = count
        counts[command.engine] += 1


def test_the_brute_force_list_finds_a_missing_wait():
    recorder = Recorder()
    recorder.command(Engine.LOAD, [], [Access("sram", 0, 8)])
    recorder.command(Engine.VECTOR, [Access("sram", 4, 12)], [])
    assert recorder.commands[1].waits == ((Engine.LOAD, 1),)
    recorder.commands[1].waits = ()
    assert list(recorder.unordered()) == [(0, 1, ("sram", 4))]


@pytest.mark.parametrize("memory", ["dram", "sram"])
def test_two_tensors_that_share_the_place_of_one_both_wait(memory):
    hazards = Hazards()
    hazards.declare("old", memory, 0, 100)
    hazards.command(Engine.STORE, [], [Access("old", 0, 100)])
    hazards.command(Engine.LOAD, [Access("old", 0, 100)], [])
    hazards.declare("first", memory, 0, 50)
    hazards.declare("second", memory, 50, 100)
    assert hazards.command(Engine.VECTOR, [], [Access("second", 50, 100)]) == (
        (Engine.LOAD, 1),
        (Engine.STORE, 1),
    )


def test_what_lies_apart_does_not_wait():
    hazards = Hazards()
    hazards.declare("a", "sram", 0, 50)
    hazards.declare("b", "sram", 50, 100)
    hazards.command(Engine.VECTOR, [], [Access("a", 0, 50)])
    assert hazards.command(Engine.LOAD, [], [Access("b", 50, 100)]) == ()
    assert hazards.command(Engine.STORE, [Access("a", 0, 10)], []) == ((Engine.VECTOR, 1),)
    hazards.command(Engine.LOAD, [], [Access("acc", 0, 8), Access("sram", 200, 208)])
    assert hazards.command(Engine.MATRIX, [Access("sram", 208, 216)], []) == ()


def test_a_reader_waits_for_the_part_of_a_tensor_that_it_reads():
    hazards = Hazards()
    hazards.declare("t", "dram", 0, 100)
    for start in (0, 20, 40):
        hazards.command(Engine.STORE, [], [Access("t", start, start + 20)])
    assert hazards.command(Engine.LOAD, [Access("t", 25, 35)], []) == ((Engine.STORE, 2),)
    assert hazards.command(Engine.LOAD, [Access("t", 5, 15)], []) == ()
    assert hazards.command(Engine.LOAD, [Access("t", 5, 45)], []) == ((Engine.STORE, 3),)


def test_a_circular_buffer_is_written_again_once_its_rows_were_read():
    hazards = Hazards()
    hazards.declare("t", "sram", 0, 40, passing=True)
    for start in (0, 20):
        hazards.command(Engine.VECTOR, [], [Access("t", start, start + 20)])
    assert hazards.command(Engine.MATRIX, [Access("t", 0, 20)], []) == ((Engine.VECTOR, 1),)
    assert hazards.command(Engine.MATRIX, [Access("t", 20, 40)], []) == ((Engine.VECTOR, 2),)
    assert hazards.command(Engine.VECTOR, [], [Access("t", 0, 20)]) == ((Engine.MATRIX, 1),)
    hazards.declare("next", "sram", 30, 50)
    assert hazards.command(Engine.LOAD, [], [Access("next", 30, 50)]) == (
        (Engine.MATRIX, 2),
        (Engine.VECTOR, 3),
    )


def test_after_a_drain_nothing_waits_for_what_came_before():
    hazards = Hazards()
    hazards.declare("t", "dram", 0, 100)
    hazards.command(Engine.STORE, [], [Access("t", 0, 100)])
    hazards.command(Engine.LOAD, [], [Access("sram", 0, 64)])
    hazards.drain()
    assert hazards.command(Engine.LOAD, [Access("t", 0, 100)], []) == ()
    assert hazards.command(Engine.VECTOR, [Access("sram", 0, 64)], []) == ()
    hazards.declare("u", "dram", 50, 150)
    assert hazards.command(Engine.STORE, [], [Access("u", 50, 150)]) == ((Engine.LOAD, 2),)


def test_programs_of_the_property_do_clash():
    """The property means nothing unless its programs hold conflicts that need waits."""
    rng = np.random.default_rng(5)
    recorder = Recorder()
    recorder.command(Engine.LOAD, [], [Access("sram", 0, 64)])
    for _ in range(40):
        start = int(rng.integers(0, 56))
        access = [Access("sram", start, start + 8)]
        written = bool(rng.integers(2))
        recorder.command(Engine(int(rng.integers(4))), [] if written else access, access[:written])
    assert sum(len(c.waits) for c in recorder.commands) > 20
    assert list(recorder.unordered()) == []
    for command in recorder.commands:
        command.waits = ()
    assert len(list(recorder.unordered())) > 20

from __future__ import annotations

from dataclasses import replace

import pytest

from resq_tvm.targets.npu.commands import Engine, HostCall, Load, Program, Store, Stream
from resq_tvm.targets.npu.races import Race, races
from tests.targets.npu.layer import Layer


@pytest.fixture
def layer(rng):
    return Layer(rng)


def found(layer, commands):
    stream = layer.stream((tuple(commands),))
    return races(stream, stream.programs["keyframe"])


def test_a_layer_with_all_its_waits_has_none(layer):
    assert found(layer, layer.commands()) == []


def test_every_wait_is_missed(layer):
    commands = layer.commands()
    tried = 0
    for i, command in enumerate(commands):
        for wait in command.waits:
            less = replace(command, waits=tuple(w for w in command.waits if w != wait))
            missing = found(layer, [*commands[:i], less, *commands[i + 1 :]])
            # The second store of a tile runs after the first, which waits for the same.
            first_of_two = command.engine == Engine.STORE and i % 5 == 1
            assert bool(missing) != first_of_two, (i, wait)
            if missing:
                assert missing[0].second == i and missing[0].first < i
            tried += 1
    assert tried > 50


def test_two_buffers_and_one(layer):
    single = found(layer, layer.commands(buffers_used=1))
    assert single and {h.memory for h in single} == {"sram"}


def two(first, second):
    return Stream("npu-micro", ("k",), (), {}, 64, {"p": Program("p", (), (), (), (first, second))})


def test_the_byte_and_the_commands_are_named():
    load = Load(0, 100, 1, 1, 8, 0, 0, 0, 0)
    store = Store(8, 90, 2, 1, 4, 4, 0, 8, 0)  # 90 to 94 and 98 to 102
    stream = two((load,), (store,))
    result = races(stream, stream.programs["p"])
    assert result == [Race(0, 1, "sram", 100)]
    assert "commands 0 and 1 both touch byte 100 of sram" in str(result[0])
    clear = two((load,), (replace(store, sram_row=4),))
    assert races(clear, clear.programs["p"]) == []


def test_a_host_call_waits_for_all():
    load, store = Load(0, 0, 1, 1, 8, 0, 0, 0, 0), Store(8, 0, 1, 1, 8, 0, 0, 0, 0)
    program = Program("p", (), (), (), ((load,), HostCall("f", "f", (), (), ()), (store,)))
    stream = Stream("npu-micro", ("k",), (), {}, 64, {"p": program})
    assert races(stream, program) == []


def test_reads_of_the_same_bytes_are_no_race_but_a_write_after_a_read_is():
    stores = Store(8, 0, 1, 1, 8, 0, 0, 0, 0), Store(16, 0, 1, 1, 8, 0, 0, 0, 0)
    stream = two(stores, (Load(0, 4, 1, 1, 8, 0, 0, 0, 0),))
    assert races(stream, stream.programs["p"]) == [Race(1, 2, "sram", 4)]


def test_a_wait_for_what_comes_later_is_refused():
    load = Load(0, 0, 1, 1, 8, 0, 0, 0, 0, waits=((Engine.STORE, 1),))
    stream = two((load,), (Store(8, 0, 1, 1, 8, 0, 0, 0, 0),))
    with pytest.raises(ValueError, match="command 0 waits for 1 commands of STORE, and only 0"):
        races(stream, stream.programs["p"])


def test_a_flag_is_read():
    flagged = replace(Load(0, 0, 1, 1, 8, 0, 0, 0, 0), flag=100)
    store = Store(8, 96, 1, 1, 8, 0, 0, 0, 0)
    stream = two((store,), (flagged,))
    assert races(stream, stream.programs["p"]) == []
    # Who writes the flag has to be waited for, whatever becomes of the command.
    write = replace(Load(16, 100, 1, 1, 1, 0, 0, 0, 0))
    asked = replace(store, sram=0, flag=100)
    stream = two((write,), (asked,))
    assert [r.address for r in races(stream, stream.programs["p"])] == [100]
    stream = two((write,), (replace(asked, waits=((Engine.LOAD, 1),)),))
    assert races(stream, stream.programs["p"]) == []

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resq_tvm.targets.npu.commands import Engine, Waits
from resq_tvm.targets.npu.engines import ISSUE, NOTHING, Deadlock, Machine
from tests.targets.npu.slow_machine import Item, SlowMachine

Row = tuple[Engine, int, Waits, int]  # engine, duration, waits, cost of the command processor


def fast(rows: list[Row], depth: int = 8, setup: int = 0, latency: int = 0) -> Machine:
    machine = Machine(depth, setup, latency)
    for engine, duration, waits, _ in rows:
        machine.lanes[engine].add(duration, waits)
    machine.end = machine.run([r[0] for r in rows], [r[3] for r in rows], 0)
    return machine


@st.composite
def programs(draw: st.DrawFn) -> list[Row]:
    rows: list[Row] = []
    engines = draw(st.lists(st.sampled_from(Engine), min_size=1, max_size=24))
    # One more than there are, or a later one, may never end: a deadlock.
    reach = draw(st.sampled_from((0, 0, 0, 1)))
    for number, engine in enumerate(engines):
        waits = []
        for other in draw(st.sets(st.sampled_from(Engine), max_size=3)):
            before = engines[:number].count(other)
            count = draw(st.integers(0, before + reach))
            waits.append((other, count))
        rows.append((engine, draw(st.integers(0, 12)), tuple(waits), draw(st.integers(0, 4))))
    return rows


@settings(max_examples=400)
@given(programs(), st.integers(1, 4), st.integers(0, 3), st.integers(0, 5))
@example([(Engine.LOAD, 5, (), 0), (Engine.STORE, 3, (), 1), (Engine.LOAD, 4, (), 0)], 4, 0, 0)
def test_agrees_with_a_machine_that_steps_through_every_cycle(rows, depth, setup, latency):
    slow = SlowMachine([Item(*row) for row in rows], depth, setup, latency)
    done = slow.run()
    try:
        machine = fast(rows, depth, setup, latency)
    except Deadlock:
        assert not done
        return
    assert done
    for engine in Engine:
        lane = machine.lanes[engine]
        own = [i for i in slow.items if i.engine == engine]
        assert lane.issued == [i.issued for i in own]
        assert lane.started == [i.started for i in own]
        assert lane.ended == [i.ended for i in own]
        assert sum(lane.stall) + sum(i.free - i.started for i in own) == lane.free
    assert machine.end == max(i.ended for i in slow.items)


def test_a_pipeline_of_tiles_overlaps():
    rows: list[Row] = []
    for n in range(4):
        rows.append((Engine.LOAD, 10, (), 0))
        rows.append((Engine.MATRIX, 10, ((Engine.LOAD, n + 1),), 0))
        rows.append((Engine.VECTOR, 10, ((Engine.MATRIX, n + 1),), 0))
    machine = fast(rows)
    assert machine.end == 60  # 4 tiles, and two more steps of 10 cycles
    assert machine.lanes[Engine.MATRIX].started == [10, 20, 30, 40]
    assert machine.lanes[Engine.MATRIX].reason == [Engine.LOAD, NOTHING, NOTHING, NOTHING]


def test_loads_and_stores_share_the_bus():
    both = fast([(Engine.LOAD, 100, (), 0), (Engine.STORE, 40, (), 0)])
    assert both.lanes[Engine.STORE].ended == [80]  # in turns
    assert both.lanes[Engine.LOAD].ended == [140]  # then alone: nothing is lost
    assert both.lanes[Engine.LOAD].contention == [40]
    assert both.lanes[Engine.STORE].contention == [40]


def test_a_long_store_does_not_starve_loads():
    rows: list[Row] = [(Engine.STORE, 1000, (), 0)]
    rows += [(Engine.LOAD, 10, (), 0)] * 3
    machine = fast(rows)
    assert machine.lanes[Engine.LOAD].ended[-1] <= 61
    assert machine.end == 1030


def test_latency_delays_those_that_wait_but_not_the_next_transfer():
    rows: list[Row] = [(Engine.LOAD, 10, (), 0), (Engine.LOAD, 10, (), 0)]
    rows.append((Engine.MATRIX, 5, ((Engine.LOAD, 1),), 0))
    machine = fast(rows, latency=100)
    assert machine.lanes[Engine.LOAD].ended == [110, 120]
    assert machine.lanes[Engine.MATRIX].started == [110]


def test_a_full_queue_holds_up_the_command_processor():
    rows: list[Row] = [(Engine.MATRIX, 100, (), 1)] * 4 + [(Engine.LOAD, 1, (), 1)]
    assert fast(rows, depth=8).lanes[Engine.LOAD].started == [5]
    # The fourth enters when the third begins; only then comes the load.
    assert fast(rows, depth=1).lanes[Engine.LOAD].started == [202]
    assert fast(rows, depth=1).lanes[Engine.LOAD].reason == [ISSUE]


def test_waits_may_point_at_later_commands_that_fit_into_the_queues():
    rows: list[Row] = [(Engine.LOAD, 5, ((Engine.MATRIX, 1),), 0), (Engine.MATRIX, 7, (), 0)]
    assert fast(rows).end == 12


@pytest.mark.parametrize(
    "rows",
    [
        [(Engine.MATRIX, 1, ((Engine.LOAD, 1),), 0)],  # there is none
        [(Engine.MATRIX, 1, ((Engine.MATRIX, 1),), 0)],  # itself
        [(Engine.MATRIX, 1, ((Engine.LOAD, 1),), 0), (Engine.LOAD, 1, ((Engine.MATRIX, 1),), 0)],
    ],
)
def test_deadlocks_are_found(rows):
    with pytest.raises(Deadlock) as error:
        fast(rows)
    assert error.value.wait[1] == 1


def test_a_queue_that_blocks_what_it_waits_for_is_a_deadlock():
    rows: list[Row] = [(Engine.LOAD, 1, ((Engine.MATRIX, 1),), 0)] * 3
    rows.append((Engine.MATRIX, 1, (), 0))
    assert fast(rows, depth=3).end == 4
    with pytest.raises(Deadlock):
        fast(rows, depth=2)

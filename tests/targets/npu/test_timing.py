from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resq_tvm.errors import ArtifactError, TargetError
from resq_tvm.targets.npu import cost
from resq_tvm.targets.npu.commands import Engine, HostCall, Program, Step, TensorPlace
from resq_tvm.targets.npu.description import preset_npus
from resq_tvm.targets.npu.timing import simulate
from resq_tvm.targets.npu.timing_result import REASONS
from tests.targets.npu.programs import (
    double_buffered,
    load,
    matrix,
    plain_npu,
    store,
    stream_of,
    vector,
)

PLACE = TensorPlace("x", "dram", 0, 10, 10, 1, "f32")
CALL = HostCall("sort", "sort", (PLACE,), (PLACE,), ((10, 10, 1),) * 2)
LOAD, STORE, MATRIX, VECTOR = Engine


def layer(kernel: int = 0, before: tuple[int, int, int] = (0, 0, 0)):
    """Return a load of 100, a convolution of 32, a requantization of 16 cycles, a store of 50."""
    loads, matrices, vectors = before
    return (
        load(100, kernel=kernel),
        matrix(4, 8, 4, 16, waits=((LOAD, loads + 1),), kernel=kernel),
        vector(4, 8, 4, waits=((MATRIX, matrices + 1),), kernel=kernel),
        store(50, waits=((VECTOR, vectors + 1),), kernel=kernel),
    )


def check_sums(timing):
    """What must hold for every program."""
    npu_cycles = timing.cycles - timing.host_cycles
    for engine in timing.engines.values():
        assert engine.busy + sum(engine.stalls.values()) == npu_cycles
        assert all(s >= 0 for s in engine.stalls.values())
    assert sum(k.cycles for k in timing.kernels) == npu_cycles
    for name, engine in timing.engines.items():
        assert sum(k.busy[name] for k in timing.kernels) == engine.busy
    assert sum(k.commands for k in timing.kernels) == len(timing.commands.start)
    assert sum(k.dram_read for k in timing.kernels) == timing.dram_read
    assert sum(k.dram_written for k in timing.kernels) == timing.dram_written
    for kernel in timing.kernels:
        assert kernel.cycles >= 0
        assert 0 <= kernel.first <= kernel.last <= timing.cycles
        if kernel.turns == 1:
            assert kernel.span == kernel.last - kernel.first
        assert all(0 <= kernel.utilisation(e) <= 1 for e in Engine)
    assert max(timing.bounds["matrix"], timing.bounds["vector"]) <= timing.cycles
    assert timing.bounds["dram"] <= timing.cycles


def test_one_layer_step_by_step():
    timing = simulate(plain_npu(), stream_of(layer()), "main")
    assert timing.cycles == 100 + 32 + 16 + 50
    assert timing.commands.start.tolist() == [0, 100, 132, 148]
    assert timing.commands.end.tolist() == [100, 132, 148, 198]
    assert [REASONS[r] for r in timing.commands.reason] == ["nothing", "load", "matrix", "vector"]
    assert timing.commands.stall.tolist() == [0, 100, 132, 148]
    assert timing.commands.work.tolist() == [100, 4 * 8 * 4 * 16, 0, 50]
    assert timing.engines["matrix"].busy == 32
    assert timing.engines["matrix"].stalls["load"] == 100
    assert timing.engines["matrix"].stalls["done"] == 66
    (kernel,) = timing.kernels
    assert kernel.bounds == {"matrix": 32, "vector": 16, "dram": 150, "issue": 0}
    assert kernel.bound_by == "dram"
    assert kernel.utilisation(Engine.MATRIX) == 32 / 198
    assert (timing.dram_read, timing.dram_written) == (100, 50)
    assert timing.macs == kernel.macs == 2048
    assert kernel.macs_per_cycle == 2048 / 198
    assert timing.seconds == 198e-6
    check_sums(timing)


def test_set_up_latency_and_issue():
    npu = plain_npu(issue_cycles=2, dma_setup_cycles=5, kernel_cycles=30)
    npu = npu.model_copy(update={"dram": npu.dram.model_copy(update={"latency_cycles": 7})})
    timing = simulate(npu, stream_of(layer()), "main")
    assert timing.commands.issued.tolist() == [32, 34, 36, 38]
    assert timing.commands.start.tolist() == [32, 144, 176, 192]
    assert timing.commands.free.tolist() == [137, 176, 192, 247]
    assert timing.cycles == 254
    assert timing.kernels[0].bounds["issue"] == 38
    assert timing.engines["load"].stalls["issue"] == 32
    assert timing.engines["store"].busy == 55
    check_sums(timing)


def test_kernels_pay_for_their_beginning_once():
    npu = plain_npu(kernel_cycles=10)
    items = (matrix(kernel=0), matrix(kernel=1), matrix(kernel=0), matrix(kernel=1))
    timing = simulate(npu, stream_of(items), "main")
    assert timing.commands.issued.tolist() == [10, 20, 20, 20]


def test_time_belongs_to_those_that_move_the_latest_end():
    # The second kernel's load runs beside the first one's convolution, issued before it.
    first = layer(0)
    second = layer(1, (1, 1, 1))
    timing = simulate(plain_npu(), stream_of((*first[:2], second[0], *first[2:], *second[1:])),
                      "main")  # fmt: skip
    one, two = timing.kernels
    assert (one.first, two.first) == (0, 100)
    load, ahead, product = timing.commands.end[[0, 2, 1]].tolist()
    assert load < product < ahead
    # The product is issued first, the load behind it, then the rest of the first kernel.
    assert one.cycles == product + max(0, one.last - ahead)
    assert two.last == timing.cycles == one.cycles + two.cycles
    check_sums(timing)


def test_a_kernel_that_runs_twice_takes_its_time_twice():
    # Kernel 0 runs again behind kernel 1, which takes its own time nevertheless.
    first, between = layer(0), layer(1, (1, 1, 1))
    timing = simulate(plain_npu(), stream_of((*first, *between, *layer(0, (2, 2, 2)))), "main")
    one, two = timing.kernels
    assert one.last == timing.cycles
    again = stream_of((*first, *between, *layer(2, (2, 2, 2))))
    apart = [kernel.cycles for kernel in simulate(plain_npu(), again, "main").kernels]
    assert [one.cycles, two.cycles] == [apart[0] + apart[2], apart[1]]
    assert min(apart) > 0
    check_sums(timing)


def test_every_turn_of_a_kernel_pays_for_its_beginning():
    items = (matrix(kernel=0), matrix(kernel=1), matrix(kernel=0))
    timing = simulate(plain_npu(kernel_cycles=50), stream_of(items, CALL, items[:1]), "main")
    assert timing.commands.issued.tolist()[:3] == [50, 100, 150]
    assert timing.bounds["issue"] == 200
    shared = timing.kernels[0]
    assert shared.turns == 3
    assert shared.span == shared.busy["matrix"] == 3 * 4
    assert shared.utilisation(MATRIX) == 1
    assert [t.kernel for t in timing.turns] == [0, 1, 0, 0]
    check_sums(timing)


def test_a_kernel_that_ends_before_those_ahead_of_it_takes_no_time():
    items = (matrix(64, 64, kernel=0), load(8, kernel=1))
    timing = simulate(plain_npu(), stream_of(items), "main")
    assert [k.cycles for k in timing.kernels] == [timing.cycles, 0]
    check_sums(timing)


def test_host_calls_drain_the_npu():
    stream = stream_of(layer(0), CALL, layer(1, (1, 1, 1)))
    timing = simulate(plain_npu(), stream, "main")
    assert [(h.function, h.start, h.cycles) for h in timing.host] == [("sort", 198, 900)]
    assert timing.commands.start.tolist()[4] == 198 + 900
    assert timing.cycles == 198 + 900 + 198
    assert [k.cycles for k in timing.kernels] == [198, 198]
    check_sums(timing)


def test_waits_count_from_the_beginning_of_the_program():
    second = (matrix(waits=((LOAD, 1),)),)
    timing = simulate(plain_npu(), stream_of(layer(0), CALL, second), "main")
    assert timing.commands.start.tolist()[-1] == 198 + 900


def test_a_program_may_be_empty():
    timing = simulate(plain_npu(), stream_of(), "main")
    assert (timing.cycles, timing.kernels, timing.macs) == (0, (), 0)
    timing = simulate(plain_npu(), stream_of((), CALL, ()), "main")
    assert timing.cycles == timing.host_cycles == 900
    check_sums(timing)


def test_loads_and_stores_share_the_bus():
    timing = simulate(plain_npu(), stream_of((load(100), store(40))), "main")
    assert timing.cycles == 140
    assert timing.engines["load"].busy == 100
    assert timing.engines["load"].stalls["bus"] == 40
    assert timing.engines["store"].stalls["bus"] == 40
    assert timing.engines["store"].stalls["done"] == 60
    check_sums(timing)


def with_state(stream, *places):
    program = replace(stream.programs["main"], state=places)
    return replace(stream, programs={"main": program})


def test_state_traffic_is_counted_and_can_be_left_out():
    state = TensorPlace("state", "dram", 4096, 16, 16, 4, "f16")
    items = (load(100, dram=0), load(60, dram=4096), load(60, dram=4096 + 2047),
             store(30, dram=5000), store(20, dram=4096 + 2048))  # fmt: skip
    stream = with_state(stream_of(items), state)
    timing = simulate(plain_npu(), stream, "main")
    assert (timing.state_read, timing.state_written) == (120, 30)
    assert (timing.dram_read, timing.dram_written) == (220, 50)
    free = simulate(plain_npu(), stream, "main", state_traffic=False)
    assert free.bounds["dram"] == 120
    assert timing.bounds["dram"] == timing.cycles == 270
    assert free.cycles == 120
    check_sums(free)


def test_state_in_sram_is_no_traffic():
    state = TensorPlace("state", "sram", 0, 16, 16, 4, "f16")
    timing = simulate(plain_npu(), with_state(stream_of((load(100),)), state), "main")
    assert timing.state_read == 0


def test_content_decides_about_commands_with_a_map():
    commands = (matrix(8, 16, 4, 16, bits_map=True), matrix(8, 16, 4, 16))
    npu = plain_npu()
    full = simulate(npu, stream_of(commands), "main")
    some = simulate(npu, stream_of(commands), "main", classes={0: {0: 30, 8: 2}})
    assert full.engines["matrix"].busy == 2 * 32 * 4
    assert some.engines["matrix"].busy == 30 + 2 * 4 + 32 * 4
    assert some.cycles < full.cycles


def test_precision_decides_about_the_products():
    npu = preset_npus()["npu-mobile"]
    cycles = {
        bits: simulate(npu, stream_of((matrix(32, 64, 64, 64, taps=(3, 3), bits=bits),)), "main")
        for bits in ((8, 8), (4, 8), (8, 4), (4, 4))
    }
    matrix_bound = {bits: t.bounds["matrix"] for bits, t in cycles.items()}
    assert matrix_bound[8, 8] > matrix_bound[4, 8] > matrix_bound[8, 4] > matrix_bound[4, 4]


def test_deadlocks_name_the_command():
    stream = stream_of((load(8), matrix(waits=((LOAD, 2),), kernel=1)), kernels=("a", "conv1"))
    with pytest.raises(
        ArtifactError,
        match=r"program 'main': command 1 \(matrix, kernel 'conv1'\) waits for 2 load "
        r"command\(s\), but no more than 1 of 1 can end; compile",
    ):
        simulate(plain_npu(), stream, "main")


def test_waits_for_a_command_behind_a_host_call_never_end():
    stream = stream_of((matrix(waits=((LOAD, 1),)),), CALL, (load(8),))
    with pytest.raises(ArtifactError, match=r"command 0 .*no more than 0 of 1 can end"):
        simulate(plain_npu(), stream, "main")


def test_unknown_programs_and_functions():
    stream = stream_of((vector(),))
    with pytest.raises(ArtifactError, match="no program 'residual'; it has main"):
        simulate(plain_npu(), stream, "residual")
    program = (Step("read"), Step("tanh", args=(0,)), Step("write", args=(1,), index=1))
    with pytest.raises(TargetError, match="tanh"):
        simulate(plain_npu(), replace(stream, vector_programs=(program,)), "main")


@st.composite
def programs(draw: st.DrawFn):
    """Programs of random commands that wait for earlier ones, with host calls in between."""
    items, run = [], []
    counts = dict.fromkeys(Engine, 0)
    for _ in range(draw(st.integers(0, 30))):
        if draw(st.integers(0, 9)) == 0:
            items += [tuple(run), CALL]
            run = []
            continue
        engine = draw(st.sampled_from(Engine))
        others = draw(st.sets(st.sampled_from(Engine), max_size=2))
        waits = tuple((e, draw(st.integers(0, counts[e]))) for e in sorted(others))
        kernel, size = draw(st.integers(0, 2)), draw(st.integers(1, 200))
        if engine is LOAD:
            run.append(load(size, waits=waits, kernel=kernel))
        elif engine is STORE:
            run.append(store(size, waits=waits, kernel=kernel))
        elif engine is MATRIX:
            run.append(matrix(1, size, waits=waits, kernel=kernel))
        else:
            run.append(vector(1, size, waits=waits, kernel=kernel))
        counts[engine] += 1
    return stream_of(*items, tuple(run))


@given(programs(), st.integers(0, 5), st.integers(0, 40), st.integers(1, 4))
def test_sums_agree_on_random_programs(stream, issue, kernel, depth):
    npu = plain_npu(
        issue_cycles=issue, kernel_cycles=kernel, dma_setup_cycles=issue, queue_depth=depth
    )
    timing = simulate(npu, stream, "main")
    check_sums(timing)
    c, commands = timing.commands, stream.programs["main"].commands
    assert (c.issued <= c.start).all()
    assert (c.start <= c.free).all()
    assert (c.free <= c.end).all()
    for engine in Engine:
        own = c.engine == engine
        assert (c.start[own][1:] >= c.free[own][:-1]).all()  # in order, one at a time
        ends = c.end[own]
        for number, command in enumerate(commands):
            for awaited, count in command.waits:
                if awaited is engine and count:
                    assert c.start[number] >= ends[count - 1]
    again = simulate(npu, stream, "main")
    assert np.array_equal(again.commands.start, c.start)
    assert again.kernels == timing.kernels


@given(programs())
def test_more_bandwidth_is_never_slower_without_contention(stream):
    # With one DMA engine at work at a time, all of the model is sums and maxima.
    loads_only = tuple(
        tuple(c for c in item if c.engine is not STORE) if isinstance(item, tuple) else item
        for item in stream.programs["main"].items
    )
    commands = [
        replace(c, waits=tuple(w for w in c.waits if w[0] is not STORE))
        for item in loads_only if isinstance(item, tuple) for c in item
    ]  # fmt: skip
    program = Program("main", (), (), (), (tuple(commands),))
    stream = replace(stream, programs={"main": program})
    slow = plain_npu()
    fast = slow.model_copy(update={"dram": slow.dram.model_copy(update={"bytes_per_second": 4e6})})
    assert simulate(fast, stream, "main").cycles <= simulate(slow, stream, "main").cycles


def test_double_buffering_hides_the_memory():
    npu = preset_npus()["npu-mobile"]
    timing = simulate(npu, double_buffered(3, 50), "main")
    assert timing.bounds["matrix"] > 2 * timing.bounds["dram"]
    assert timing.cycles < 1.02 * timing.bounds["matrix"]
    assert {k.bound_by for k in timing.kernels} == {"matrix"}
    check_sums(timing)


def test_is_fast_enough_for_tuning():
    stream = double_buffered(10, 500)
    npu = preset_npus()["npu-mobile"]
    best = np.inf
    for _ in range(3):
        begin = time.process_time()
        timing = simulate(npu, stream, "main")
        best = min(best, time.process_time() - begin)
    # About 0.1 s for 20 000 commands; a quadratic slip takes minutes.
    assert len(timing.commands.start) == 20_000
    assert best < 1.0


def test_bus_time_is_that_of_the_cost_model():
    npu = preset_npus()["npu-mobile"]
    stream = stream_of((load(100_000),))
    timing = simulate(npu, stream, "main")
    bus = cost.bus_cycles(npu, load(100_000))
    expected = npu.commands.kernel_cycles + npu.commands.issue_cycles
    expected += npu.commands.dma_setup_cycles + bus + npu.dram.latency_cycles
    assert timing.cycles == expected
    assert bus == pytest.approx(100_000 / (npu.dram.bytes_per_second / npu.clock_hz), abs=2)


class TestSkippedCommands:
    def flagged(self):
        return tuple(replace(command, flag=0) for command in layer())

    def test_they_cost_a_test_on_their_engine(self):
        npu = plain_npu(test_cycles=3)
        stream = stream_of(self.flagged())
        ran = simulate(npu, stream, "main")
        plain = simulate(npu, stream_of(layer()), "main")
        assert ran.cycles == plain.cycles + 4 * 3  # one after the other
        skipped = simulate(npu, stream, "main", skipped=range(4))
        check_sums(skipped)
        assert skipped.cycles == 4 * 3 and skipped.commands.skipped.all()
        assert (skipped.dram_read, skipped.dram_written) == (0, 0)
        assert [e.busy for e in skipped.engines.values()] == [3] * 4
        assert not ran.commands.skipped.any()

    def test_they_wait_all_the_same(self):
        npu = plain_npu(test_cycles=1)
        first, *rest = layer()
        timing = simulate(npu, stream_of((first, *self.flagged()[1:])), "main", skipped={1, 2, 3})
        check_sums(timing)
        assert timing.commands.start.tolist() == [0, 100, 101, 102]
        assert len(rest) == 3

    def test_no_command_ends_before_those_before_it(self):
        npu = plain_npu(test_cycles=1)
        npu = npu.model_copy(update={"dram": npu.dram.model_copy(update={"latency_cycles": 50})})
        commands = (
            load(10), replace(load(10), flag=0), load(5), matrix(waits=((LOAD, 2),)),
        )  # fmt: skip
        timing = simulate(npu, stream_of(commands), "main", skipped={1})
        check_sums(timing)
        assert timing.commands.free.tolist()[:3] == [10, 11, 16]
        assert timing.commands.end.tolist()[:3] == [60, 60, 66]
        assert timing.commands.start[3] == 60


def test_windows_of_a_map_count_by_what_they_look_at():
    npu = plain_npu()
    table = (("columns", ((0, 8), (6, 16))), ("rows", ((0, 3), (2, 4))))
    program = (Step("active", index=0, table=table), Step("write", (0,), index=1))
    work = cost.program_work(npu, program)
    assert work.windows == (3 + 2) * 16 + 2 * (8 + 10)
    command = vector(2, 2, 1)
    assert cost.vector_cycles(npu, work, command) == 1 + -(-work.windows // npu.vector.lanes)

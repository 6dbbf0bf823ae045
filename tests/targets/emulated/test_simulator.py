"""The pipeline model gives what was measured on the cores.

The figures are those of the sources that resq_tvm.targets.emulated.timings names.
"""

from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.errors import TargetError
from resq_tvm.targets.emulated.cores import CORES, get_core
from resq_tvm.targets.emulated.simulator import Simulator, cycles_of
from tests.targets.emulated.assembly import loop, words_of
from tests.tools import need

OUT_OF_ORDER = ("cortex-a72", "cortex-a76", "cortex-a710")


@pytest.fixture(autouse=True)
def tools() -> None:
    need("cc")


def repeated(line: str, count: int) -> list[str]:
    """Return a line with {0}, {1}, … in place of {i}."""
    return [line.format(i=i, j=16 * i) for i in range(count)]


def cycles(core: str, *lines: str) -> float:
    return cycles_of(CORES[core], loop(*lines))


@pytest.mark.parametrize(
    ("line", "a53", "a72", "a76"),
    [
        ("add x0, x0, #1", 1, 1, 1),
        ("ldr x0, [x0]", 3, 4, 4),
        ("mul v0.16b, v0.16b, v1.16b", 4, 4, 5),
        ("mla v0.16b, v1.16b, v2.16b", 1, 2, 2),  # accumulators are forwarded
        ("mla v0.16b, v0.16b, v2.16b", 4, 4, 5),  # factors are not
        ("smlal v0.8h, v1.8b, v2.8b", 1, 1, 1),
        ("fmla v0.4s, v1.4s, v2.4s", 4, 3, 2),
        ("fmla v0.4s, v0.4s, v2.4s", 8, 7, 4),
        ("eor v0.16b, v0.16b, v1.16b", 1, 3, 2),
        ("shl v0.16b, v0.16b, #2", 2, 3, 2),
        ("sqxtn v0.8b, v0.8h", 4, 4, 4),
    ],
)
def test_latency(line: str, a53: int, a72: int, a76: int) -> None:
    for core, expected in (("cortex-a53", a53), ("cortex-a72", a72), ("cortex-a76", a76)):
        # Eight in a chain: the branch of the loop must not count.
        assert cycles(core, *[line] * 8) == pytest.approx(8 * expected, abs=0.1), core


@pytest.mark.parametrize(
    ("line", "a53", "a72", "a76"),
    [
        ("add x{i}, x30, #1", 2, 2, 3),
        ("mul v{i}.16b, v30.16b, v31.16b", 1, 0.5, 0.5),
        ("mla v{i}.16b, v30.16b, v31.16b", 1, 0.5, 0.5),
        ("smull v{i}.8h, v30.8b, v31.8b", 1, 1, 1),
        ("smlal2 v{i}.8h, v30.16b, v31.16b", 1, 1, 1),
        ("shl v{i}.16b, v30.16b, #2", 1, 1, 1),
        ("eor v{i}.16b, v30.16b, v31.16b", 1, 1.5, 2),
        ("eor v{i}.8b, v30.8b, v31.8b", 2, 2, 2),
        ("cnt v{i}.16b, v30.16b", 1, 1, 2),
        ("fmla v{i}.4s, v30.4s, v31.4s", 1, 1, 2),
        ("xtn v{i}.8b, v30.8h", 2, 2, 2),
        ("ldr q{i}, [x0, #{j}]", 0.5, 1, 2),
        ("str q{i}, [x0, #{j}]", 1, 0.5, 1),
    ],
)
def test_throughput(line: str, a53: float, a72: float, a76: float) -> None:
    for core, expected in (("cortex-a53", a53), ("cortex-a72", a72), ("cortex-a76", a76)):
        count = 24
        spent = cycles(core, *repeated(line, count))
        # The branch takes a place in an in-order core's pairs.
        assert spent == pytest.approx(count / expected, abs=1.1), core


def test_cautious_variants_start_vector_loads_alone() -> None:
    sums = repeated("fadd v{i}.4s, v{i}.4s, v30.4s", 8)
    wide = ["ldr q0, [x0]", *repeated("mla v2{i}.16b, v30.16b, v31.16b", 8)]
    for name, narrow_cost, wide_cost in (
        ("cortex-a53", 0, 0),
        ("cortex-a53-cautious", 2, 2),
        ("cortex-a55-cautious", 0, 2),
    ):
        core = get_core(name)
        loads = ["ldr d20, [x0]", *sums[:4], "ldr d21, [x0]", *sums[4:]]
        spent = cycles_of(core, loop(*loads)) - cycles_of(core, loop(*sums))
        assert spent == pytest.approx(narrow_cost, abs=0.6), name
        mixed = cycles_of(core, loop(*wide))
        assert mixed - cycles_of(core, loop(*wide[1:])) == pytest.approx(wide_cost, abs=0.6), name


def test_dot_products() -> None:
    lines = repeated("sdot v{i}.4s, v30.16b, v31.16b", 24)
    assert cycles("cortex-a55", *lines) == pytest.approx(24, abs=1)
    assert cycles("cortex-a76", *lines) == pytest.approx(12, abs=0.1)
    lines = repeated("smmla v{i}.4s, v30.16b, v31.16b", 24)
    assert cycles("cortex-a710", *lines) == pytest.approx(12, abs=0.1)


def test_in_order_cores_wait_for_a_load_and_others_do_not() -> None:
    body = ["ldr q0, [x0], #16", "mla v16.16b, v0.16b, v1.16b"]
    late = [*body, *repeated("mla v2{i}.16b, v30.16b, v31.16b", 8)]
    early = [body[0], *late[2:], body[1]]
    assert cycles("cortex-a53", *late) >= cycles("cortex-a53", *early) + 3
    assert cycles("cortex-a72", *late) == pytest.approx(cycles("cortex-a72", *early), abs=0.1)


def micro_kernel(scheme: str) -> tuple[list[str], int]:
    """Return 16 accumulations with the loads of the next step in between, and their products."""
    lines = {
        "w8a8": [
            *("smull v{t}.8h, v{a}.8b, v{b}.8b", "smlal2 v{t}.8h, v{a}.16b, v{b}.16b"),
            "sadalp v{c}.4s, v{t}.8h",
        ],
        "w4a4": [
            *("mul v{t}.16b, v{a}.16b, v{b}.16b", "mla v{t}.16b, v{a}.16b, v{b}.16b"),
            "sadalp v{c}.8h, v{t}.16b",
        ],
        "w2a2": ["mla v{c}.16b, v{a}.16b, v{b}.16b"],
    }[scheme]
    loads = [f"ldr q{8 + n}, [x{n % 2}, #{16 * n}]" for n in range(8)]
    # Several tiles at once, so that results are not waited for.
    body: list[str] = []
    for tile in range(4):
        for line in lines:
            for n in range(4):
                body.append(line.format(c=n + 4 * (tile % 2), t=16 + n, a=24 + n, b=28 + n))
                if len(body) % 3 == 0 and loads:
                    body.append(loads.pop())
    return body, 16 * 16 * (2 if scheme == "w4a4" else 1)


@pytest.mark.parametrize(
    ("core", "scheme", "expected"),
    [
        ("cortex-a53", "w8a8", 5.2),
        ("cortex-a53", "w4a4", 10.1),
        ("cortex-a53", "w2a2", 16),  # 13.9 with the flush of the accumulators
        ("cortex-a72", "w8a8", 7.9),
        ("cortex-a72", "w4a4", 8.0),
        ("cortex-a72", "w2a2", 8.0),
        ("cortex-a76", "w8a8", 8.0),
        ("cortex-a76", "w4a4", 8.0),
    ],
)
def test_products_per_cycle(core: str, scheme: str, expected: float) -> None:
    body, products = micro_kernel(scheme)
    assert products / cycles(core, *body) == pytest.approx(expected, rel=0.08)


def trace(*parts: list[int]) -> np.ndarray:
    return np.array([word for part in parts for word in part], np.uint32)


def define(number: int, address: int, words: list[int]) -> list[int]:
    return [0x80000000 | len(words), number, address, 0, *words]


BEGIN, END = [0x82000000], [0x83000000, *[0] * 10]


def test_regions_count_apart_and_the_bound_is_a_bound() -> None:
    words = words_of("\n".join(repeated("mla v{i}.16b, v30.16b, v31.16b", 10)))
    with Simulator(CORES["cortex-a53"]) as simulator:
        simulator.feed(trace(BEGIN, define(0, 0x1000, words), [0, 0, 0], END))
        simulator.feed(trace([0x82000001, 0], END))
        simulator.finish()
        assert simulator.regions() == [0, 1] and simulator.entries(1) == (1, (0,) * 5)
        (many,), (one,) = simulator.blocks(0), simulator.blocks(1)
    assert (many.executions, one.executions, many.length) == (3, 1, 10)
    assert many.bound == 30 and one.bound == 10
    assert many.cycles >= 30 - 1 and one.cycles >= 10 - 1


def test_a_trace_may_be_cut_anywhere() -> None:
    words = words_of("add x0, x0, #1\nldr q0, [x0]\nmla v1.16b, v0.16b, v2.16b")
    whole = trace(BEGIN, define(0, 0x1000, words), [0] * 5, [0x81000007, 0], END)
    found = []
    for step in (1, 2, 7, len(whole)):
        with Simulator(CORES["cortex-a72"]) as simulator:
            for at in range(0, len(whole), step):
                simulator.feed(whole[at : at + step])
            simulator.finish()
            found.append(simulator.blocks(0))
    assert all(blocks == found[0] for blocks in found) and found[0][0].executions == 13


def test_misses_take_their_time() -> None:
    words = words_of("ldr q0, [x0]\nadd v0.16b, v0.16b, v0.16b")
    spent = {}
    for core in ("cortex-a53", *OUT_OF_ORDER):
        for level in (0, 1, 2):
            misses = [0x84000000 | level << 16] if level else []
            with Simulator(CORES[core]) as simulator:
                simulator.feed(trace(BEGIN, define(0, 0x1000, words), [0, *misses, 0], END))
                spent[core, level] = simulator.blocks(0)[0].cycles
        near, far = CORES[core].misses
        assert spent[core, 1] - spent[core, 0] == near
        assert spent[core, 2] - spent[core, 0] == far


def test_a_branch_that_cannot_be_foretold_costs() -> None:
    first, second = words_of("b.ne 8"), words_of("add x0, x1, x2")
    blocks = define(0, 0x1000, first) + define(1, 0x1004, second) + define(2, 0x2000, second)
    rng = np.random.default_rng(1)
    regular = [n for k in range(2000) for n in (0, 1 + k % 2)]
    random = [n for k in rng.integers(0, 2, 2000) for n in (0, 1 + int(k))]
    costs = []
    for path in (regular, random):
        with Simulator(CORES["cortex-a53"]) as simulator:
            simulator.feed(trace(BEGIN, blocks, path, END))
            costs.append(sum(b.cycles for b in simulator.blocks(0)) / 2000)
    assert costs[0] < 5 and costs[1] > costs[0] + 0.3 * CORES["cortex-a53"].mispredict


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*BEGIN, 7], "damaged"),
        ([7], "damaged"),
        ([*BEGIN, 0x80000002, 0, 0], "cut off"),
        ([0x86000000], "TVM_NUM_THREADS=1"),
    ],
)
def test_damaged_traces_are_told(words: list[int], message: str) -> None:
    with Simulator(CORES["cortex-a53"]) as simulator, pytest.raises(TargetError, match=message):
        simulator.feed(np.array(words, np.uint32))
        simulator.finish()

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resq_tvm.errors import TargetError
from resq_tvm.targets.npu import cost
from resq_tvm.targets.npu.commands import HostCall, Load, Operand, Step, TensorPlace
from resq_tvm.targets.npu.description import preset_npus
from tests.targets.npu.programs import REQUANTIZE, load, matrix, plain_npu, vector


def changed(npu, **parts):
    """Return a machine with other parameters: ``matrix={"packs_taps": False}``."""
    data = npu.model_dump()
    for part, values in parts.items():
        data[part] |= values
    return type(npu).model_validate(data)


# --- matrix unit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "packed", "unpacked"),
    [
        # pixel blocks of 4, 4 outputs and 4 terms at once
        (matrix(2, 4, 4, 4), 2, 2),
        (matrix(2, 5, 4, 4), 4, 4),  # a block of one pixel costs a block
        (matrix(2, 4, 5, 4), 4, 4),
        (matrix(2, 4, 4, 5), 4, 4),
        (matrix(2, 4, 4, 3, taps=(3, 3)), 2 * 7, 2 * 9),  # 27 terms, or 9 taps of 3
        (matrix(2, 4, 4, 4, bits=(4, 4)), 1, 1),
        (matrix(1, 4, 4, 4, taps=(3, 3), bits=(4, 4)), 5, 5),  # 4.5
        (matrix(2, 4, 8, 4, bits=(4, 8)), 4, 4),  # runs as W8A8
        (matrix(2, 4, 8, 8, taps=(3, 3), depthwise=True), 2 * 2 * 3, 2 * 2 * 9),
    ],
)
def test_cycles_of_products(command, packed, unpacked):
    npu = changed(plain_npu(), sram={"banks": 1000})
    assert cost.matrix_cycles(npu, command) == packed
    assert cost.matrix_cycles(changed(npu, matrix={"packs_taps": False}), command) == unpacked


def test_start_up_is_added():
    npu = changed(plain_npu(), matrix={"startup_cycles": 11})
    assert cost.matrix_cycles(npu, matrix()) == cost.matrix_cycles(plain_npu(), matrix()) + 11


def test_an_array_without_depthwise_columns_takes_outputs_one_by_one():
    npu = plain_npu()
    command = matrix(2, 4, 8, 8, taps=(2, 2), depthwise=True)
    assert cost.matrix_cycles(npu, command) == 2 * 2
    assert cost.matrix_cycles(changed(npu, matrix={"depthwise": False}), command) == 2 * 8


def test_the_array_is_no_faster_than_the_sram():
    npu = changed(plain_npu(), sram={"banks": 1, "bank_bytes_per_cycle": 4})
    command = matrix(2, 8, 4, 8)  # 4 blocks, 2 steps
    codes, weights = 4 * 2 * 4 * 4, 2 * 4 * 4
    assert cost.matrix_cycles(npu, command) == (codes + weights) / 4
    low = replace(command, source=replace(command.source, bits=4), weight_bits=4)
    assert cost.matrix_cycles(npu, low) == (codes + weights) / 2 / 4


def test_depthwise_fetches_every_pixel_once():
    npu = changed(plain_npu(), sram={"banks": 1, "bank_bytes_per_cycle": 1})
    command = matrix(2, 8, 4, 4, taps=(3, 3), depthwise=True)
    assert cost.matrix_cycles(npu, command) == 2 * 8 * 4 + 9 * 4
    command = matrix(2, 8, 4, 4, taps=(3, 3), stride=(2, 2), depthwise=True)
    assert cost.matrix_cycles(npu, command) == 4 * 16 * 4 + 9 * 4


def test_a_rate_that_is_no_exact_number_costs_no_extra_cycle():
    npu = preset_npus()["npu-mobile"]
    startup = npu.matrix.startup_cycles
    command = matrix(40, 8, 32, 32, bits=(4, 8))  # 40 steps at 4/3
    assert cost.matrix_cycles(npu, command) == 30 + startup


def test_products_are_counted():
    assert cost.macs(matrix(2, 5, 7, 3, taps=(3, 2))) == 2 * 5 * 7 * 3 * 6
    assert cost.macs(matrix(2, 5, 7, 7, taps=(3, 2), depthwise=True)) == 2 * 5 * 7 * 6


def test_blocks_pay_for_the_bits_that_they_need():
    npu = changed(plain_npu(), sram={"banks": 1000})
    command = matrix(2, 16, 8, 8, taps=(3, 3), bits=(4, 8), bits_map=True)
    n, k = 2, 18
    assert cost.matrix_cycles(npu, command) == 8 * n * k  # the worst case
    assert cost.matrix_cycles(npu, command, {8: 8}) == 8 * n * k
    assert cost.matrix_cycles(npu, command, {0: 5, 4: 2, 8: 1}) == 5 * n + 2 * n * k / 2 + n * k
    assert cost.matrix_cycles(npu, command, {0: 8}) == 8 * n


def test_empty_blocks_fetch_nothing():
    npu = changed(plain_npu(), sram={"banks": 1, "bank_bytes_per_cycle": 1})
    command = matrix(2, 16, 4, 4, bits_map=True)
    assert cost.matrix_cycles(npu, command, {0: 8}) == 8
    assert cost.matrix_cycles(npu, command, {0: 7, 8: 1}) == 16 + 16  # codes and weights


def naive_classes(command, plane, width):
    counts = {}
    for y in range(command.h):
        for first in range(0, command.w, width):
            most = 0
            for x in range(first, min(first + width, command.w)):
                for ky in range(command.taps[0]):
                    for kx in range(command.taps[1]):
                        row = y * command.stride[0] + command.origin[0] + ky * command.dilation[0]
                        col = x * command.stride[1] + command.origin[1] + kx * command.dilation[1]
                        if 0 <= row < plane.shape[0] and 0 <= col < plane.shape[1]:
                            most = max(most, int(plane[row, col]))
            counts[most] = counts.get(most, 0) + 1
    return counts


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    st.integers(1, 5), st.integers(1, 13), pairs, pairs,
    st.tuples(st.integers(-2, 3), st.integers(-2, 3)),
    st.tuples(st.integers(-4, 2), st.integers(-4, 2)), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_classes_of_blocks(h, w, taps, stride, dilation, origin, seed):
    npu = plain_npu()
    command = matrix(h, w, 4, 4, taps=taps, stride=stride, dilation=dilation, bits_map=True)
    command = replace(command, origin=origin)
    rng = np.random.default_rng(seed)
    shape = (command.source.h, command.source.w)
    plane = rng.choice([0, 4, 8], shape, p=[0.9, 0.05, 0.05]).astype(np.uint8)
    classes = cost.block_classes(command, plane, npu)
    assert classes == naive_classes(command, plane, npu.matrix.pixels)
    assert sum(classes.values()) == cost.pixel_blocks(npu, command)
    assert cost.block_classes(command, plane[..., None], npu) == classes


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="bits map"):
        cost.block_classes(matrix(4, 4, bits_map=True), np.zeros((3, 4), np.uint8), plain_npu())


# --- vector unit ------------------------------------------------------------------------------


def test_operations_of_a_program():
    npu = plain_npu()
    assert cost.program_work(npu, REQUANTIZE) == cost.Work(2, 0)
    spatial = (
        Step("pool", table=(("kind", "max"), ("window", (3, 2)))),
        Step("exp", args=(0,)),
        Step("choose", args=(1,), table=(("pool", (0, 4, 8)),)),
        Step("bits", args=(2,)),
        Step("write", args=(2,), index=1),
        Step("write", args=(3,), index=2),
    )
    assert cost.program_work(npu, spatial) == cost.Work(6 + 8 + 12, 0)
    for method, operations in (("linear", 6), ("nearest_neighbor", 1)):
        steps = (Step("resize", table=(("method", method),)), Step("write", args=(0,), index=1))
        assert cost.program_work(npu, steps) == cost.Work(operations, 0)
    assert cost.program_work(npu, (Step("mean"), Step("neg", args=(0,)))) == cost.Work(1, 1)
    gate = (
        Step("read"),
        Step("energy", args=(0,), value=2.0, table=(("block", 8),)),
        Step("changed", args=(1,), table=(("reach", 2), ("threshold", 1.0))),
        Step("spread", index=1, table=(("block", 8),)),
        Step("select", args=(3, 0, 0)),
    )
    assert cost.program_work(npu, gate) == cost.Work(2 + 9 + 1, 0)


def test_a_function_that_is_not_there_is_named():
    with pytest.raises(TargetError, match=r"npu-plain has no function 'tanh' \(it has exp\)"):
        cost.program_work(plain_npu(), (Step("read"), Step("tanh", args=(0,))))


@pytest.mark.parametrize(
    ("operations", "shape", "cycles"),
    [
        (2, (4, 4, 4), 8),  # 8 lanes, 2 stages
        (3, (4, 4, 4), 16),
        (0, (4, 4, 4), 8),  # a copy passes once, too
        (2, (1, 1, 1), 1),
        (2, (3, 3, 1), 2),
    ],
)
def test_cycles_of_vector_programs(operations, shape, cycles):
    npu = plain_npu()
    assert cost.vector_cycles(npu, cost.Work(operations, 0), vector(*shape)) == cycles
    slow = changed(npu, vector={"startup_cycles": 5})
    assert cost.vector_cycles(slow, cost.Work(operations, 0), vector(*shape)) == cycles + 5


def test_a_mean_pays_for_its_input():
    source = Operand("sram", "f32", 0, 6, 4, 8, 128, 32)
    command = vector(1, 1, 8)
    command = replace(command, operands=(source, command.operands[1]))
    assert cost.vector_cycles(plain_npu(), cost.Work(0, 1), command) == 24
    assert cost.vector_cycles(plain_npu(), cost.Work(3, 1), command) == 24 + 2


# --- memory and host --------------------------------------------------------------------------


def naive_bursts(command, burst):
    """Fetch pieces one by one, or a row in one go, or all in one go: what is least."""
    up = lambda n: math.ceil(n / burst) * burst  # noqa: E731
    starts = [
        r * command.dram_row + c * command.dram_column
        for r in range(command.rows)
        for c in range(command.columns)
    ]
    row = starts[: command.columns]
    span = lambda s: max(s) + command.piece - min(s)  # noqa: E731
    by_pieces = len(starts) * up(command.piece)
    by_rows = command.rows * up(span(row))
    return min(by_pieces, by_rows, up(span(starts)))


@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 70), st.integers(0, 70),
    st.integers(0, 300), st.sampled_from((1, 16, 64)),
)  # fmt: skip
def test_bytes_on_the_bus(rows, columns, piece, gap, row_gap, burst):
    npu = changed(plain_npu(), dram={"burst_bytes": burst})
    column = piece + gap
    row = (columns - 1) * column + piece + row_gap
    command = Load(0, 0, rows, columns, piece, row, column, 0, 0)
    moved = cost.dram_bytes(npu, command)
    assert moved == naive_bursts(command, burst)
    assert moved % burst == 0
    if burst == 1:
        assert moved == command.nbytes


def test_pieces_back_to_back_are_one_run():
    npu = changed(plain_npu(), dram={"burst_bytes": 64})
    assert cost.dram_bytes(npu, Load(0, 0, 10, 10, 8, 80, 8, 0, 0)) == 832
    assert cost.dram_bytes(npu, Load(0, 0, 10, 10, 8, 1000, 8, 0, 0)) == 10 * 128
    assert cost.dram_bytes(npu, Load(0, 0, 10, 10, 8, 10000, 1000, 0, 0)) == 100 * 64


def test_bus_cycles_follow_bandwidth_and_clock():
    npu = changed(plain_npu(), dram={"bytes_per_second": 4e6})
    assert cost.bus_cycles(npu, load(1000)) == 250
    assert cost.bus_cycles(npu, load(1001)) == 251


def test_host_calls_move_their_operands():
    place = TensorPlace("x", "dram", 0, 4, 5, 3, "f32")
    call = HostCall("f", "sort", (place,), (place, place), ((4, 5, 3),) * 3)
    assert cost.host_cycles(plain_npu(), call) == 100 + 3 * 240

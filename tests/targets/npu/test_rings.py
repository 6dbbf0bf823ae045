"""Circular buffers: rows that wrap are the rows of the tensor, whoever reads or writes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.errors import ArtifactError
from resq_tvm.targets.npu.codes import code_range
from resq_tvm.targets.npu.commands import (
    Matrix,
    Operand,
    Plane,
    Program,
    Step,
    Store,
    Stream,
    Vector,
    ring_runs,
)
from resq_tvm.targets.npu.races import races, spans
from tests.targets.npu.machines import Bench, plane_of, whole

COPY = (Step("read"), Step("write", (0,), index=1))


def turned(operand: Operand, top: int, rows: int) -> Operand:
    """Return rows of a buffer that is circular, from row ``top`` on."""
    return replace(operand, h=rows, ring=operand.h, top=top)


@given(first=st.integers(0, 40), ring=st.integers(0, 12), data=st.data())
def test_runs_name_every_row_in_order(first, ring, data):
    rows = data.draw(st.integers(0, ring or 12))
    named = [
        r for begin, count in ring_runs(first, rows, ring) for r in range(begin, begin + count)
    ]
    assert named == [(first + i) % ring if ring else first + i for i in range(rows)]


def test_more_rows_than_there_are_have_no_runs():
    with pytest.raises(ValueError, match="4 rows do not lie in a circular buffer of 3"):
        ring_runs(0, 4, 3)


@settings(max_examples=80)
@given(
    format=st.sampled_from(["f32", "f16", "c2", "c4", "c8", "u8"]),
    ring=st.integers(1, 6),
    channels=st.integers(1, 5),
    data=st.data(),
)
def test_the_vector_unit_reads_and_writes_rows_that_wrap(format, ring, channels, data):
    top = data.draw(st.integers(0, ring - 1))
    rows = data.draw(st.integers(1, ring))
    to = data.draw(st.integers(0, ring - 1))
    rng = np.random.default_rng(ring)
    bench = Bench()
    value = rng.integers(0, 2, (ring, 3, channels)).astype(np.int8)
    source, target = bench.put(value, format), bench.put(np.zeros_like(value), format)
    operands = (turned(source, top, rows), turned(target, to, rows))
    bench.run(whole(bench.program(*COPY), operands, rows, 3, channels))
    expected = np.zeros_like(value)
    for row in range(rows):
        expected[(to + row) % ring] = value[(top + row) % ring]
    np.testing.assert_array_equal(bench.get(target), expected)


@settings(max_examples=60)
@given(
    bits=st.sampled_from([2, 4, 8]),
    ring=st.integers(2, 7),
    taps=st.integers(1, 3),
    stride=st.integers(1, 2),
    data=st.data(),
)
def test_products_of_rows_that_wrap_are_those_of_the_rows_in_order(bits, ring, taps, stride, data):
    top, rows = data.draw(st.integers(0, ring - 1)), data.draw(st.integers(1, ring))
    origin = data.draw(st.integers(-2, 1))
    rng = np.random.default_rng(ring + 10 * top)
    least, most = code_range(bits)
    value = rng.integers(least, most + 1, (ring, 5, 4), np.int8)
    weight = rng.integers(least, most + 1, (3, taps * taps, 4), np.int8)
    height = (rows + 1) // stride
    sums = []
    for circular in (False, True):
        bench = Bench()
        order = [(top + i) % ring for i in range(rows)]
        lying = bench.put(value if circular else value[order], f"c{bits}")
        plane = plane_of(lying)
        if circular:
            plane = replace(plane, h=rows, ring=ring, top=top)
        weights = bench.put(weight, f"c{bits}")
        command = Matrix(
            plane, weights.address, bits, (8, 8), height, 5, 3, (origin, -1), (stride, 1),
            (taps, taps), (1, 1), False, 0,
        )  # fmt: skip
        bench.run(command)
        sums.append(bench.get(Operand("acc", "i32", 0, height, 5, 3, 60, 12)))
    np.testing.assert_array_equal(*sums)


def test_a_buffer_with_fewer_rows_than_are_read_is_refused():
    bench = Bench()
    source, target = (bench.blank(4, 3, 2, "f32") for _ in range(2))
    source = replace(source, ring=3)
    with pytest.raises(ArtifactError, match=r"command 0 .*4 rows do not lie in a circular buffer"):
        bench.run(whole(bench.program(*COPY), (source, target), 4, 3, 2))


def test_a_race_in_the_part_that_wraps_is_found():
    """Row 3 of the vector's tile lies at the beginning of the buffer, where the store reads."""
    written = Operand("sram", "u8", 100, 2, 4, 2, 8, 2, 4, 3)  # rows 3 and 0 of four
    vector = Vector(0, 2, 4, 2, (written,))
    programs = ((Step("scalar", value=1.0), Step("write", (0,), index=0)),)
    for sram, clash in ((100, True), (108, False), (124, True), (132, False)):
        items = ((vector, Store(0, sram, 1, 1, 8, 0, 0, 0, 0)),)
        stream = Stream(
            "npu-micro", ("k",), programs, {}, 64, {"p": Program("p", (), (), (), items)}
        )
        assert bool(races(stream, stream.programs["p"])) == clash


@given(ring=st.integers(1, 6), top=st.integers(0, 5), origin=st.integers(-2, 4), data=st.data())
def test_products_touch_the_rows_that_their_taps_reach(ring, top, origin, data):
    rows = data.draw(st.integers(1, ring))
    plane = Plane(100, rows, 4, 0, 2, 8, 2, 8, ring, top % ring)
    command = Matrix(
        plane, 0, 8, (8, 8), 2, 4, 1, (origin, 0), (1, 1), (2, 1), (1, 1), False, 0
    )  # fmt: skip
    touched = {
        (span.address - 100) // 8 + row
        for span in list(spans(command, ()))[:-2]  # the last ones are weights and accumulators
        for row in range(span.rows)
    }
    reached = {row for row in range(origin, origin + 3) if 0 <= row < rows}
    assert touched == {(top + row) % ring for row in reached}

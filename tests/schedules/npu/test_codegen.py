"""From TIR to commands: expressions, places, addresses, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from resq_tvm.errors import CompileError
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.codegen import Assembler, Place
from resq_tvm.schedules.npu.emit import emit_npu
from resq_tvm.schedules.npu.expressions import number_of
from resq_tvm.schedules.npu.intrinsics import extent, least, most
from resq_tvm.schedules.npu.single import ENTRY, single
from resq_tvm.targets.npu.commands import Load, Matrix, Store, Transfer, Vector
from tests.schedules.npu.harness import machine
from tests.schedules.npu.kernels import codes, conv_anchor, residual_kernel

X, Y = (tirx.Var(name, "int32") for name in "xy")


def expressions():
    """Strategy of (TIR expression, Python function of x and y); values never negative."""
    leaves = st.one_of(
        st.integers(0, 9).map(lambda n: (tirx.const(n, "int32"), lambda x, y: n)),
        st.just((X, lambda x, y: x)),
        st.just((Y, lambda x, y: y)),
    )
    divisors = st.integers(1, 5)

    def grow(children):
        pairs = st.tuples(children, children)
        with_divisor = st.tuples(children, divisors)
        return st.one_of(
            pairs.map(lambda p: (p[0][0] + p[1][0], lambda x, y: p[0][1](x, y) + p[1][1](x, y))),
            pairs.map(lambda p: (p[0][0] * p[1][0], lambda x, y: p[0][1](x, y) * p[1][1](x, y))),
            pairs.map(
                lambda p: (least(p[0][0], p[1][0]), lambda x, y: min(p[0][1](x, y), p[1][1](x, y)))
            ),
            pairs.map(
                lambda p: (
                    most(p[0][0] - p[1][0], 0),
                    lambda x, y: max(p[0][1](x, y) - p[1][1](x, y), 0),
                )
            ),
            with_divisor.map(lambda p: (p[0][0] // p[1], lambda x, y: p[0][1](x, y) // p[1])),
            with_divisor.map(lambda p: (p[0][0] % p[1], lambda x, y: p[0][1](x, y) % p[1])),
        )

    return st.recursive(leaves, grow, max_leaves=12)


@settings(max_examples=200, derandomize=True)
@given(made=expressions(), x=st.integers(0, 50), y=st.integers(0, 50))
def test_expressions_have_the_values_that_python_gives(made, x, y):
    expr, meaning = made
    assert number_of(expr)({X: x, Y: y}) == meaning(x, y)


def test_an_expression_without_a_meaning_here_is_refused():
    with pytest.raises(CompileError, match="kernel for an NPU: no evaluation of EQ"):
        number_of(tirx.EQ(X, Y))


@pytest.mark.parametrize("tile,total", [(4, 12), (5, 12), (12, 12), (7, 3)])
def test_extents_of_tiles_add_up(tile, total):
    count = -(-total // tile)
    sizes = [number_of(tirx.const(0, "int32") + extent(tile, total, i))({}) for i in range(count)]
    assert sum(sizes) == total and all(0 < s <= tile for s in sizes)
    if count > 1 or tile == total:
        symbolic = extent(tile, total, X)
        found = [
            symbolic if isinstance(symbolic, int) else number_of(symbolic)({X: i})
            for i in range(count)
        ]
        assert found == sizes


def layer(rng):
    anchor = conv_anchor(rng, (20,), 24, bits=(4, 8))
    return residual_kernel(rng, anchor, (codes("x0", 9, 11, 20),), 9, 11)


DECISION = Decision("test", "matrix", 3, 6, 2, parallel=False)


def commands_of(kernel, target, decision=DECISION):
    return single(kernel, decision, target).stream.programs[ENTRY].commands


def test_every_pixel_and_channel_is_written_once(rng):
    made = single(layer(rng), DECISION, machine())
    for name in ("q", "z"):
        place = made.tensors[name]
        seen = [0] * place.nbytes
        for c in made.stream.programs[ENTRY].commands:
            inside = place.address <= getattr(c, "dram", -1) < place.address + place.nbytes
            if isinstance(c, Store) and inside:
                for row in range(c.rows):
                    for column in range(c.columns):
                        begin = c.dram + row * c.dram_row + column * c.dram_column - place.address
                        for byte in range(begin, begin + c.piece):
                            seen[byte] += 1
        assert set(seen) == {1}


def test_tiles_stay_in_the_scratch_part_and_copies_take_turns(rng):
    target = machine()
    commands = commands_of(layer(rng), target)
    half = target.npu.sram.bytes // 2
    assert all(c.sram >= half for c in commands if isinstance(c, Transfer))
    assert len({c.accumulators for c in commands if isinstance(c, Matrix)}) == 2
    assert len({c.source.address for c in commands if isinstance(c, Matrix)}) == 2
    assert {c.precision for c in commands if isinstance(c, Matrix)} == {(4, 8)}
    assert {c.weight_bits for c in commands if isinstance(c, Matrix)} == {4}


def test_the_inner_loop_decides_what_is_loaded_again(rng):
    kernel, target = layer(rng), machine()
    outer = commands_of(kernel, target)
    inner = commands_of(kernel, target, Decision("t", "matrix", 3, 6, 2, inner_o=True))

    def loads(commands, place):
        return sum(isinstance(c, Load) and c.dram == place for c in commands)

    x = single(kernel, DECISION, target).tensors["x0"].address
    assert loads(outer, x) == 2 and loads(inner, x) == 1  # two tiles of channels
    count = sum(isinstance(c, Matrix) for c in outer)
    assert count == sum(isinstance(c, Matrix) for c in inner) == 3 * 2 * 2


def assembled(rng, count, scratch=None, accumulators=None):
    """Return the commands of the same kernel, written ``count`` times to different places."""
    target = machine()
    npu = target.npu
    kernel = layer(rng)
    func, constants = emit_npu(kernel, DECISION, target)
    limits = scratch or (npu.sram.bytes // 2, npu.sram.bytes)
    assembler = Assembler(limits, accumulators or npu.matrix.accumulator_bytes, {})
    address = 0
    for number in range(count):
        places = []
        for spec in (*kernel.inputs, *constants, *kernel.outputs):
            is_constant = isinstance(spec, tuple)
            size = 40_000  # any that is enough
            key = None if is_constant else f"{spec.name}{number}"
            places.append(Place("dram", address, size, key))
            if key is not None:
                assembler.hazards.declare(key, "dram", address, address + size)
            address += size
        assembler.kernel(func, number, places)
    return assembler


def test_neighbours_take_memory_from_opposite_ends(rng):
    commands = assembled(rng, 3).commands
    spans = [
        {c.sram for c in commands if isinstance(c, Transfer) and c.kernel == number}
        for number in range(3)
    ]
    assert spans[0] == spans[2] and spans[0].isdisjoint(spans[1])
    # Kernels that share neither memory nor tensors wait for nothing of each other at first.
    second = next(c for c in commands if c.kernel == 1)
    assert second.waits == ()


def test_kernels_share_vector_programs(rng):
    assembler = assembled(rng, 3)
    assert {c.program for c in assembler.commands if isinstance(c, Vector)} == {0}


def test_too_little_memory_names_kernel_and_memory(rng):
    with pytest.raises(CompileError, match=r"kernel residual: tiles take \d+ bytes of sram, 512 "):
        assembled(rng, 1, scratch=(1024, 1536))
    with pytest.raises(CompileError, match=r"kernel residual: tiles take \d+ bytes of acc, 256 "):
        assembled(rng, 1, accumulators=256)

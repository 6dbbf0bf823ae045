from __future__ import annotations

import hashlib
import json
import math
import struct
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resq_tvm.errors import ArtifactError, CompileError, OutputError
from resq_tvm.targets.npu.commands import (
    Engine,
    HostCall,
    Load,
    Matrix,
    Operand,
    Plane,
    Program,
    Step,
    Store,
    Stream,
    TensorPlace,
    Vector,
)
from resq_tvm.targets.npu.stream_file import from_bytes, read_stream, to_bytes, write_stream
from tests.targets.npu.programs import double_buffered, load, matrix, stream_of, vector

u32 = st.integers(0, 2**32 - 1)
i32 = st.integers(-(2**31), 2**31 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
codes = st.sampled_from((2, 4, 8))
names = st.text(max_size=12)
pairs = st.tuples(u32, u32)
waits = st.lists(st.tuples(st.sampled_from(Engine), u32), max_size=4).map(tuple)
kernels = st.integers(0, 2)
flags = st.none() | st.integers(0, 2**32 - 2)
transfer = (
    st.integers(0, 2**64 - 1),
    u32,
    u32,
    u32,
    u32,
    i64,
    i64,
    i32,
    i32,
    waits,
    kernels,
    flags,
)
planes = st.builds(Plane, u32, u32, u32, u32, u32, u32, u32, codes, u32, u32)
matrices = st.builds(
    Matrix, planes, u32, codes, st.tuples(st.integers(2, 8), st.integers(2, 8)), u32, u32, u32,
    st.tuples(i32, i32), pairs, pairs, st.tuples(i32, i32), st.booleans(), u32, st.booleans(),
    st.none() | planes, waits, kernels, flags,
)  # fmt: skip
memories = st.sampled_from(("sram", "acc", "dram"))
formats = st.sampled_from(("i32", "f32", "f16", "c2", "c4", "c8", "u8"))
operands = st.builds(Operand, memories, formats, u32, u32, u32, u32, u32, u32, u32, u32)
vectors = st.builds(
    Vector, st.integers(0, 1), u32, u32, u32, st.lists(operands, max_size=4).map(tuple),
    st.tuples(i32, i32, i32), st.tuples(i32, i32), waits, kernels, flags,
)  # fmt: skip
commands = st.one_of(st.builds(Load, *transfer), st.builds(Store, *transfer), matrices, vectors)
places = st.builds(
    TensorPlace, names, st.sampled_from(("dram", "sram")), u32, u32, u32, u32, formats
)
shapes = st.lists(st.lists(u32, max_size=4).map(tuple), max_size=3).map(tuple)
some_places = st.lists(places, max_size=2).map(tuple)
calls = st.builds(HostCall, names, names, some_places, some_places, shapes)
runs = st.lists(commands, max_size=6).map(tuple)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
steps = st.builds(
    Step, names, st.lists(u32, max_size=3).map(tuple), st.floats(allow_nan=False), u32, u32,
    st.dictionaries(names, values, max_size=3).map(lambda d: tuple(sorted(d.items()))),
)  # fmt: skip
vector_programs = st.lists(steps, max_size=4).map(tuple)


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    programs = {
        name: Program(
            name, draw(some_places), draw(some_places), draw(some_places),
            tuple(draw(st.lists(st.one_of(runs, calls), max_size=4))),
        )
        for name in draw(st.lists(names, max_size=2, unique=True))
    }  # fmt: skip
    return Stream(
        draw(names), draw(st.tuples(names, names, names)),
        draw(st.tuples(vector_programs, vector_programs)),
        draw(st.dictionaries(names, u32, max_size=3)), draw(u32), programs,
    )  # fmt: skip


@settings(max_examples=200)
@given(streams())
def test_round_trip(stream):
    data = to_bytes(stream)
    back = from_bytes(data, "x")
    assert back == stream
    assert to_bytes(back) == data
    assert repr(back) == repr(stream)  # numbers of Python's: NumPy's overflow
    hash(back.vector_programs)  # tables are tuples again
    for program in back.programs.values():
        for command in program.commands:
            assert all(isinstance(engine, Engine) for engine, _ in command.waits)


def test_infinity_survives(tmp_path):
    fill = Step("window", value=-math.inf, table=(("fill", math.inf),))
    stream = replace(stream_of(), vector_programs=((fill,),))
    write_stream(tmp_path / "a.npu", stream)
    assert read_stream(tmp_path / "a.npu") == stream


def test_the_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "program.npu"
    write_stream(file, double_buffered(2, 3))
    write_stream(file, double_buffered(2, 4))
    assert read_stream(file) == double_buffered(2, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["program.npu"]
    with pytest.raises(OutputError):
        write_stream(tmp_path, stream_of())


def test_100_000_commands_take_seconds():
    stream = double_buffered(10, 2500)
    begin = time.process_time()
    assert len(from_bytes(to_bytes(stream), "x").programs["main"].commands) == 100_000
    assert time.process_time() - begin < 20  # about 3 on an idle machine


GOOD = to_bytes(double_buffered(2, 3))
SIZE = struct.calcsize("<8sIIQ32s")


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 20, SIZE, SIZE + 10, len(GOOD) - 1])
def test_truncated_files(tmp_path, cut):
    file = tmp_path / "program.npu"
    file.write_bytes(GOOD[:cut])
    with pytest.raises(ArtifactError, match=r"program.npu'.*(no stream|truncated).*again") as error:
        read_stream(file)
    assert "\n" not in str(error.value)


@given(st.integers(SIZE - 32, len(GOOD) - 1), st.integers(1, 255))
def test_every_flipped_byte_is_noticed(place, flip):
    data = bytearray(GOOD)
    data[place] ^= flip
    with pytest.raises(ArtifactError, match="damaged"):
        from_bytes(bytes(data), "x")


def test_other_versions_and_missing_files(tmp_path):
    newer = GOOD[:8] + struct.pack("<I", 4) + GOOD[12:]
    with pytest.raises(ArtifactError, match="format version 4, this program reads 3; compile"):
        from_bytes(newer, "x")
    with pytest.raises(ArtifactError, match=r"nowhere.npu' cannot be read .*; compile"):
        read_stream(tmp_path / "nowhere.npu")


def resealed(change) -> bytes:
    """Change the header of a good file and sign it anew."""
    (length,) = struct.unpack_from("<Q", GOOD, 16)
    header = json.loads(GOOD[SIZE : SIZE + length])
    change(header)
    text = json.dumps(header).encode()
    body = text + GOOD[SIZE + length :]
    digest = hashlib.sha256(body).digest()
    return GOOD[:16] + struct.pack("<Q", len(text)) + digest + body


def set_table(name, count):
    return lambda header: header["programs"][0]["tables"].update({name: count})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_table("order", 23), "are listed"),
        (set_table("operand", 11), "operands|too many"),
        (set_table("load", 10**9), "buffer"),
        (set_table("load", -1), ""),
        (lambda header: header.pop("npu"), "'npu'"),
        (lambda header: header.update(kernels=["one"]), "kernel 1, which is not"),
        (lambda header: header.update(vector_programs=[]), "runs vector program 0"),
        (lambda header: header["programs"][0]["items"].append({"commands": 1}), "items hold"),
        (lambda header: header["programs"][0]["state"].append({"name": "x"}), "TensorPlace"),
        (lambda header: header.update(programs=3), "int"),
        (lambda header: header["vector_programs"][0][0].update(colour=1), "colour"),
    ],
)
def test_contradictions_are_malformed(change, message):
    with pytest.raises(ArtifactError, match=f"stream 'x' is malformed .*({message})"):
        from_bytes(resealed(change), "x")
    assert from_bytes(resealed(lambda header: None), "x") == double_buffered(2, 3)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (load(2**32), r"load\.piece"),
        (load(8, sram=-1), r"load\.sram"),
        (replace(matrix(), precision=(8, 256)), r"matrix\.precision"),
        (replace(matrix(), source=replace(matrix().source, row=-1)), r"matrix\.source"),
        (replace(vector(), waits=((Engine.LOAD, -1),)), r"vector\.waits"),
        (replace(vector(), waits=((Engine.LOAD, 1),) * 5), "5 waits"),
    ],
)
def test_what_does_not_fit_is_refused(command, field):
    expected = rf"program 'main' for npu-plain does not fit into a stream \({field}"
    with pytest.raises(CompileError, match=expected):
        to_bytes(stream_of((load(8), matrix(), vector(), command)))

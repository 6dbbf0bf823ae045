from __future__ import annotations

import re
from dataclasses import replace

import pytest

from resq_tvm.errors import ArtifactError, ConfigError
from resq_tvm.targets.npu.commands import (
    Engine,
    HostCall,
    Load,
    Operand,
    Step,
    Store,
    TensorPlace,
)
from resq_tvm.targets.npu.disassemble import command_text, disassemble, vector_program_lines
from tests.targets.npu.programs import REQUANTIZE, double_buffered, load, matrix, stream_of, vector


def test_commands_are_one_line_each():
    stream = double_buffered(3, 5)
    text = disassemble(stream)
    numbers = [int(n) for n in re.findall(r"^  #(\d+)", text, re.MULTILINE)]
    assert numbers == list(range(60))
    assert re.findall(r"^kernel (.*)$", text, re.MULTILINE) == ["layer0", "layer1", "layer2"]
    assert "matrix 15 " in text


def test_transfers():
    one = Load(0x1000, 0x20, 3, 4, 16, 640, 32, 64, 16, ((Engine.MATRIX, 7), (Engine.STORE, 2)))
    assert command_text(one) == (
        "dram 0x1000 -> sram 0x20  3x4 pieces of 16 = 192 bytes  (dram +640 +32, sram +64 +16)"
        "  after matrix 7, store 2"
    )
    assert command_text(Store(0x1000, 0x20, 1, 1, 9, 0, 0, 0, 0)) == (
        "sram 0x20 -> dram 0x1000  9 bytes"
    )


def test_matrix():
    plain = command_text(matrix(4, 8, 16, 32, taps=(3, 3), bits=(4, 8), waits=((Engine.LOAD, 1),)))
    assert plain == (
        "acc 0x0 = conv 4x8x16 W4A8 taps 3x3 of sram 0x0 4x8x[0:32] c8 (+256 +32) from (-1,-1) "
        "weights 0xc000 c4  after load 1"
    )
    special = matrix(
        4, 8, 16, 16, taps=(3, 3), stride=(2, 1), dilation=(1, 2), depthwise=True, bits_map=True
    )
    text = command_text(replace(special, accumulate=True))
    for part in ("+= depthwise", "stride 2x1", "dilation 1x2", "bits sram 0x8000 8x8x[0:1] c8"):
        assert part in text


def test_vector():
    text = command_text(replace(vector(2, 3, 4), place=(1, 2, 3), window=(5, -1)))
    assert text == (
        "program 0 on 2x3x4 at (1,2,3) reading from (5,-1) [acc 0x0 2x3x4 i32 (+48 +16); "
        "sram 0x4000 2x3x4 c8 (+12 +4)]"
    )
    many = replace(vector(), operands=(Operand("sram", "f16", 64, 1, 1, 4, 8, 8),))
    assert "[sram 0x40 1x1x4 f16 (+8 +8)]" in command_text(many)


def test_circular_buffers():
    circular = replace(vector().operands[1], ring=5, top=3)
    text = command_text(replace(vector(), operands=(circular,)))
    assert text.endswith(") ring 5 from 3]")
    products = matrix(4, 8, 16, 32, taps=(3, 3))
    text = command_text(replace(products, source=replace(products.source, ring=6, top=2)))
    assert "c8 (+256 +32) ring 6 from 2 from (-1,-1)" in text


def test_vector_programs():
    assert list(vector_program_lines(REQUANTIZE)) == [
        "%0 = read operand 0",
        "%1 = scalar value=0.5",
        "%2 = dequantize %0, %1",
        "%3 = quantize %2 value=4.0 limit=127",
        "operand 1 = %3",
    ]
    pool = Step("pool", table=(("kind", "max"), ("window", (3, 3))))
    assert list(vector_program_lines((pool,))) == ["%0 = pool kind=max window=(3,3)"]


def test_tensors_and_host_calls():
    place = TensorPlace("image", "dram", 256, 4, 5, 3, "f32")
    call = HostCall("f1", "sort", (place,), (place,), ((4, 5, 3),) * 2)
    stream = stream_of((load(8),), call, (matrix(kernel=1),))
    program = replace(stream.programs["main"], inputs=(place,), state=(place,))
    text = disassemble(replace(stream, programs={"main": program}))
    assert "  inputs  image: dram 0x100 4x5x3 f32" in text
    assert "  state   image: dram 0x100 4x5x3 f32" in text
    assert text.index("load 1") < text.index("host f1 (sort)") < text.index("kernel two")


def test_kernels_are_chosen_by_pattern():
    stream = double_buffered(12, 2)
    text = disassemble(stream, kernel="layer1")
    assert re.findall(r"^kernel (.*)$", text, re.MULTILINE) == ["layer1"]
    assert re.findall(r"#(\d+)", text) == [str(n) for n in range(8, 16)]
    assert "matrix 3 " in text  # numbers are those of the whole program
    assert disassemble(stream, kernel="layer1*").count("\nkernel ") == 3
    with pytest.raises(ConfigError, match="kernel 'conv' matches none of the stream's 12, such as"):
        disassemble(stream, kernel="conv")


def test_only_vector_programs_that_run_are_shown():
    stream = stream_of((vector(kernel=1), load(8)))
    assert "vector program 0" in disassemble(stream, kernel="two")
    assert "vector program" not in disassemble(stream, kernel="one")


def test_programs_are_chosen_by_name():
    stream = stream_of((load(8),))
    stream.programs["other"] = replace(stream.programs["main"], name="other")
    assert disassemble(stream).count("\nprogram ") == 2
    assert "program other" not in disassemble(stream, "main")
    with pytest.raises(ArtifactError, match="no program 'keyframe'; it has main, other"):
        disassemble(stream, "keyframe")


def test_flags():
    assert command_text(replace(load(9, dram=64), flag=0x40)) == (
        "dram 0x40 -> sram 0x0  9 bytes  if sram 0x40"
    )
    one = replace(load(9, waits=((Engine.VECTOR, 3),)), flag=0)
    assert command_text(one).endswith("9 bytes  if sram 0x0  after vector 3")
    windows = (("columns", ((0, 4),)), ("rows", ((0, 2), (1, 5))))
    program = (Step("active", index=2, table=windows), Step("nonzero", (0,), 8.0))
    assert list(vector_program_lines(program)) == [
        "%0 = active operand 2 columns=((0,4)) rows=((0,2),(1,5))",
        "%1 = nonzero %0 value=8.0",
    ]

"""What instructions read and write, from their disassembly."""

from __future__ import annotations

import pytest

from resq_tvm.targets.emulated.instructions import (
    FLAGS,
    STACK,
    Instruction,
    decode,
    disassemble,
    registers,
)
from tests.targets.emulated.assembly import words_of


def v(*numbers: int) -> list[int]:
    return [32 + n for n in numbers]


@pytest.mark.parametrize(
    ("line", "kind", "wide", "sources", "accumulator", "results", "updates"),
    [
        ("smull v0.8h, v1.8b, v2.8b", "mull", True, v(1, 2), None, v(0), []),
        ("smlal2 v0.8h, v1.16b, v2.16b", "mlal", True, v(1, 2), 32, v(0), []),
        ("sadalp v3.4s, v9.8h", "adalp", True, v(9), 35, v(3), []),
        ("sdot v0.4s, v1.16b, v2.4b[1]", "dot", True, v(1, 2), 32, v(0), []),
        ("smmla v0.4s, v1.16b, v2.16b", "dot", True, v(1, 2), 32, v(0), []),
        ("mla v0.8b, v1.8b, v2.8b", "mla", False, v(1, 2), 32, v(0), []),
        ("fmla v0.4s, v1.4s, v2.s[1]", "fma", True, v(1, 2), 32, v(0), []),
        ("fmadd s0, s1, s2, s3", "fma", False, v(1, 2), 35, v(0), []),
        ("sqxtn2 v0.16b, v1.8h", "qnarrow", True, v(1, 0), None, v(0), []),
        ("bsl v0.16b, v1.16b, v2.16b", "select", True, v(1, 2, 0), None, v(0), []),
        ("ins v1.s[2], w3", "from.scalar", False, [3, 33], None, v(1), []),
        ("umov w0, v1.s[1]", "to.scalar", False, v(1), None, [0], []),
        ("addv b0, v1.16b", "reduce", True, v(1), None, v(0), []),
        ("tbl v0.16b, {v1.16b, v2.16b}, v3.16b", "table.2", True, v(1, 2, 3), None, v(0), []),
        ("fcmp s0, s1", "fcompare", False, v(0, 1), None, [FLAGS], []),
        ("fcvtns v0.4s, v1.4s", "fconvert", True, v(1), None, v(0), []),
        ("ldp q0, q1, [x2], #32", "loadpair.q", False, [2], None, v(0, 1), [2]),
        ("ldr w0, [x1, w2, sxtw #2]", "load.w", False, [1, 2], None, [0], []),
        ("ldr x0, 0xc8", "load.x", False, [], None, [0], []),
        ("str q0, [x1, #16]!", "store.q", False, [1, 32], None, [], [1]),
        ("stp x1, x2, [sp, #-32]!", "storepair.x", False, [STACK, 1, 2], None, [], [STACK]),
        ("ld1 {v30.16b-v1.16b}, [x0], x2", "load.4", True, [0, 2], None, v(30, 31, 0, 1), [0]),
        ("ld1 {v0.b}[3], [x0]", "load.lane", False, [0, 32], None, v(0), []),
        ("ld1r {v0.4s}, [x0]", "load.all", True, [0], None, v(0), []),
        ("ld2 {v0.16b, v1.16b}, [x0]", "load.by2", True, [0], None, v(0, 1), []),
        ("subs xzr, x0, x1", "alu", False, [0, 1], None, [FLAGS], []),
        ("add x0, x1, x2, lsl #3", "shifted", False, [1, 2], None, [0], []),
        ("csel x0, x1, x2, eq", "alu", False, [1, 2, FLAGS], None, [0], []),
        ("madd x0, x1, x2, xzr", "multiply.x", False, [1, 2], None, [0], []),
        ("cbz x1, 0x44", "branch", False, [1], None, [], []),
        ("b.ne 0x40", "branch", False, [FLAGS], None, [], []),
        ("blr x3", "branch", False, [3], None, [30], []),
        ("prfm pldl1keep, [x0]", "prefetch", False, [0], None, [], []),
        ("movz xzr, #0x5201", "alu", False, [], None, [], []),
        ("dmb ish", "fence", False, [], None, [], []),
        (".inst 0x23456789 ; undefined", "nop", False, [], None, [], []),
    ],
)
def test_decode(
    line: str,
    kind: str,
    wide: bool,
    sources: list[int],
    accumulator: int | None,
    results: list[int],
    updates: list[int],
) -> None:
    expected = Instruction(line.split()[0], kind, wide, sources, accumulator, results, updates)
    assert decode(line) == expected


def test_registers_of_a_list_that_wraps() -> None:
    assert registers("{v31.4s-v2.4s}, [sp], x3") == [63, 32, 33, 34, STACK, 3]


def test_disassemble_keeps_count_and_order() -> None:
    words = words_of("add x0, x1, x2\nsmull v0.8h, v1.8b, v2.8b\n.word 0\nret")
    lines = disassemble(words)
    assert lines == ["add x0, x1, x2", "smull v0.8h, v1.8b, v2.8b", "udf #0", "ret"]
    assert disassemble([]) == []

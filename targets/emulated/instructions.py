"""What an aarch64 instruction reads, writes and is: from its disassembly.

Registers are numbered 0-30 (x), 31 (sp), 32-63 (v) and 64 (flags).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from resq_tvm.errors import TargetError
from resq_tvm.targets.boardkit import require_tool

DISASSEMBLER = "aarch64-linux-gnu-objdump"
PACKAGE = "binutils-aarch64-linux-gnu"

STACK, VECTORS, FLAGS = 31, 32, 64
_TIMEOUT_S = 60


@dataclass
class Instruction:
    """One decoded instruction.

    Attributes
    ----------
    mnemonic : str
        As objdump writes it without aliases.
    kind : str
        What cores tell apart: a key of a core's table (`resq_tvm.targets.emulated.timings`).
    wide : bool
        Whether it works on 128-bit vectors.
    sources : list of int
        Registers that are read early; an accumulator is not among them.
    accumulator : int or None
        The register that is read and written by a multiply-accumulate or the like.
    results : list of int
        Registers that are written, the main one first.
    updates : list of int
        Address registers that are written, one cycle later.
    """

    mnemonic: str
    kind: str
    wide: bool = False
    sources: list[int] = field(default_factory=list)
    accumulator: int | None = None
    results: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)


def disassemble(words: Sequence[int]) -> list[str]:
    """Return one line ``mnemonic operands`` for each 32-bit instruction word.

    Raises
    ------
    TargetError
        If binutils for aarch64 are not installed, or fail.
    """
    if not len(words):
        return []
    tool = require_tool(DISASSEMBLER, PACKAGE)
    with tempfile.TemporaryDirectory(prefix="resq-") as folder:
        code = Path(folder) / "code"
        code.write_bytes(np.asarray(words, dtype="<u4").tobytes())
        done = subprocess.run(
            [tool, "-D", "-z", "-b", "binary", "-m", "aarch64", "-M", "no-aliases", str(code)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    lines = re.findall(r"^ *[0-9a-f]+:\t[0-9a-f]{8} \t([^\n]*)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or len(lines) != len(words):
        raise TargetError(
            f"{DISASSEMBLER} gave {len(lines)} lines for {len(words)} instructions; reinstall the "
            f"Debian package {PACKAGE}"
        )
    return [re.split(r"\s*//", line)[0].replace("\t", " ").strip() for line in lines]


# Kinds of vector instructions by mnemonic; a trailing 2 (upper half) is taken off first.
_VECTOR_KINDS = (
    (r"[su]dot|usdot|sudot|[us]mmla|usmmla|bfdot|bfmmla", "dot"),
    (r"sqdml[as]l|sqrdml[as]h", "qmla"),
    (r"[su]ml[as]l|bfmlal[bt]?", "mlal"),
    (r"ml[as]", "mla"),
    (r"[su]mull|pmull|sqdmull", "mull"),
    (r"mul|pmul|sqr?dmulh", "mul"),
    (r"[su]adalp", "adalp"),
    (r"[su]addlp", "addlp"),
    (r"[su]abal?", "aba"),
    (r"[su]abdl?|abs", "abd"),
    (r"(add|[su]addl|[su]max|[su]min)v", "reduce"),
    (r"addp|[su](max|min)p?", "add"),
    (r"(sqx|uqx|sqxtu)tu?n|sq?r?shru?n|[us]?qr?shru?n", "qnarrow"),
    (r"rshrn", "qnarrow"),
    (r"xtn|shrn", "narrow"),
    (r"r?(add|sub)hn", "narrow"),
    (r"[su]shll|shll?|[su]shr|sli|sri", "shift.v"),
    (r"[su]shl", "shiftv"),
    (r"[su]r?sra", "sra"),
    (r"[su]rshr|[su]qshlu?|[su]rshl|[su]qrshl", "rshift"),
    (r"sq(abs|neg)|[su]q(add|sub)|suqadd|usqadd", "qadd"),
    (r"[su](add|sub)[lw]|[su]r?h(add|sub)", "addl"),
    (r"add|sub|neg", "add"),
    (r"cm(eq|ge|gt|hi|hs|le|lt|tst)", "add"),
    (r"cnt|clz|cls", "count"),
    (r"bsl|bit|bif", "select"),
    (r"and|orr|orn|eor|bic|mvn|not|eor3|bcax", "logic"),
    (r"movi|mvni", "constant"),
    (r"zip[12]?|uzp[12]?|trn[12]?|ext|rev(16|32|64)|rbit", "permute"),
    (r"fadd|fsub|fabd|fcadd", "fadd"),
    (r"faddp", "faddp"),
    (r"f(max|min)(nm)?v", "freduce"),
    (r"f(max|min)(nm)?p?", "fmax"),
    (r"fabs|fneg|fac?cm?p?(eq|ge|gt|le|lt)|fcm(eq|ge|gt|le|lt)|fac(ge|gt)", "fmax"),
    (r"fn?mulx?", "fmul"),
    (r"fml[as]l?|fn?m(add|sub)|fcmla|fmlal", "fma"),
    (r"frecps|frsqrts", "fstep"),
    (r"frecp[ex]|frsqrte|ur(ecpe|sqrte)", "frecp"),
    (r"fdiv", "fdiv"),
    (r"fsqrt", "fsqrt"),
    (r"fcvt[lnxz]?[spmauz]?[su]?n?|[su]cvtf|frint[anmpizx]|bfcvtn?", "fconvert"),
)  # fmt: skip
_VECTOR_KIND = tuple((re.compile(pattern), kind) for pattern, kind in _VECTOR_KINDS)
_ACCUMULATE = frozenset({"dot", "qmla", "mlal", "mla", "adalp", "aba", "sra", "fma"})

_REGISTER = re.compile(r"(?<![\w#.])(?:([wx])(\d+)|(sp|wsp)|([bhsdqv])(\d+))(?![\w(])")
_RANGE = re.compile(r"v(\d+)\.(\w+)-v(\d+)\.\w+")
_FLAG_READERS = ("b.", "cs", "ccm", "adc", "sbc", "fcsel", "fccmp")
_FLAG_WRITERS = frozenset({"adds", "subs", "ands", "bics", "adcs", "sbcs", "ccmp", "ccmn"})


def registers(text: str) -> list[int]:
    """Return the numbers of the registers in a part of a line, in order; zero registers not."""

    def spell_out(match: re.Match[str]) -> str:
        first, last = int(match[1]), int(match[3])
        count = (last - first) % 32 + 1
        return ", ".join(f"v{(first + i) % 32}.{match[2]}" for i in range(count))

    numbers = []
    for match in _REGISTER.finditer(_RANGE.sub(spell_out, text)):
        scalar, vector = match[2], match[5]
        numbers.append(
            int(scalar) if scalar else VECTORS + int(vector) if vector is not None else STACK
        )
    return numbers


def decode(line: str) -> Instruction:
    """Return what a line of `disassemble` does."""
    mnemonic, _, operands = line.partition(" ")
    operands = operands.strip()
    if "[" in operands and "{" not in operands.split("[")[0] and _is_memory(mnemonic):
        return _memory(mnemonic, operands)
    if operands.startswith("{") and re.match(r"(ld|st)[1-4]r?$", mnemonic):
        return _structure(mnemonic, operands)
    if mnemonic.startswith(("ldr", "ldrsw", "prfm")):  # from beside the code
        return Instruction(mnemonic, "load.x", results=registers(operands)[:1])
    if re.search(r"\b[bhsdqv]\d+", operands):
        return _vector(mnemonic, operands)
    return _scalar(mnemonic, operands)


def _is_memory(mnemonic: str) -> bool:
    return mnemonic.startswith(("ld", "st", "prf", "cas", "swp"))


def _memory(mnemonic: str, operands: str) -> Instruction:
    data, _, address = operands.partition("[")
    inside, _, behind = address.partition("]")
    base = registers(inside)
    moved, writes = registers(data), mnemonic.startswith("st")
    updates = base[:1] if behind.startswith(("!", ",")) else []
    sources = base + registers(behind)
    if mnemonic.startswith("prf"):
        return Instruction(mnemonic, "prefetch", sources=sources)
    if not re.match(r"(ld|st)(n?p(sw)?|u?r(s?[bhw])?)$", mnemonic):
        status = moved if mnemonic.startswith(("ld", "cas", "swp", "stx", "stlx")) else []
        return Instruction(mnemonic, "atomic", sources=sources + moved, results=status)
    size = data.strip()[:1]
    pair = "pair" if "p" in mnemonic[2:] else ""
    if moved and moved[0] >= VECTORS:
        width = "q" if size == "q" else "d"
    else:
        width = "x" if size == "x" and mnemonic[2:] in ("r", "ur", "p", "np") else "w"
    verb = "store" if writes else "load"
    instruction = Instruction(mnemonic, f"{verb}{pair}.{width}", sources=sources, updates=updates)
    if writes:
        instruction.sources = sources + moved
    else:
        instruction.results = moved
    return instruction


def _structure(mnemonic: str, operands: str) -> Instruction:
    """Decode ld1-ld4 and st1-st4 of whole registers, of a lane, and to all lanes."""
    listed, _, address = operands.partition("[")
    if re.match(r"\s*\d+\]", address):  # a lane's number, not the address
        lane, (_, _, address) = True, address.partition("[")
    else:
        lane = False
    inside, _, behind = address.partition("]")
    vectors, base = registers(listed), registers(inside)
    updates = base[:1] if behind.startswith(("!", ",")) else []
    sources = base + registers(behind)
    writes, way = mnemonic.startswith("st"), mnemonic[2]
    wide = bool(re.search(r"\.(16b|8h|4s|2d)", listed))
    if mnemonic.endswith("r"):
        kind = "load.all"
    elif lane:
        kind = "store.lane" if writes else "load.lane"
    else:
        verb = "store" if writes else "load"
        kind = f"{verb}.{len(vectors)}" if way == "1" else f"{verb}.by{way}"
    instruction = Instruction(mnemonic, kind, wide, sources, updates=updates)
    if writes:
        instruction.sources = sources + vectors
    else:
        instruction.results = vectors
        if lane:
            instruction.sources = sources + vectors
    return instruction


def _vector(mnemonic: str, operands: str) -> Instruction:
    parts = [part.strip() for part in re.split(r",(?![^{]*\})", operands)]
    first, rest = parts[0], parts[1:]
    result, sources = registers(first), registers(", ".join(rest))
    wide = bool(re.search(r"\.(16b|8h|4s|2d|1q)|^q", first))
    to_scalar = bool(re.match(r"[wx]", first))
    from_scalar = bool(rest) and bool(re.match(r"[wx]([0-9]|zr)", rest[0]))
    base = (
        mnemonic.removesuffix("2") if not mnemonic.startswith(("zip", "uzp", "trn")) else mnemonic
    )
    if mnemonic in ("umov", "smov") or (mnemonic == "fmov" and to_scalar):
        return Instruction(mnemonic, "to.scalar", False, sources, results=result)
    if to_scalar and mnemonic.startswith("fcvt"):
        return Instruction(mnemonic, "convert.to.scalar", False, sources, results=result)
    if from_scalar and mnemonic.endswith("cvtf"):
        return Instruction(mnemonic, "convert.from.scalar", False, sources, results=result)
    if mnemonic in ("dup", "ins", "fmov"):
        if mnemonic == "ins":
            sources = sources + result  # the other lanes stay
        kind = "from.scalar" if from_scalar else "permute" if rest[0][:1] == "v" else "constant"
        if mnemonic == "fmov" and rest[0][:1] in ("s", "d", "h"):
            kind = "logic"
        return Instruction(mnemonic, kind, wide, sources, results=result)
    if mnemonic.startswith(("fcmp", "fccmp")) and "." not in first:
        if first[0] in "sdh":
            reads = [FLAGS] if mnemonic.startswith("fccmp") else []
            return Instruction(
                mnemonic, "fcompare", False, result + sources + reads, results=[FLAGS]
            )
    if mnemonic == "fcsel":
        return Instruction(mnemonic, "fmax", False, [*sources, FLAGS], results=result)
    if mnemonic in ("tbl", "tbx"):
        table = len(registers(rest[0]))
        if mnemonic == "tbx":
            sources = sources + result
        return Instruction(mnemonic, f"table.{table}", wide, sources, results=result)
    kind = next((k for pattern, k in _VECTOR_KIND if pattern.fullmatch(base)), "add")
    if kind in ("reduce", "freduce"):
        wide = bool(re.search(r"\.(16b|8h|4s)", rest[0]))
        if ".4s" in rest[0] or ".4h" in rest[0]:
            kind = f"{kind}.4"
    instruction = Instruction(mnemonic, kind, wide, sources, results=result)
    if kind in _ACCUMULATE and len(rest) < 3:
        instruction.accumulator = result[0]
    elif kind == "fma" and len(rest) == 3:  # fmadd: the accumulator is the last operand
        instruction.accumulator = sources[-1]
        instruction.sources = sources[:-1]
    elif (
        kind == "select"
        or mnemonic in ("sli", "sri")
        or (mnemonic.endswith("2") and kind in ("narrow", "qnarrow"))
    ):
        instruction.sources = sources + result
    elif kind == "logic" and len(rest) >= 1 and rest[0].startswith("#"):
        instruction.sources = sources + result  # bic and orr with a constant
    return instruction


def _scalar(mnemonic: str, operands: str) -> Instruction:
    parts = [part.strip() for part in operands.split(",")]
    if mnemonic in ("b", "br", "bl", "blr", "ret") or mnemonic.startswith("b."):
        reads = [FLAGS] if mnemonic.startswith("b.") else registers(operands)
        return Instruction(
            mnemonic, "branch", sources=reads, results=[30] if mnemonic in ("bl", "blr") else []
        )
    if mnemonic.startswith(("cbz", "cbnz", "tbz", "tbnz")):
        return Instruction(mnemonic, "branch", sources=registers(parts[0]))
    if mnemonic in ("dmb", "dsb", "isb", "svc", "sb"):
        return Instruction(mnemonic, "fence")
    if mnemonic in ("nop", "hint", "yield", "bti", "paciasp", "autiasp", "udf", ".inst"):
        return Instruction(mnemonic, "nop")
    result, sources = registers(parts[0]), registers(", ".join(parts[1:]))
    if mnemonic in ("mrs", "msr", "sys", "dc", "ic"):
        return Instruction(mnemonic, "system", sources=sources, results=result)
    long = parts[0].startswith("x")
    kind = "alu"
    if re.fullmatch(r"m(add|sub)", mnemonic):
        kind = "multiply.x" if long else "multiply.w"
    elif re.fullmatch(r"[su]m(add|sub)l", mnemonic):
        kind = "multiply.w"
    elif mnemonic in ("smulh", "umulh"):
        kind = "multiply.high"
    elif mnemonic in ("udiv", "sdiv"):
        kind = "divide"
    elif mnemonic in ("bfm", "bfi", "bfxil"):
        kind, sources = "insert", sources + result
    elif re.fullmatch(r"[su]bfm|extr|(ls[lr]|asr|ror)v|rev(16|32)?|rbit", mnemonic):
        kind = "shift"
    elif mnemonic == "movk":
        sources = sources + result
    elif re.search(r"(lsl|lsr|asr|ror|[su]xt[bhwx]) #[1-9]|[su]xt[bhw]", operands):
        if mnemonic not in ("movz", "movn"):
            kind = "shifted"
    if mnemonic.startswith(_FLAG_READERS):
        sources = [*sources, FLAGS]
    if mnemonic.startswith("ccm"):
        return Instruction(mnemonic, "alu", sources=result + sources, results=[FLAGS])
    if mnemonic in _FLAG_WRITERS:
        result = [*result, FLAGS]
    return Instruction(mnemonic, kind, sources=sources, results=result)

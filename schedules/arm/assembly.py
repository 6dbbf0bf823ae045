"""Inner loops for in-order cores, as inline assembly.

An in-order core waits for every load that comes too late, and LLVM neither starts loads of the next
step early enough nor keeps a hand-made order. These loops load what the next round needs between
the products of the current one. The accumulators stay in registers that LLVM chooses; everything
around the loop remains TIR.

A *round* is ``unit`` chunks of every pixel. Activations are read at one common offset from a
pointer per pixel; after every ``stretch`` rounds the offset jumps to the next row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tvm import tirx

from resq_tvm.schedules.arm.runs import CHUNK
from resq_tvm.schedules.code import Code, Expr, cast, load

_TYPES = {"int8": "<16 x i8>", "int16": "<8 x i16>", "int32": "<4 x i32>"}
_SCRATCH = ("t", "window")

Lines = list[str]


@dataclass(frozen=True)
class Loop:
    """The rounds of a scheme, in assembly with named operands such as ``{acc0}`` and ``{w}``.

    Attributes
    ----------
    start : list of str
        Loads what the first round needs.
    rounds : tuple of list of str
        Rounds that load what the next one needs, in turn: the next of the last is the first.
    last : tuple of list of str
        The same rounds without these loads.
    free : int
        Vector registers, from v31 downwards, that the loop uses besides the accumulators.
    unit : int
        Chunks of a round.
    walks : bool
        Whether the pixels' pointers move, rather than a common offset.
    counts : bool
        Whether rounds that load count themselves, and leave the flags as they are from there on.
    aside : tuple of list of str
        What rounds branch to now and then: out of the way of those that do not.
    """

    start: Lines
    rounds: tuple[Lines, ...]
    last: tuple[Lines, ...]
    free: int
    unit: int = 1
    walks: bool = False
    counts: bool = False
    aside: tuple[Lines, ...] = ()


def register(number: int) -> str:
    """Return the name of the loop's own vector register ``number``, from v31 downwards."""
    return f"v{31 - number}"


def load_pixel(target: str, pixel: int, chunk: int = 0) -> str:
    """Return the load of a pixel's chunk of the round at the current offset."""
    if chunk:
        return f"ldr q{target[1:]}, [{{p{pixel}x{chunk}}}, {{off}}]"
    return f"ldr q{target[1:]}, [{{p{pixel}}}, {{off}}]"


def load_weight(target: str) -> str:
    """Return the load of the next vector of weights."""
    return f"ldr q{target[1:]}, [{{w}}], #{CHUNK}"


STEP = [
    "subs {left}, {left}, #1",
    "csel {t}, {jump}, {step}, eq",
    "csel {left}, {stretch}, {left}, eq",
]  # how far the next round's operands lie
MOVE = "add {off}, {off}, {t}"  # behind the last load of a round


def weave(products: Lines, others: Lines, first: int = 0, until: int | None = None) -> Lines:
    """Spread other instructions evenly between products ``first`` and ``until``, in order."""
    last = len(products) if until is None else until
    places: dict[int, Lines] = {}
    for i, line in enumerate(others):
        places.setdefault(first + i * (last - first) // max(1, len(others)), []).append(line)
    woven: Lines = []
    for i, product in enumerate(products):
        woven += [product, *places.get(i, [])]
    return woven


def shifted(loop: Loop, shift: int) -> Loop:
    """Return a loop that shifts activations right as they come.

    As late as possible after the load, which takes a while, and before what follows it reads them.
    """
    if not shift:
        return loop

    def changed(lines: Lines) -> Lines:
        found: Lines = []
        waiting: list[str] = []  # registers that are still to be shifted, oldest first
        for line in lines:
            used = [r for r in waiting if re.search(rf"\b{r}\b", line)]
            found += [_shift(r, shift) for r in used]
            waiting = [r for r in waiting if r not in used]
            found.append(line)
            if (
                pixel := re.fullmatch(r"ldr q(\d+), \[\{p\d+(?:x\d+)?\}, \{off\}\]", line)
            ) is not None:
                waiting.append(f"v{pixel[1]}")
        return found + [_shift(r, shift) for r in waiting]

    return replace(
        loop,
        start=changed(loop.start),
        rounds=tuple(map(changed, loop.rounds)),
        last=tuple(map(changed, loop.last)),
    )


def _shift(name: str, shift: int) -> str:
    return f"sshr {name}.16b, {name}.16b, #{shift}"


def _text(loop: Loop) -> Lines:
    """Return the whole loop: rounds take turns, and the last one loads nothing."""
    lines = [*loop.start, "subs {rounds}, {rounds}, #1", "b.eq 20f", "1:"]
    turns = len(loop.rounds)
    for i, body in enumerate(loop.rounds):
        end = "b.ne 1b" if i == turns - 1 else f"b.eq {20 + i + 1}f"
        lines += [*body, *([] if loop.counts else ["subs {rounds}, {rounds}, #1"]), end]
    for i, body in enumerate(loop.last):
        lines += [f"{20 + i}:", *body]
        if i < turns - 1 or loop.aside:
            lines.append("b 40f")
    return [*lines, *(line for part in loop.aside for line in part), "40:"]


@dataclass(frozen=True)
class Routine:
    """A loop as an LLVM function that is always inlined.

    Attributes
    ----------
    name : str
        Tells routines of different code apart.
    source : str
        LLVM IR.
    """

    name: str
    source: str = field(repr=False)


def routine(loop: Loop, accumulators: Sequence[str], pixels: int) -> Routine:
    """Return the LLVM function of a loop.

    Parameters
    ----------
    loop : Loop
    accumulators : sequence of str
        The lanes' dtype of each: ``"int8"``, ``"int16"`` or ``"int32"``.
    pixels : int
    """
    kinds = [_TYPES[a] for a in accumulators]
    count = len(kinds)
    pointers = [f"p{m}" for m in range(pixels)]
    pointers += [f"p{m}x{u}" for u in range(1, loop.unit) for m in range(pixels)]
    # What moves, by the order of the LLVM function's parameters: pointers, then numbers.
    counters = ["rounds", "left"] if loop.walks else ["rounds", "off", "left"]
    constants = ["stretch", "jump"] if loop.walks else ["stretch", "step", "jump"]
    addresses = ["w", *(pointers if loop.walks else [])]
    moving = [*addresses, *counters]
    fixed = [*([] if loop.walks else pointers), *constants]
    outputs = [*(f"acc{i}" for i in range(count)), *moving]
    names = {name: f"${i}" for i, name in enumerate([*outputs, *_SCRATCH])}
    for i, name in enumerate(fixed):
        names[name] = f"${2 * len(outputs) + len(_SCRATCH) + i}"
    text = "\\0A".join(line.format(**names) for line in _text(loop))
    # Early clobbers: equal inputs, such as a counter and its start value, must not share one.
    constraints = ["=&w"] * count + ["=&r"] * (len(moving) + len(_SCRATCH))
    constraints += [str(i) for i in range(len(outputs))] + ["r"] * len(fixed)
    constraints += [f"~{{{register(i)}}}" for i in range(loop.free)] + ["~{nzcv}", "~{memory}"]
    result = "{" + ", ".join([*kinds, *["i64"] * (len(moving) + len(_SCRATCH))]) + "}"
    arguments = [f"ptr %acc{i}" for i in range(count)] + [f"ptr %{p}" for p in ("w", *pointers)]
    arguments += [f"i64 %{n}" for n in (*counters, *constants)]
    body = [f"  %v{i} = load {kind}, ptr %acc{i}" for i, kind in enumerate(kinds)]
    body += [f"  %i_{p} = ptrtoint ptr %{p} to i64" for p in addresses]
    given = [f"{kind} %v{i}" for i, kind in enumerate(kinds)]
    given += [f"i64 %i_{p}" for p in addresses] + [f"i64 %{n}" for n in counters]
    given += [f"{'i64' if n in constants else 'ptr'} %{n}" for n in fixed]
    listed = ",".join(constraints)
    body.append(f'  %r = call {result} asm sideeffect "{text}", "{listed}"({", ".join(given)})')
    for i, kind in enumerate(kinds):
        body.append(f"  %o{i} = extractvalue {result} %r, {i}")
        body.append(f"  store {kind} %o{i}, ptr %acc{i}")
    lines = [f"({', '.join(arguments)}) {{", *body, "  ret void", "}", ""]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    name = f"resq_loop_{digest}"
    return Routine(name, f"; ModuleID = '{name}'\ndefine void @{name}" + "\n".join(lines))


def call(
    code: Code,
    made: Routine,
    accumulators: Sequence[Any],
    weights: Expr,
    pixels: Sequence[Expr],
    numbers: Sequence[Expr],
) -> None:
    """Emit a call of a routine.

    Parameters
    ----------
    accumulators : sequence of buffers
    weights, pixels
        Loads of one element each, where the operands begin; of rounds of several chunks the
        pixels of the first chunk, then those of the second.
    numbers : sequence
        Rounds, offset in bytes, rounds until the first jump, rounds between jumps; bytes of a
        round, and of one behind which the next row begins. Where pointers walk: rounds, rounds
        until the first jump, rounds between jumps, bytes from the last one loaded to the next row.
    """
    code.require(made.source)
    arguments = [tirx.op.address_of(load(acc, [0], 1)) for acc in accumulators]
    arguments += [tirx.op.address_of(one) for one in (weights, *pixels)]
    for number in numbers:
        is_number = isinstance(number, int)
        arguments.append(tirx.const(number, "int64") if is_number else cast(number, "int64", 1))
    code.run(tirx.call_extern("void", made.name, *arguments))

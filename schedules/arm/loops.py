"""The in-order loops of the schemes (`resq_tvm.schedules.arm.assembly` says what a loop is).

Cortex-A53 and A55 start one 128-bit vector operation per cycle, besides one load of 16 bytes in two
cycles. Products of one scheme come in groups of four, the latency of a multiplication.
"""

from __future__ import annotations

from collections.abc import Callable

from resq_tvm.schedules.arm.assembly import (
    MOVE,
    STEP,
    Lines,
    Loop,
    load_pixel,
    load_weight,
    register,
    weave,
)
from resq_tvm.schedules.arm.depth import Window

PIXELS = 4
_ENDLESS = 65535  # rounds
_OUTPUTS = 4


def _acc(m: int, n: int, outputs: int = _OUTPUTS) -> str:
    return f"{{acc{m * outputs + n}}}"


def deep(_window: Window) -> Loop:
    """``mla`` of 4 × 4: two sets of all operands take turns."""
    sets = [[register(s * 8 + i) for i in range(8)] for s in range(2)]

    def loads(s: int) -> Lines:
        pixels = [load_pixel(sets[s][m], m) for m in range(PIXELS)]
        weights = [load_weight(sets[s][PIXELS + n]) for n in range(_OUTPUTS)]
        return [pixels[0], weights[0], *pixels[1:], *weights[1:]]

    def products(s: int) -> Lines:
        return [
            f"mla {_acc(m, n)}.16b, {sets[s][m]}.16b, {sets[s][PIXELS + n]}.16b"
            for n in range(_OUTPUTS)
            for m in range(PIXELS)
        ]

    def body(s: int) -> Lines:
        both: Lines = []  # a load every second product
        for i, line in enumerate(loads(1 - s)):
            both += [line, STEP[i] if i < len(STEP) else ""]
        return [line for line in weave(products(s), both) if line] + [MOVE]

    return Loop([*loads(0), *STEP, MOVE], (body(0), body(1)), (products(0), products(1)), 16)


def _streamed(products: Callable[[list[str], str, int], Lines], own: int) -> Loop:
    """Two sets of activations take turns; two registers of weights, one ahead of the other."""
    sets = [[register(own + s * PIXELS + m) for m in range(PIXELS)] for s in range(2)]
    weights = [register(own + 2 * PIXELS + i) for i in range(2)]

    def pixels(s: int) -> Lines:
        return [load_pixel(sets[s][m], m) for m in range(PIXELS)]

    def body(s: int, more: bool) -> Lines:
        lines: Lines = []
        others = [*STEP, *pixels(1 - s), MOVE] if more else []
        share = -(-len(others) // _OUTPUTS)
        for n in range(_OUTPUTS):
            part = others[n * share : (n + 1) * share]
            if more or n + 1 < _OUTPUTS:
                part = [load_weight(weights[(n + 1) % 2]), *part]
            lines += weave(products(sets[s], weights[n % 2], n), part)
        return lines

    start = [*pixels(0), load_weight(weights[0]), *STEP, MOVE]
    rounds = (body(0, True), body(1, True))
    return Loop(start, rounds, (body(0, False), body(1, False)), own + 2 * PIXELS + 2)


def smull(_window: Window) -> Loop:
    """``smull``, ``smlal2``, ``sadalp`` of 4 × 4 through four temporaries."""
    temporaries = [register(m) for m in range(PIXELS)]

    def products(a: list[str], w: str, n: int) -> Lines:
        pairs = list(zip(temporaries, a, strict=True))
        return [
            *(f"smull {t}.8h, {x}.8b, {w}.8b" for t, x in pairs),
            *(f"smlal2 {t}.8h, {x}.16b, {w}.16b" for t, x in pairs),
            *(f"sadalp {_acc(m, n)}.4s, {t}.8h" for m, t in enumerate(temporaries)),
        ]

    return _streamed(products, PIXELS)


def smlal(_window: Window) -> Loop:
    """``smlal``, ``smlal2`` of 4 × 4."""

    def products(a: list[str], w: str, n: int) -> Lines:
        return [
            *(f"smlal {_acc(m, n)}.8h, {x}.8b, {w}.8b" for m, x in enumerate(a)),
            *(f"smlal2 {_acc(m, n)}.8h, {x}.16b, {w}.16b" for m, x in enumerate(a)),
        ]

    return _streamed(products, 0)


def pairs(_window: Window) -> Loop:
    """``mul``, ``mla``, ``sadalp`` of 4 × 4: activations are replaced once they were used last."""
    temporaries = [register(m) for m in range(PIXELS)]
    first, second = ([register(4 + 4 * u + m) for m in range(PIXELS)] for u in range(2))
    weights = [[register(12 + 2 * i + u) for u in range(2)] for i in range(2)]

    def load_pair(target: list[str]) -> Lines:
        # The second chunk's weights lie behind the four of the first.
        return [load_weight(target[0]), f"ldr q{target[1][1:]}, [{{w}}, #48]"]

    def pixel(chunk: int, m: int) -> str:
        return load_pixel((first, second)[chunk][m], m, chunk)

    def body(more: bool) -> Lines:
        lines: Lines = []
        for n in range(_OUTPUTS):
            w = weights[n % 2]
            muls, mlas = (
                [
                    f"{op} {t}.16b, {a}.16b, {w[u]}.16b"
                    for t, a in zip(temporaries, own, strict=True)
                ]
                for u, (op, own) in enumerate((("mul", first), ("mla", second)))
            )
            adds = [f"sadalp {_acc(m, n)}.8h, {t}.16b" for m, t in enumerate(temporaries)]
            ahead = load_pair(weights[(n + 1) % 2]) if n + 1 < _OUTPUTS else []
            if n == 0:  # the rest of this round's activations
                lines += weave(muls, [pixel(1, 2), pixel(1, 3)])
                lines += weave([*mlas, *adds], [MOVE, *ahead])
            elif n == 2:
                lines += weave([*muls, *mlas], ahead)
                upcoming = ["add {w}, {w}, #64", *load_pair(weights[0])] if more else []
                lines += weave(adds, upcoming)
            elif n == 3 and more:  # most of the next round's, each once it was used last
                lines += weave(muls, [pixel(0, 0), pixel(0, 1)], 1)
                lines += weave(mlas, [pixel(0, 2), pixel(0, 3), STEP[0]])
                lines += weave(adds, [pixel(1, 0), STEP[1], pixel(1, 1), STEP[2]])
            else:
                lines += weave([*muls, *mlas, *adds], ahead)
        return lines

    start = [pixel(0, m) for m in range(PIXELS)] + [pixel(1, 0), pixel(1, 1)]
    return Loop([*start, *load_pair(weights[0]), *STEP], (body(True),), (body(False),), 16, unit=2)


def nibble(window: Window) -> Loop:
    """``mla`` of 4 × 2, separated after every window and at the end.

    There are accumulators of products, of low and of high nibbles, 8 each.
    """
    vectors = 2
    size = window.chunks if window.level == "chunks" else _ENDLESS
    pixels = [register(m) for m in range(PIXELS)]
    sets = [[register(PIXELS + s * vectors + v) for v in range(vectors)] for s in range(2)]
    count = PIXELS * vectors
    joined, low, high = ([f"{{acc{k * count + i}}}" for i in range(count)] for k in range(3))

    def body(s: int, more: bool) -> Lines:
        weights = [load_weight(w) for w in sets[1 - s]] if more else []
        lines: Lines = []
        for m in range(PIXELS):
            lines += [
                f"mla {joined[m * vectors + v]}.16b, {pixels[m]}.16b, {sets[s][v]}.16b"
                for v in range(vectors)
            ]
            if more:
                lines.append(load_pixel(pixels[m], m))
                lines += weights[m : m + 1] + STEP[m : m + 1]
        if more:
            lines += [MOVE, "subs {window}, {window}, #1", f"b.eq {30 + s}f", f"{3 + s}:"]
        else:
            lines += separate
        return lines

    separate = [
        *(f"srsra {h}.16b, {a}.16b, #4" for h, a in zip(high, joined, strict=True)),
        *(f"shl {a}.16b, {a}.16b, #4" for a in joined),
        *(f"ssra {b}.16b, {a}.16b, #4" for b, a in zip(low, joined, strict=True)),
        *(f"movi {a}.16b, #0" for a in joined),
    ]
    start = [load_pixel(pixels[m], m) for m in range(PIXELS)]
    start += [load_weight(w) for w in sets[0]]
    start += [*STEP, MOVE, f"mov {{window}}, #{size}"]
    aside = tuple(
        [f"{30 + s}:", *separate, f"mov {{window}}, #{size}", f"b {3 + s}b"] for s in range(2)
    )
    last = (body(0, False), body(1, False))
    return Loop(start, (body(0, True), body(1, True)), last, 8, aside=aside)


LOOPS: dict[str, Callable[[Window], Loop]] = {
    "deep": deep,
    "smull": smull,
    "smlal": smlal,
    "pairs": pairs,
    "nibble": nibble,
}

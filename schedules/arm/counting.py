"""Loops that count the bits in which ternary weights and activations agree or differ.

Both take four pixels by 16 outputs, and per step one byte of either bit plane: 512 products.

*Selects*, six instructions for 128 products. A ternary code is half the sum of two signs, which
agree unless it is zero: one is −1 where it is negative, the other 1 where it is positive. A
weight's product with a sign is the weight's magnitude, less 2 where they differ, so that products
sum to ``Σ|w| − cnt(differ₁) − cnt(differ₂)``. With ``n`` and ``p`` the bits of what is negative and
positive, a weight differs from the first sign where ``n_a ? p_w : n_w`` and from the second where
``p_a ? n_w : p_w``: one select each, which overwrites the activations' bits. Both counts go to one
accumulator, widened every 14 steps (14 · 16 < 256).

*Masks*, seven instructions, but cheaper ones where a select of 128 bits takes two operations. With
``m`` the bits of what is not zero and ``s`` of what is negative, products sum to
``cnt(z) − 2·cnt(z & t)``, ``z = m_a & m_w``, ``t = s_a ^ s_w``. The counts have accumulators of
their own, widened every 30 steps (30 · 8 < 256).

Reference: Arm Architecture Reference Manual, AND, BSL, CNT, EOR, UADDW and USUBW (vector).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from resq_tvm.schedules.arm.assembly import Lines, Loop, load_weight, register, weave

PIXELS = 4  # of a tile
_SELECT_WINDOW = 7  # pairs of steps of at most 16 per byte
_MASK_WINDOW = 15  # pairs of steps of at most 8 per byte


@dataclass(frozen=True)
class Counting:
    """A way to sum ternary products from bit planes.

    Attributes
    ----------
    positive : bool
        Whether the second plane tells what is positive, rather than what is not zero; the first
        tells what is negative.
    counts : int
        Accumulators of bytes; twice `PIXELS` of int16 follow them, two per pixel.
    from_magnitude : bool
        Whether sums start from ``Σ|w|`` of each output, rather than from zero.
    loop : callable
        Makes the loop.
    """

    positive: bool
    counts: int
    from_magnitude: bool
    loop: Callable[[], Loop]


# How far a pointer goes behind the second plane: where a row ends, to the next one.
_STEP = [
    "subs {left}, {left}, #1",
    "csinc {t}, {jump}, xzr, eq",
    "csel {left}, {stretch}, {left}, eq",
]


def _load_plane(target: str, pixel: int, plane: int) -> str:
    return f"ld1r {{{{{target}.16b}}}}, [{{p{pixel}}}], {'{t}' if plane else '#1'}"


def _select_loop() -> Loop:
    # Every other register belongs to the second plane of a pixel.
    bits = [register(i) for i in range(2 * PIXELS)]
    weights = [register(2 * PIXELS + i) for i in range(2)]
    negative, positive = (f"{w}.16b" for w in weights)
    other = [(positive, negative), (negative, positive)]
    select = [f"bsl {b}.16b, {', '.join(other[i % 2])}" for i, b in enumerate(bits)]
    count = [f"cnt {b}.16b, {b}.16b" for b in bits]
    # First planes first: an accumulator is not read right after it was written.
    order = [*range(0, 2 * PIXELS, 2), *range(1, 2 * PIXELS, 2)]
    add = [f"add {{acc{i // 2}}}.16b, {{acc{i // 2}}}.16b, {bits[i]}.16b" for i in order]
    ahead = 4  # selects of the next round, for its branch to go along with

    def body(turn: int, more: bool) -> Lines:
        if not more:
            return [*select[ahead:], *count, *add, *widen]
        # Every other round counts: windows are whole pairs of rounds.
        others = [*(load_weight(w) for w in weights), *_STEP, "subs {rounds}, {rounds}, #1"]
        others += ["sub {window}, {window}, #1"] if turn else []
        flush = ["cbz {window}, 30f", "3:"] if turn else []
        loads = [_load_plane(bits[i], i // 2, i % 2) for i in order]
        return [
            *select[ahead:],
            *weave(count, others),
            *weave(add, loads),
            select[0],
            *flush,
            *select[1:ahead],
        ]

    widen: Lines = []
    for half, (suffix, lanes) in enumerate((("", "8b"), ("2", "16b"))):
        for m in range(PIXELS):
            wide = f"{{acc{PIXELS + 2 * m + half}}}.8h"
            widen.append(f"usubw{suffix} {wide}, {wide}, {{acc{m}}}.{lanes}")
    widen += [f"movi {{acc{m}}}.16b, #0" for m in range(PIXELS)]
    start = [*_STEP, *(_load_plane(bits[i], i // 2, i % 2) for i in range(2 * PIXELS))]
    start += [*(load_weight(w) for w in weights)]
    start += [f"mov {{window}}, #{_SELECT_WINDOW}", *select[:ahead]]
    turns = range(2)  # of the same code: fewer branches are taken
    rounds = tuple(body(turn, more=True) for turn in turns)
    last = tuple(body(turn, more=False) for turn in turns)
    aside = ["30:", *widen, f"mov {{window}}, #{_SELECT_WINDOW}", "b 3b"]
    used = 2 * PIXELS + 2
    return Loop(start, rounds, last, used, walks=True, counts=True, aside=(aside,))


def _mask_loop() -> Loop:
    masks = [register(m) for m in range(PIXELS)]
    signs = [register(PIXELS + m) for m in range(PIXELS)]
    weight_mask, weight_sign = register(8), register(9)
    both, differ = ([register(10 + 2 * k + i) for i in range(2)] for k in range(2))

    def load_pixel(m: int) -> Lines:
        return [_load_plane(signs[m], m, 0), _load_plane(masks[m], m, 1)]

    def body(turn: int, more: bool) -> Lines:
        lines: Lines = []
        for pair in ((0, 1), (2, 3)):
            z, t = both, differ
            stages = (
                [f"and {z[i]}.16b, {masks[m]}.16b, {weight_mask}.16b" for i, m in enumerate(pair)],
                [f"eor {t[i]}.16b, {signs[m]}.16b, {weight_sign}.16b" for i, m in enumerate(pair)],
                [f"and {t[i]}.16b, {z[i]}.16b, {t[i]}.16b" for i in range(2)],
                [f"cnt {x}.16b, {x}.16b" for x in (*z, *t)],
                [f"add {{acc{m}}}.16b, {{acc{m}}}.16b, {z[i]}.16b" for i, m in enumerate(pair)],
                [
                    f"add {{acc{4 + m}}}.16b, {{acc{4 + m}}}.16b, {t[i]}.16b"
                    for i, m in enumerate(pair)
                ],
            )
            products = [line for stage in stages for line in stage]
            others: Lines = []
            if more:
                if pair[0]:  # the weights were used last
                    others += [load_weight(weight_sign), load_weight(weight_mask)]
                for m in pair:
                    others += load_pixel(m)
            if more and not pair[0]:
                products = weave(products[:4], _STEP) + products[4:]
            lines += weave(products, others, len(products) - 10)
        if more:
            # Every other round counts: windows are whole pairs of rounds.
            return lines + (["subs {window}, {window}, #1", "b.eq 30f", "3:"] if turn else [])
        return lines + widen

    widen: Lines = []
    for op, first, times in (("uaddw", 0, 1), ("usubw", 4, 2)):
        for _ in range(times):
            for half, (suffix, lanes) in enumerate((("", "8b"), ("2", "16b"))):
                for m in range(PIXELS):
                    wide = f"{{acc{8 + 2 * m + half}}}.8h"
                    widen.append(f"{op}{suffix} {wide}, {wide}, {{acc{first + m}}}.{lanes}")
    widen += [f"movi {{acc{i}}}.16b, #0" for i in range(8)]
    start = [*_STEP, *(line for m in range(PIXELS) for line in load_pixel(m))]
    start += [load_weight(weight_sign), load_weight(weight_mask)]
    start.append(f"mov {{window}}, #{_MASK_WINDOW}")
    turns = range(2)  # of the same code: fewer branches are taken
    rounds = tuple(body(turn, more=True) for turn in turns)
    last = tuple(body(turn, more=False) for turn in turns)
    aside = ["30:", *widen, f"mov {{window}}, #{_MASK_WINDOW}", "b 3b"]
    return Loop(start, rounds, last, 14, walks=True, aside=(aside,))


SELECTS = Counting(True, PIXELS, True, _select_loop)
MASKS = Counting(False, 2 * PIXELS, False, _mask_loop)

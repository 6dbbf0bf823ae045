"""Quantization schemes: ``W8A8->W4A4``, ``W8A8->W8A{0,4,8}``, ``W8A4``, overrides. Leaf module.

The grammar is ``W<b>A<b>`` for keyframes, optionally ``->W<b>A<b>`` for residual frames, with
2 to 8 bits each. Without an arrow every frame is computed on its own (frame quantization).
A keyframe's activations may have up to 16 bits: two codes, of the value and of what its rounding
leaves (`split`).
A residual's activations may be a pool, ``A{0,4,8}``: every pixel gets the fewest bits of the pool
that do (Dynamic-ResQ, eq. 9 to 11), 0 bits drop it.
``float`` as a layer's precision keeps that layer in float32 in both programs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from resq_tvm.errors import SchemeError

MIN_BITS = 2
MAX_BITS = 8  # of one code
MAX_KEY_BITS = 16  # of a keyframe's activation, which may have two codes

_BITS = re.compile(r"W(\d+)A(\d+|\{[^{}]*\})", re.IGNORECASE)


def code_limit(bits: int) -> int:
    """Return the largest code of a symmetric ``bits``-bit quantizer, ``2**(bits-1) - 1``."""
    return (1 << (bits - 1)) - 1


def split(bits: int, scale: float) -> tuple[tuple[int, float], ...]:
    """Return bits and scale of each code of an activation quantizer.

    Up to 8 bits are one code. More are two: one of 8 bits over the same range, and one of the
    other bits over what rounding to the first leaves, at most half of its scale.
    """
    if bits <= MAX_BITS:
        return ((bits, scale),)
    coarse = np.float32(np.float32(scale) * code_limit(bits) / code_limit(MAX_BITS))
    rest = bits - MAX_BITS
    return (MAX_BITS, float(coarse)), (rest, float(np.float32(coarse / (2 * code_limit(rest)))))


@dataclass(frozen=True)
class Bits:
    """Weight and activation bits of one program, e.g. ``W8A4``, ``W8A16`` or ``W8A{0,4,8}``.

    ``activation`` is the most bits that an activation gets; ``pool`` holds all choices in ascending
    order, and is empty where there is no choice.
    """

    weight: int
    activation: int
    pool: tuple[int, ...] = ()

    def __str__(self) -> str:
        choices = "{" + ",".join(map(str, self.pool)) + "}" if self.pool else str(self.activation)
        return f"W{self.weight}A{choices}"

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Parse ``W<b>A<b>`` or ``W<b>A{<b>,<b>,…}``; raise `SchemeError` for bits that are none.

        Bits are 2 to 8, of an activation without a pool also 10 to 16; in a pool also 0, and a
        pool's are ascending and at least two.
        """
        match = _BITS.fullmatch(text.strip())
        if match is None:
            raise SchemeError(
                f"precision {text!r} is not of the form W<bits>A<bits>; write for example W8A4 "
                "or W8A{0,4,8}"
            )
        weight = int(match[1])
        pool: tuple[int, ...] = ()
        if match[2].startswith("{"):
            pool = _parse_pool(text, match[2])
        activation = pool[-1] if pool else int(match[2])
        _check(text, "weight", weight)
        for bits in [b for b in pool if b] or [activation]:
            _check(text, "activation", bits, wide=not pool)
        return cls(weight, activation, pool)


def _check(text: str, name: str, bits: int, wide: bool = False) -> None:
    """Raise `SchemeError` for a number of bits that is none; ``wide``: two codes may have it."""
    if MIN_BITS <= bits <= MAX_BITS or (wide and MAX_BITS + MIN_BITS <= bits <= MAX_KEY_BITS):
        return
    more = f", or {MAX_BITS + MIN_BITS} to {MAX_KEY_BITS} on keyframes" if wide else ""
    raise SchemeError(
        f"precision {text!r} has {bits} {name} bits; use {MIN_BITS} to {MAX_BITS} bits{more}"
    )


def _parse_pool(text: str, braces: str) -> tuple[int, ...]:
    try:
        pool = tuple(int(part) for part in braces[1:-1].split(","))
    except ValueError:
        pool = ()
    if len(pool) < 2 or sorted(set(pool)) != list(pool):
        raise SchemeError(
            f"precision {text!r} has a malformed pool; write two or more ascending numbers, "
            "for example W8A{0,4,8}"
        )
    return pool


@dataclass(frozen=True)
class Scheme:
    """Keyframe precision and, unless frames are computed on their own, residual precision."""

    key: Bits
    residual: Bits | None = None

    def __str__(self) -> str:
        return str(self.key) if self.residual is None else f"{self.key}->{self.residual}"

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Parse ``W8A8->W4A4`` or ``W8A4``.

        Raises
        ------
        SchemeError
            If the text does not follow the grammar.
        """
        parts = text.split("->")
        if not 1 <= len(parts) <= 2 or not all(p.strip() for p in parts):
            raise SchemeError(
                f"scheme {text!r} is malformed; write KEY->RESIDUAL such as W8A8->W4A4, "
                "or one precision such as W8A4 for frame quantization"
            )
        try:
            bits = [Bits.parse(p) for p in parts]
        except SchemeError as error:
            raise SchemeError(f"scheme {text!r}: {error}") from None
        if bits[0].pool:
            raise SchemeError(
                f"scheme {text!r}: a pool of bits is for residual frames; "
                f"write for example W8A8->{bits[0]}"
            )
        if len(bits) == 2 and bits[1].activation > MAX_BITS:
            raise SchemeError(
                f"scheme {text!r}: more than {MAX_BITS} activation bits are for keyframes; "
                f"write for example {bits[0]}->W{bits[1].weight}A{MAX_BITS}"
            )
        return cls(bits[0], bits[1] if len(bits) == 2 else None)

    @property
    def dynamic(self) -> bool:
        """Whether residual activations choose their bits pixel by pixel."""
        return self.residual is not None and bool(self.residual.pool)


@dataclass(frozen=True)
class PrecisionPlan:
    """How every linear layer gets its precision.

    Overrides come first, then the first/last rule, then the scheme.

    Parameters
    ----------
    scheme : Scheme
        The precision of all layers that nothing else names.
    overrides : mapping of str to str
        Shell pattern over layer names → a scheme string or ``"float"``; the first match wins.
    first_last : str or None
        Scheme (or ``"float"``) of the first and the last linear layers (those that read the
        network's input or whose output reaches a network output without another linear layer).
    """

    scheme: Scheme
    overrides: Mapping[str, str] = field(default_factory=dict)
    first_last: str | None = None

    def resolve(self, layers: Sequence[str], edge_layers: frozenset[str]) -> dict[str, str]:
        """Return layer name → scheme string or ``"float"``.

        Raises
        ------
        SchemeError
            If an override names no layer, or mixes frame and residual quantization.
        """
        for pattern in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise SchemeError(
                    f"override {pattern!r} matches no layer; layers are {', '.join(layers)}"
                )
        resolved = {}
        for name in layers:
            text = next((s for p, s in self.overrides.items() if fnmatchcase(name, p)), None)
            if text is None and self.first_last is not None and name in edge_layers:
                text = self.first_last
            resolved[name] = "float" if text == "float" else str(self._checked(name, text))
        return resolved

    def _checked(self, name: str, text: str | None) -> Scheme:
        if text is None:
            return self.scheme
        scheme = Scheme.parse(text)
        if (scheme.residual is None) != (self.scheme.residual is None):
            raise SchemeError(
                f"layer {name}: override {text!r} and scheme '{self.scheme}' differ in kind; "
                "give both with -> or both without"
            )
        return scheme

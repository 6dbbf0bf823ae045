"""Quantization schemes: ``W8A8->W4A4``, ``W8A4``, per-layer overrides. Leaf module.

The grammar is ``W<b>A<b>`` for keyframes, optionally ``->W<b>A<b>`` for residual frames, with
2 to 8 bits each. Without an arrow every frame is computed on its own (frame quantization).
``float`` as a layer's precision keeps that layer in float32 in both programs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from resq_tvm.errors import SchemeError

MIN_BITS = 2
MAX_BITS = 8

_BITS = re.compile(r"W(\d+)A(\d+)", re.IGNORECASE)


def code_limit(bits: int) -> int:
    """Return the largest code of a symmetric ``bits``-bit quantizer, ``2**(bits-1) - 1``."""
    return (1 << (bits - 1)) - 1


@dataclass(frozen=True)
class Bits:
    """Weight and activation bits of one program, e.g. ``W8A4``."""

    weight: int
    activation: int

    def __str__(self) -> str:
        return f"W{self.weight}A{self.activation}"

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Parse ``W<b>A<b>``; raise `SchemeError` outside 2..8 bits."""
        match = _BITS.fullmatch(text.strip())
        if match is None:
            raise SchemeError(
                f"precision {text!r} is not of the form W<bits>A<bits>; write for example W8A4"
            )
        weight, activation = int(match[1]), int(match[2])
        for name, bits in (("weight", weight), ("activation", activation)):
            if not MIN_BITS <= bits <= MAX_BITS:
                raise SchemeError(
                    f"precision {text!r} has {bits} {name} bits; use {MIN_BITS} to {MAX_BITS} bits"
                )
        return cls(weight, activation)


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
        return cls(bits[0], bits[1] if len(bits) == 2 else None)


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

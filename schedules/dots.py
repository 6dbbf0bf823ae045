"""How an instruction set multiplies codes by weights: packing, loads, and the dot product.

A `Dot` reduces ``group`` consecutive channels of one pixel into 16 int32 accumulators. ``pieces``
is in how many parts an instruction set cuts the 16 accumulators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from resq_tvm.schedules.code import Code, Expr, cast, constant, intrinsic, load, reinterpret, splat
from resq_tvm.targets.preset import Target


@dataclass(frozen=True)
class Dot:
    """Plain TIR: two channels at a time, summed in int16.

    The meaning of all: ``acc[i] += Σ_g code[g] · weight[i][g]``, where VNNI takes the stored value
    for the code. Codes and weights are symmetric (|v| <= 127): two products are at most 32258.
    ``planar`` packs weights ``[g][i]`` instead of ``[i][g]``.
    """

    group: int = 2
    pieces: int = 1
    planar: bool = True

    def activation(self, code: Code, buffer: Any, index: list[Expr]) -> Any:
        """Load ``group`` channels of one pixel, prepared for `multiply`."""
        *pixel, c = index
        return [
            code.bind(splat(cast(load(buffer, [*pixel, c + g], 1), "int16", 1), 16), "a")
            for g in range(self.group)
        ]

    def weight(self, code: Code, buffer: Any, index: list[Expr], piece: int) -> Any:
        """Load the weights of one piece of a vector, prepared for `multiply`."""
        return [
            code.bind(cast(load(buffer, [*index, 16 * g], 16), "int16", 16), "w")
            for g in range(self.group)
        ]

    def multiply(self, code: Code, acc: Expr, activation: Any, weight: Any) -> Expr:
        """Return the accumulators plus the products."""
        first, second = (a * w for a, w in zip(activation, weight, strict=True))
        return acc + cast(first + second, "int32", 16)


@dataclass(frozen=True)
class VnniDot(Dot):
    """AVX-512 VNNI: ``vpdpbusd``, unsigned codes by signed weights, four channels at a time.

    LLVM 22's ``llvm.x86.avx512.vpdpbusd.512`` takes (<16 x i32>, <64 x i8>, <64 x i8>).
    """

    group: int = 4
    planar: bool = False

    def activation(self, code: Code, buffer: Any, index: list[Expr]) -> Any:
        """Broadcast four bytes to all 32-bit lanes."""
        four = reinterpret(load(buffer, index, 4), "int32", 1)
        return code.bind(reinterpret(splat(four, 16), "int8", 64), "a")

    def weight(self, code: Code, buffer: Any, index: list[Expr], piece: int) -> Any:
        """Load 16 outputs × 4 channels."""
        return code.bind(load(buffer, [*index, 0], 64), "w")

    def multiply(self, code: Code, acc: Expr, activation: Any, weight: Any) -> Expr:
        """``vpdpbusd``."""
        return intrinsic("llvm.x86.avx512.vpdpbusd.512", "int32", 16, acc, activation, weight)


@dataclass(frozen=True)
class Avx2Dot(Dot):
    """AVX2: ``vpmaddubsw`` on |code| and sign(code) · weight, four channels at a time.

    Codes and weights are symmetric (|v| <= 127), so two products are at most 32258 and the
    instruction's saturation never happens.
    """

    group: int = 4
    pieces: int = 2
    planar: bool = False

    def activation(self, code: Code, buffer: Any, index: list[Expr]) -> Any:
        """Broadcast four bytes; both they and their magnitudes are needed."""
        four = reinterpret(load(buffer, index, 4), "int32", 1)
        signed = code.bind(reinterpret(splat(four, 8), "int8", 32), "a")
        magnitude = intrinsic("llvm.abs", "int8", 32, signed, tirx.const(False, "bool"))
        return signed, code.bind(magnitude, "m")

    def weight(self, code: Code, buffer: Any, index: list[Expr], piece: int) -> Any:
        """Load 8 outputs × 4 channels."""
        return code.bind(load(buffer, [*index, 32 * piece], 32), "w")

    def multiply(self, code: Code, acc: Expr, activation: Any, weight: Any) -> Expr:
        """``vpsignb``, ``vpmaddubsw``, ``vpmaddwd`` by ones, ``vpaddd``."""
        signed, magnitude = activation
        flipped = intrinsic("llvm.x86.avx2.psign.b", "int8", 32, weight, signed)
        pairs = intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16", 16, magnitude, flipped)
        ones = constant(1, "int16", 16)
        return acc + intrinsic("llvm.x86.avx2.pmadd.wd", "int32", 8, pairs, ones)


def dot_for(target: Target) -> Dot:
    """Return the dot product of a target."""
    match target.isa:
        case "avx512-vnni":
            return VnniDot()
        case "avx2":
            return Avx2Dot()
    return Dot()

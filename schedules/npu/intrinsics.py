"""The tensor intrinsics of an NPU in TIR: what a kernel's PrimFunc calls.

A PrimFunc for an NPU consists of loops over tiles and of calls of these externs; nothing else
computes. Memory is named by a buffer's data variable and a byte offset: parameters lie in DRAM (or
stay in SRAM, where the planner put them), buffers of scope ``npu.sram`` and ``npu.acc`` are the
kernel's own. All other arguments are int32 expressions, in the order of the fields of
`resq_tvm.targets.npu.commands`, one intrinsic per command, and of products one per pair of bits.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

from resq_tvm.schedules.code import Expr, index_of

LOAD, STORE, VECTOR = "npu.load", "npu.store", "npu.vector"
FLAG = "npu.flag"  # of commands under a condition: a byte of SRAM that is not 0
MATRIX = "npu.matrix."
SRAM, ACCUMULATORS = "npu.sram", "npu.acc"
PROGRAMS = "npu.programs"  # function attribute: the kernel's vector programs, as JSON


def matrix_name(weight_bits: int, activation_bits: int) -> str:
    """Return the intrinsic of products of these bits, such as ``npu.matrix.w4a8``."""
    return f"{MATRIX}w{weight_bits}a{activation_bits}"


def call(name: str, *args: Any) -> Any:
    """Return a call of an intrinsic; Python numbers and texts become constants."""
    values = [tvm.ir.StringImm(a) if isinstance(a, str) else index_of(a) for a in args]
    return tirx.call_extern("int32", name, *values)


def flag(base: Any, offset: Expr) -> Any:
    """Return the condition that a byte of SRAM is not 0."""
    return tirx.call_extern("bool", FLAG, base, index_of(offset))


def least(a: Expr, b: Expr) -> Expr:
    """Return the smaller of two sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return tirx.Min(index_of(a), index_of(b))


def most(a: Expr, b: Expr) -> Expr:
    """Return the larger of two sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return tirx.Max(index_of(a), index_of(b))


def extent(tile: int, total: int, index: Expr) -> Expr:
    """Return the size of tile number ``index`` of those that ``total`` is cut into."""
    if isinstance(index, int) or total % tile:
        return least(tile, total - index * tile)
    return tile

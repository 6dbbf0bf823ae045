"""The value of a TIR expression, given those of the loop variables in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resq_tvm.errors import CompileError

Values = dict[Any, int]  # loop variable → value
Number = Callable[[Values], int]

_BINARY: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "FloorDiv": lambda a, b: a // b,
    "FloorMod": lambda a, b: a % b,
    # Signed division of sizes that are never negative.
    "Div": lambda a, b: a // b,
    "Mod": lambda a, b: a % b,
    "Min": min,
    "Max": max,
}


def number_of(expr: Any) -> Number:
    """Return a function from the values of loop variables to an expression's value."""
    kind = type(expr).__name__
    if kind == "IntImm":
        value = int(expr.value)
        return lambda _values: value
    if kind == "Var":
        return lambda values: values[expr]
    if kind in _BINARY:
        a, b, apply = number_of(expr.a), number_of(expr.b), _BINARY[kind]
        return lambda values: apply(a(values), b(values))
    raise CompileError(f"kernel for an NPU: no evaluation of {kind} {expr}")

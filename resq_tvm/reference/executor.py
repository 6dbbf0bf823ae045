"""Run a Relax function in PyTorch: the meaning that every compiled program is held against.

A function is planned once (attributes parsed, weights converted, last uses found); a call then
runs torch operators only. Values keep their Relax dtypes: codes are int8, accumulators int32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tvm import relax

from resq_tvm.errors import FrameError, UnsupportedOperatorError
from resq_tvm.passes.graph import inputs_of, is_const, op_name
from resq_tvm.reference import (
    ops_elementwise,
    ops_linear,
    ops_policy,
    ops_pool_resize,
    ops_shape,
)
from resq_tvm.reference.operands import TORCH_DTYPES, Builder, tensor

OPERATORS: dict[str, Builder] = {
    **ops_linear.TABLE,
    **ops_elementwise.TABLE,
    **ops_pool_resize.TABLE,
    **ops_shape.TABLE,
    **ops_policy.TABLE,
}
"""Relax operator → builder of its torch kernel."""

Observer = Callable[[str, torch.Tensor], None]
Value = Any  # a tensor, or nested tuples of tensors


@dataclass(frozen=True)
class _Step:
    """One binding: ``slots[out] = kernel(*slots[args])``, then forget ``dead``."""

    name: str
    kernel: Callable[..., Value]
    args: tuple[int, ...]
    out: int
    dead: tuple[int, ...]
    watched: bool


class Executor:
    """Interpreter of one Relax function: canonical ``main``, ``keyframe`` or ``residual``.

    Parameters
    ----------
    func : relax.Function
        A function without control flow and with static shapes.
    watch : collection of str, optional
        Names of the variables (parameters included) that ``observe`` is called for; None: all.
    observe : callable, optional
        Called with a variable's name and its tensor (NHWC, to be copied if kept and changed).
    gradient : str, optional
        ``"straight_through"``: calls are recorded by autograd, codes and accumulators stay
        float32, and rounding passes gradients unchanged within the clamp. None: no gradients.
    operators : mapping of str to Builder, optional
        Operators that mean something else here, e.g. a policy with thresholds that can be changed.

    Raises
    ------
    UnsupportedOperatorError
        If the function calls operators without a meaning here; every one is listed.
    """

    def __init__(
        self,
        func: Any,
        *,
        watch: Collection[str] | None = None,
        observe: Observer | None = None,
        gradient: str | None = None,
        operators: Mapping[str, Builder] | None = None,
    ) -> None:
        if gradient not in (None, "straight_through"):
            raise ValueError(f"gradient {gradient!r} is not known; use 'straight_through' or None")
        self._operators = {**OPERATORS, **(operators or {})}
        self._observe = observe
        self._differentiable = gradient is not None
        self._slots: dict[Any, int] = {}
        self._params = [(self._slot(p), p.name, p.ty) for p in func.params]
        self._steps = self._plan(func, None if watch is None else frozenset(watch))
        self._watched_params = [
            (slot, name)
            for slot, name, _ in self._params
            if observe is not None and (watch is None or name in watch)
        ]

    def __call__(self, *inputs: Value) -> Value:
        """Run the function.

        Parameters
        ----------
        *inputs : torch.Tensor or tuple
            One value per parameter, in the parameter's shape and dtype (NHWC for 4-D).

        Returns
        -------
        torch.Tensor or nested tuples
            As the function's body says. A value that is passed through is not copied.

        Raises
        ------
        FrameError
            If an input's number, shape or dtype is not the parameter's.
        """
        if len(inputs) != len(self._params):
            raise FrameError(f"{len(inputs)} inputs given; the function takes {len(self._params)}")
        slots: list[Value] = [None] * len(self._slots)
        for (index, name, ty), value in zip(self._params, inputs, strict=True):
            slots[index] = self._checked(name, ty, value)
        with torch.set_grad_enabled(self._differentiable and torch.is_grad_enabled()):
            if self._observe is not None:
                for index, name in self._watched_params:
                    self._observe(name, slots[index])
            for step in self._steps:
                value = step.kernel(*[slots[i] for i in step.args])
                slots[step.out] = value
                if step.watched and self._observe is not None:
                    self._observe(step.name, value)
                for index in step.dead:
                    slots[index] = None
            return self._result(slots)

    def _slot(self, key: Any) -> int:
        return self._slots.setdefault(key, len(self._slots))

    def _plan(self, func: Any, watch: frozenset[str] | None) -> tuple[_Step, ...]:
        bindings = [(b.var, b.value) for block in func.body.blocks for b in block.bindings]
        unknown = [
            (op_name(e) or "call of a function", v.name)
            for v, e in bindings
            if isinstance(e, relax.Call) and op_name(e) not in self._operators
        ]
        if unknown:
            raise UnsupportedOperatorError("reference executor", unknown)
        self._result = self._tree(func.body.body)
        kept = {self._slot(v) for v in inputs_of(func.body.body)}
        planned = []
        for var, expr in bindings:
            kernel, args = self._kernel(var, expr)
            planned.append((var.name, kernel, args, self._slot(var)))
        last_use = {slot: n for n, (_, _, args, out) in enumerate(planned) for slot in (out, *args)}
        dying: dict[int, list[int]] = {}
        for slot, n in last_use.items():
            if slot not in kept:
                dying.setdefault(n, []).append(slot)
        return tuple(
            _Step(name, kernel, args, out, tuple(dying.get(n, ())), watch is None or name in watch)
            for n, (name, kernel, args, out) in enumerate(planned)
        )

    def _kernel(self, var: Any, expr: Any) -> tuple[Callable[..., Value], tuple[int, ...]]:
        if isinstance(expr, relax.Call):
            try:
                build = self._operators[op_name(expr)]
                kernel: Callable[..., Value] = build(expr, self._differentiable)
            except ValueError as error:
                place = f"{var.name} ({error})"
                raise UnsupportedOperatorError(
                    "reference executor", [(op_name(expr), place)]
                ) from None
            return kernel, tuple(self._slot(v) for v in inputs_of(expr))
        if isinstance(expr, relax.TupleGetItem) and isinstance(expr.tuple_value, relax.Var):
            index = int(expr.index)
            return (lambda pieces: pieces[index]), (self._slot(expr.tuple_value),)
        tree = self._tree(expr)
        order = tuple(self._slot(v) for v in inputs_of(expr))

        def rebuild(*values: Value) -> Value:
            return tree(dict(zip(order, values, strict=True)))

        return rebuild, order

    def _tree(self, expr: Any) -> Callable[[Any], Value]:
        """Return how to read an expression of variables, constants and tuples from the slots."""
        if isinstance(expr, relax.Tuple):
            fields = [self._tree(f) for f in expr.fields]
            return lambda slots: tuple(f(slots) for f in fields)
        if isinstance(expr, relax.Var):
            slot = self._slot(expr)
            return lambda slots: slots[slot]
        if is_const(expr):
            constant = tensor(expr)
            return lambda slots: constant
        if isinstance(expr, relax.TupleGetItem):
            inner, index = self._tree(expr.tuple_value), int(expr.index)
            return lambda slots: inner(slots)[index]
        raise UnsupportedOperatorError("reference executor", [(type(expr).__name__, "a binding")])

    def _checked(self, name: str, ty: Any, value: Value) -> Value:
        if not isinstance(value, torch.Tensor):
            return value
        want_shape, want = tuple(int(d) for d in ty.shape), TORCH_DTYPES[str(ty.dtype)]
        if tuple(value.shape) != want_shape:
            raise FrameError(
                f"input {name} has shape {tuple(value.shape)}; the function takes {want_shape}"
            )
        if value.dtype != want and not self._differentiable:
            raise FrameError(
                f"input {name} has dtype {value.dtype}; the function takes {want}: convert it"
            )
        return value

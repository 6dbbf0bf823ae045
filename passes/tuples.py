"""Programs take every item of a tuple once, and keep it until they end.

Parameters, state and workspace come in tuples of hundreds of tensors, and what a call writes in
place is given back as a tuple of what it was given. Each item that is taken and each one whose life
is ended is a call of the virtual machine: more of them than of kernels by an order of magnitude,
and together they would take longer than a small network's residual frame.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from resq_tvm.passes.graph import map_variables, op_name

_KILLS = frozenset({"relax.vm.kill_object", "relax.memory.kill_tensor"})


@tvm.transform.module_pass(opt_level=0, name="FoldTuples")
class FoldTuples:
    """Let items stand for themselves; precedes ``KillAfterLastUse``, which sees who needs what."""

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Return the module with one binding per item, and none of a tuple that was known."""
        return _each_program(mod, _fold)


@tvm.transform.module_pass(opt_level=0, name="KeepItems")
class KeepItems:
    """Do not end the lives of what a tuple holds anyway; follows ``KillAfterLastUse``."""

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Return the module without these calls."""
        return _each_program(mod, _keep)


def _each_program(mod: tvm.IRModule, change: Any) -> tvm.IRModule:
    out = tvm.IRModule(dict(mod.functions_items()))
    for name, function in mod.functions_items():
        if isinstance(function, relax.Function):
            blocks, result = change(function)
            body = relax.SeqExpr(blocks, result)
            out[name] = relax.Function(
                function.params, body, function.ret_ty, function.is_pure, function.attrs
            )
    return out


def _fold(function: relax.Function) -> tuple[list[Any], Any]:
    same: dict[Any, Any] = {}  # a variable → what it is another name of
    tuples: dict[Any, Any] = {}
    items: dict[tuple[Any, int], Any] = {}

    def known(var: Any) -> Any:
        return same.get(var, var)

    blocks = []
    for block in function.body.blocks:
        kept = []
        for binding in block.bindings:
            var, value = binding.var, _renamed(binding.value, known)
            if isinstance(value, relax.TupleGetItem):
                place = (value.tuple_value, int(value.index))
                if value.tuple_value in tuples:
                    same[var] = tuples[value.tuple_value].fields[place[1]]
                    continue
                if place in items:
                    same[var] = items[place]
                    continue
                items[place] = var
            elif isinstance(value, relax.Tuple) and all(
                isinstance(f, relax.Var) for f in value.fields
            ):
                tuples[var] = value
            elif isinstance(value, relax.Var):
                same[var] = value
                continue
            kept.append(relax.VarBinding(var, value))
        blocks.append(kept)
    result = known(function.body.body)
    used = {result}
    for bindings in blocks:
        for binding in bindings:
            relax.analysis.post_order_visit(
                binding.value, lambda e: used.add(e) if isinstance(e, relax.Var) else None
            )
    return [
        relax.BindingBlock([b for b in bindings if b.var in used or b.var not in tuples])
        for bindings in blocks
    ], result


def _renamed(value: Any, known: Any) -> Any:
    """Return a bound value on other variables."""
    if isinstance(value, relax.Call):
        args = [map_variables(a, known) for a in value.args]
        return relax.Call(value.op, args, value.attrs, value.ty_args)
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(map_variables(value.tuple_value, known), value.index)
    return map_variables(value, known)


def _keep(function: relax.Function) -> tuple[list[Any], Any]:
    held = {
        b.var
        for block in function.body.blocks
        for b in block.bindings
        if isinstance(b.value, relax.TupleGetItem) and b.value.tuple_value in function.params
    }

    def is_needless(binding: Any) -> bool:
        return op_name(binding.value) in _KILLS and binding.value.args[0] in held

    blocks = [
        relax.BindingBlock([b for b in block.bindings if not is_needless(b)])
        for block in function.body.blocks
    ]
    return blocks, function.body.body

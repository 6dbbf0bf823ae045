"""Programs trust the tuples that they are called with: parameters, state, workspace.

`VMShapeLower` has every entry point check dtype and shape of every tensor that it is given, on
every frame: of hundreds of parameters, which takes longer than a small kernel. They come from the
artifact, whose hashes were checked when it was loaded, or from the programs themselves. Frames are
the user's and stay checked.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

_CHECKS = frozenset({"vm.builtin.check_tensor_info", "vm.builtin.match_shape"})


@tvm.transform.module_pass(opt_level=0, name="TrustTuples")
class TrustTuples:
    """Drop the checks of tensors that were taken out of a tuple; follows ``VMShapeLower``."""

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Return the module without these checks."""
        out = tvm.IRModule(dict(mod.functions_items()))
        for name, function in mod.functions_items():
            if isinstance(function, relax.Function):
                out[name] = _without_checks(function)
        return out


def _without_checks(function: relax.Function) -> relax.Function:
    taken = {
        b.var
        for block in function.body.blocks
        for b in block.bindings
        if isinstance(b.value, relax.TupleGetItem)
    }

    def is_check(binding: Any) -> bool:
        call = binding.value
        return (
            isinstance(call, relax.Call)
            and isinstance(call.op, relax.ExternFunc)
            and str(call.op.global_symbol) in _CHECKS
            and call.args[0] in taken
        )

    kept = [[b for b in blk.bindings if not is_check(b)] for blk in function.body.blocks]
    used: set[Any] = set()

    def note(expr: Any) -> None:
        if isinstance(expr, relax.Var):
            used.add(expr)

    relax.analysis.post_order_visit(function.body.body, note)
    for bindings in kept:
        for binding in bindings:
            relax.analysis.post_order_visit(binding.value, note)
    blocks = [
        relax.BindingBlock([b for b in bindings if b.var in used or b.var not in taken])
        for bindings in kept
    ]
    body = relax.SeqExpr(blocks, function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)

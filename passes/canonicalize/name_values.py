"""Name every value: linear layers keep their names, others become ``relu_0`` and the like.

Runs last, so that the numbers are those of the canonical module. Needs `NameLayers` before.
"""

from __future__ import annotations

from typing import Any

import tvm

from resq_tvm.passes.canonicalize.name_layers import Names, kind_of
from resq_tvm.passes.canonicalize.rewrite import Rewriter, rewritten
from resq_tvm.passes.graph import is_linear_layer


@tvm.transform.module_pass(opt_level=0, name="NameValues")
class NameValues:
    """Give all variables stable, unique names of ``[A-Za-z0-9_]``."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with named variables."""
        return rewritten(mod, _Namer)


class _Namer(Rewriter):
    def __init__(self, func: Any) -> None:
        super().__init__(func)
        self._names = Names()
        for param in func.params:
            self._names.unique(param.name)
        for var, value in self.graph.bindings:
            if var in self._live and is_linear_layer(value):
                self._names.unique(var.name)

    def rewrite(self, var: Any, value: Any) -> Any:
        name = var.name if is_linear_layer(value) else self._names.numbered(kind_of(value))
        return self.emit(value, name)

"""Partition a quantization-annotated ``main`` into a keyframe and a residual program.

Requires canonical form, `resq.layers` and `resq.scales` (see docs/architecture.md). Produces
``keyframe(x…) -> ((y…), (state…))`` and, unless the scheme is frame quantization,
``residual(x…, state…) -> ((y…), (state…))``; ``main`` stays as it is.

In the residual program every value has up to three forms, made on demand:

* *delta* ``v_t − v_k``: linear operators map deltas to deltas; a linear layer takes the quantized
  delta of its input (eq. 4 of the paper); other operators give ``g(u_t) − g(u_k)``;
* *full* ``v_t``: ``v_k + delta`` behind linear layers, ``g(u_t)`` behind other operators;
* *key* ``v_k``: recomputed from the keyframe values before it behind elementwise operators,
  otherwise it is state.

State is therefore exactly what turns deltas into full values. Control flow and symbolic shapes
are not handled.
"""

from __future__ import annotations

from typing import Any

import tvm

from resq_tvm.passes.partition.keyframe import Keyframe
from resq_tvm.passes.partition.program import Settings
from resq_tvm.passes.partition.residual import Residual


@tvm.transform.module_pass(opt_level=0, name="Partition")
class Partition:
    """Split ``main`` into ``keyframe`` and ``residual``.

    Parameters
    ----------
    state_dtype : str
        ``"float32"`` or ``"float16"``: how state is stored. Both programs continue from the
        rounded value, so that a frame equal to its keyframe gives the keyframe's output exactly.
    recurrent : bool
        Residuals against the previous frame instead of the keyframe; the residual program then
        returns a new state.
    """

    def __init__(self, state_dtype: str = "float32", recurrent: bool = False) -> None:
        self.state_dtype = state_dtype
        self.recurrent = recurrent

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with the two programs added."""
        main = mod["main"]
        settings = Settings(main, self.state_dtype, self.recurrent)
        programs: dict[str, Any] = {}
        if settings.has_residual:
            residual = Residual(settings)
            programs["residual"] = residual.build()
            state = residual.state_values
        else:
            state = []
        programs["keyframe"] = Keyframe(settings, state).build()
        out = tvm.IRModule(dict(mod.functions_items()))
        for name in ("keyframe", "residual"):
            if name in programs:
                out[name] = programs[name].with_attr("global_symbol", name)
        return out

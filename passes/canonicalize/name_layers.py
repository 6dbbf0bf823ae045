"""Name every linear layer after the source model.

Converters forget names but keep weights, so a layer is found by its weight: a frontend records
`fingerprint` → name in the function attribute ``resq.names`` (JSON text). The fingerprint does not
depend on the order of elements, so layout changes do not matter; the pass must run before
anything is folded into weights. Layers that the source does not name become ``conv2d_0`` and so on.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.passes.canonicalize.rewrite import Rewriter, rewritten
from resq_tvm.passes.graph import const_value, is_linear_layer, op_name

_KINDS = {
    "relax.nn.conv2d": "conv2d",
    "relax.nn.conv2d_transpose": "conv2d_transpose",
    "relax.matmul": "dense",
}
_ENDING = re.compile(r"([._/]+weights?|/(kernel|conv2d|depthwise|matmul))$", re.I)


@tvm.transform.module_pass(opt_level=0, name="NameLayers")
class NameLayers:
    """Give linear layers' variables their source names, made unique."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with named layers."""
        return rewritten(mod, _Namer)


def fingerprint(weight: NDArray[Any]) -> str:
    """Return a key of a weight's values that is the same in every layout.

    Size, sum and sum of squares of the float32 bit patterns modulo 2^64: exact, hence independent
    of order.
    """
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return f"{bits.size}:{int(bits.sum()):x}:{int((bits * bits).sum()):x}"


def layer_name(source: str) -> str:
    """Return a weight's source name as an identifier, without the ending that says 'weight'."""
    text = re.sub(r"[^A-Za-z0-9_]", "_", _ENDING.sub("", source)).strip("_")
    return f"layer_{text}" if not text or text[0].isdigit() else text


class Names:
    """Hands out identifiers, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, wanted: str) -> str:
        """Return ``wanted``, or ``wanted_1``, ``wanted_2`` … where it is taken."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def numbered(self, kind: str) -> str:
        """Return the first free one of ``kind_0``, ``kind_1`` and so on."""
        count = 0
        while f"{kind}_{count}" in self._taken:
            count += 1
        return self.unique(f"{kind}_{count}")


class _Namer(Rewriter):
    def __init__(self, func: Any) -> None:
        super().__init__(func)
        attrs = func.attrs or {}
        self._source = json.loads(str(attrs["resq.names"])) if "resq.names" in attrs else {}
        self._names = Names()
        for param in func.params:
            self._names.unique(param.name)
        layers = [v for v, e in self.graph.bindings if v in self._live and is_linear_layer(e)]
        self._chosen = {v: self._choose(self.graph.producers[v]) for v in layers}

    def _choose(self, call: Any) -> str:
        name = self._source.get(fingerprint(const_value(call.args[1])))
        if name is None:
            return self._names.numbered(_KINDS[op_name(call)])
        return self._names.unique(layer_name(name))

    def rewrite(self, var: Any, value: Any) -> Any:
        if var not in self._chosen:
            # A converter's own name must not take a layer's.
            return self.emit(value, "value")
        return self.emit(value, self._chosen[var])

    def attributes(self) -> dict[str, Any]:
        return {"resq.names": None}


def kind_of(call: Any) -> str:
    """Return the short name of a call's operator, for naming its variable."""
    return op_name(call).split(".")[-1] if isinstance(call, relax.Call) else "value"

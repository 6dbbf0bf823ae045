"""What makes two kernels one tuning task: everything that the code depends on but the numbers.

Weights, scales and clip bounds are left out: kernels that differ in those alone take the same time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

import numpy as np

from resq_tvm.schedules.spec import FusedKernel, TensorSpec

# Counts up whenever the emitted code changes so that old measurements say nothing.
SCHEDULE_VERSION = 1


def signature(kernel: FusedKernel) -> str:
    """Return a canonical text of a kernel's structure, the same for every kernel of one task.

    Parameters
    ----------
    kernel : FusedKernel

    Returns
    -------
    str
        One line of JSON: anchor, tensors, epilogue, code format; tensors by position.
    """
    names = {
        **{s.name: f"i{n}" for n, s in enumerate(kernel.inputs)},
        **{s.name: f"o{n}" for n, s in enumerate(kernel.outputs)},
    }

    def value(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return [str(item.dtype), *item.shape]
        if isinstance(item, str):
            return names.get(item, item)
        if isinstance(item, tuple):
            return [value(i) for i in item]
        if hasattr(item, "__dataclass_fields__"):
            return {f.name: value(getattr(item, f.name)) for f in fields(item)}
        return item

    anchor = {"kind": type(kernel.anchor).__name__, **value(kernel.anchor)}
    nodes = [
        [n.op, list(n.args), names.get(n.name, ""), n.limit if n.op == "quantize" else 0]
        for n in kernel.nodes
    ]
    document = {
        "anchor": anchor,
        "plane": [kernel.h, kernel.w, kernel.c],
        "inputs": [_tensor(s) for s in kernel.inputs],
        "outputs": [_tensor(s) for s in kernel.outputs],
        "nodes": nodes,
        "stores": [[s.node, names[s.name], value(s.choice)] for s in kernel.stores],
        "code": value(kernel.code),
        "gate": kernel.gate is not None,
        "sparse": kernel.sparse is not None,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def digest(text: str) -> str:
    """Return the short name of a signature: 12 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tensor(spec: TensorSpec) -> list[Any]:
    return [spec.dtype, spec.h, spec.w, spec.c, spec.c_phys, list(spec.halo)]

"""What makes two kernels one tuning task: everything that the code depends on but the numbers.

Weights, scales and clip bounds are left out: kernels that differ in those alone take the same time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

import numpy as np

from resq_tvm.errors import CompileError
from resq_tvm.schedules.spec import Conv, FusedKernel, Node, Phase, Store, TensorSpec
from resq_tvm.targets.preset import Target

# Counts up whenever the emitted code changes so that old measurements say nothing.
SCHEDULE_VERSION = 2


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
    for name in ("limits", "coarse", "rest"):
        if not anchor.get(name):  # of targets that do not ask, of inputs with one code
            anchor.pop(name, None)
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


def kernel_of(text: str, target: Target) -> FusedKernel:
    """Return a kernel of a signature, with random numbers where the signature has none.

    Parameters
    ----------
    text : str
        What `signature` returned, for a kernel without gate, tiles or choices of bits.
    target : Target

    Raises
    ------
    CompileError
        If the text is not such a signature.
    """
    try:
        document = json.loads(text)
        return _restored(document, target)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CompileError(
            f"kernel signature {text[:60]!r}… cannot be read ({error!r}); compile anew"
        ) from None


def _restored(document: dict[str, Any], target: Target) -> FusedKernel:
    if document["sparse"] or document["gate"]:
        raise ValueError("it skips tiles")
    rng = np.random.default_rng(0)
    h, w, c = document["plane"]
    anchored = document["anchor"]
    if anchored["kind"] != "Conv":
        raise ValueError(f"its anchor is a {anchored['kind']}")
    _, *shape = anchored["weight"]
    limits = tuple(anchored["limits"]) if "limits" in anchored else None
    most = limits[1] if limits is not None else 127
    anchor = Conv(
        tuple(anchored["inputs"]),
        rng.integers(-most, most + 1, shape).astype(np.int8),
        tuple(
            Phase(p["oy"], p["ox"], tuple(tuple(t) for t in p["taps"])) for p in anchored["phases"]
        ),
        tuple(anchored["in_stride"]),
        tuple(anchored["out_stride"]),
        int(anchored["groups"]),
        limits,
        rest=tuple(anchored.get("rest", ())),
    )
    nodes, vectors = [], {}
    for n, (op, args, name, limit) in enumerate(document["nodes"]):
        # Such that accumulators of random codes end up within a code's range.
        value = {"scalar": 1.0, "quantize": 3.0}.get(op, 0.0)
        if op == "vector":
            name = f"v{n}"
            vectors[name] = rng.uniform(0.5e-4, 2e-4, c).astype(np.float32)
        nodes.append(Node(op, tuple(args), name, value, limit))
    return FusedKernel(
        digest(json.dumps(document)),
        anchor,
        h,
        w,
        c,
        tuple(_spec(f"i{n}", entry) for n, entry in enumerate(document["inputs"])),
        tuple(_spec(f"o{n}", entry) for n, entry in enumerate(document["outputs"])),
        tuple(nodes),
        tuple(Store(node, name) for node, name, _ in document["stores"]),
        target.code,
        vectors,
    )


def _spec(name: str, entry: list[Any]) -> TensorSpec:
    dtype, h, w, c, c_phys, (top, left, bottom, right), *npu = entry
    return TensorSpec(name, h, w, c, dtype, c_phys, (top, left, bottom, right), *npu)


def digest(text: str) -> str:
    """Return the short name of a signature: 12 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tensor(spec: TensorSpec) -> list[Any]:
    npu: list[Any] = [spec.bits, spec.memory] if spec.bits or spec.memory else []
    if spec.ring:
        npu.append(spec.ring)
    return [spec.dtype, spec.h, spec.w, spec.c, spec.c_phys, list(spec.halo), *npu]

"""Choices of bits that do not fit behind a convolution get a kernel of their own.

The policy looks at all channels of a pixel, so that a tile has to hold them all, and with them the
weights of every output channel. Where the memory is too small for that, the convolution writes the
finest codes, in tiles of channels, and a second kernel chooses.
"""

from __future__ import annotations

from dataclasses import replace

from resq_tvm.errors import CompileError
from resq_tvm.schedules.npu.rules import decide_npu
from resq_tvm.schedules.spec import ANYTHING, Conv, FusedKernel, Node, Store, TensorSpec, Walk
from resq_tvm.targets.preset import Target


def chooses_late(kernel: FusedKernel, target: Target) -> bool:
    """Return whether a convolution cannot hold whole pixels to choose their bits."""
    if not any(s.choice for s in kernel.stores) or not isinstance(kernel.anchor, Conv):
        return False
    try:
        decide_npu(kernel, target)
    except CompileError:
        return True
    return False


def choose_apart(kernel: FusedKernel) -> tuple[FusedKernel, FusedKernel]:
    """Return the kernel without its choices, and the kernel that makes them.

    Parameters
    ----------
    kernel : FusedKernel
        Its outputs are in the order of its stores.
    """
    sparse = kernel.sparse
    assert sparse is not None
    stores, outputs, fine, chosen = [], [], [], []
    seen, fine_maps = {}, {}  # of what the first kernel writes, where it skips tiles
    for store, spec in zip(kernel.stores, kernel.outputs, strict=True):
        made = TensorSpec(f"{kernel.name}_changed", spec.h, spec.w, 1, "uint8", 1)
        if store.choice is not None:
            spec = replace(spec, name=f"{spec.name}_fine")
            fine.append(spec)
            chosen.append(store)
            fine_maps[spec.name] = made
        seen[spec.name] = made
        stores.append(Store(store.node, spec.name))
        outputs.append(spec)
    skips = not sparse.everywhere
    asked = {name: m for name, m in sparse.maps.items() if name == ANYTHING}
    first = replace(
        kernel,
        outputs=tuple(outputs),
        stores=tuple(stores),
        sparse=replace(sparse, out_maps=seen if skips else {}) if sparse.maps else None,
    )
    second = FusedKernel(
        f"{kernel.name}_choice",
        Walk(),
        kernel.h,
        kernel.w,
        kernel.c,
        tuple(fine),
        tuple(kernel.tensor(s.name) for s in chosen),
        tuple(Node("load", name=s.name) for s in fine),
        tuple(Store(i, s.name, s.choice) for i, s in enumerate(chosen)),
        kernel.code,
        sparse=replace(
            sparse,
            maps=fine_maps | asked if skips else {},
            out_maps={s.name: sparse.out_maps[s.name] for s in chosen},
        ),
    )
    return first, second

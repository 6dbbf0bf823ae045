"""How large codes and weights can be: what narrow accumulators are proven with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from resq_tvm.schedules.spec import Conv, FusedKernel

_LARGEST_CODE = 127


class CodeLimits:
    """Follows the limits of codes from the kernels that write them to those that read them."""

    def __init__(self) -> None:
        self._limits: dict[Any, int] = {}

    def apply(
        self, kernel: FusedKernel, arguments: Sequence[Any], results: Sequence[Any]
    ) -> FusedKernel:
        """Note what a kernel writes, and return it with the limits of what its convolution reads.

        Parameters
        ----------
        kernel : FusedKernel
            After those whose results it reads.
        arguments, results : sequence of relax.Var
            Its inputs and outputs, in the order of the kernel's.
        """
        for store, var in zip(kernel.stores, results, strict=True):
            node = kernel.nodes[store.node]
            if node.op == "quantize":
                self._limits[var] = node.limit
        anchor = kernel.anchor
        if not isinstance(anchor, Conv):
            return kernel
        known = {
            spec.name: self._limits.get(var, _LARGEST_CODE)
            for spec, var in zip(kernel.inputs, arguments, strict=True)
        }
        codes = max(known[name] for name in anchor.inputs)
        largest = int(np.abs(anchor.weight.astype(np.int32)).max(initial=1))
        weights = (1 << max(1, largest).bit_length()) - 1  # the precision's own limit
        return replace(kernel, anchor=replace(anchor, limits=(codes, weights)))

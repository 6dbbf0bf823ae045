"""How large codes and weights can be: what narrow accumulators are proven with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from resq_tvm.schedules.spec import Choice, Coarse, Conv, FusedKernel
from resq_tvm.scheme import code_limit

_LARGEST_CODE = 127


class CodeLimits:
    """Follows the limits of codes from the kernels that write them to those that read them."""

    def __init__(self) -> None:
        self._limits: dict[Any, int] = {}
        self._choices: dict[Any, Choice] = {}

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
            if store.choice is not None:
                self._choices[var] = store.choice
        anchor = kernel.anchor
        if not isinstance(anchor, Conv):
            return kernel
        known = {
            spec.name: self._limits.get(var, _LARGEST_CODE)
            for spec, var in zip(kernel.inputs, arguments, strict=True)
        }
        codes = max(known[name] for name in anchor.reads)
        largest = int(np.abs(anchor.weight.astype(np.int32)).max(initial=1))
        weights = (1 << max(1, largest).bit_length()) - 1  # the precision's own limit
        choices = {
            spec.name: self._choices[var]
            for spec, var in zip(kernel.inputs, arguments, strict=True)
            if var in self._choices
        }
        coarse = {_coarse(choices.get(name)) for name in anchor.inputs}
        alike = coarse.pop() if len(coarse) == 1 else None
        return replace(kernel, anchor=replace(anchor, limits=(codes, weights), coarse=alike))


def _coarse(choice: Choice | None) -> Coarse | None:
    """Return what pixels are that got fewer bits than the most of a pool; None if that is nothing.

    Several fewer ones share a unit: codes of the larger steps are multiples of the smallest, too.
    """
    if choice is None:
        return None
    fewer = [(b, s) for b, s in zip(choice.pool[:-1], choice.shifts[:-1], strict=True) if b]
    mask = choice.pool[-1]
    for bits, _ in fewer:
        mask &= ~bits
    if not fewer or not mask:  # else a byte of the most bits would look like several of fewer
        return None
    unit = min(shift for _, shift in fewer)
    return Coarse(mask, unit, max(code_limit(bits) << (shift - unit) for bits, shift in fewer))

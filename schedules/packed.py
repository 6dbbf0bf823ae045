"""Walks over tensors of up to four channels: four pixels share one vector of 16 lanes.

The first kernel of a network turns frames of three channels into codes; pixel by pixel it would
use three lanes of sixteen. Lane ``4·p + k`` holds channel ``k`` of pixel ``p``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.context import LANES, Context
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.spec import TensorSpec

PACK = 4  # pixels per vector
_SLOT = LANES // PACK


def packable(ctx: Context) -> bool:
    """Whether every tensor of the kernel covers the plane with up to four lanes per pixel."""
    kernel = ctx.kernel
    plane = (kernel.h, kernel.w, kernel.c)
    return kernel.w >= PACK and all(
        (t.h, t.w, t.c) == plane and t.c_phys <= _SLOT for t in (*kernel.inputs, *kernel.outputs)
    )


class PackedEpilogue(Epilogue):
    """An epilogue whose vectors are four pixels side by side."""

    def _layout_vector(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tile(np.pad(array, (0, _SLOT - array.size)), PACK)

    def _fetch(self, spec: TensorSpec, index: list[Expr], lanes: int) -> Expr:
        width = spec.c_phys
        value = super()._fetch(spec, index, PACK * width)
        if width == _SLOT:
            return value
        # Four times over: TVM refuses shuffles that have more lanes than their operands.
        spread = [p * width + min(k, width - 1) for p in range(PACK) for k in range(_SLOT)]
        return tirx.Shuffle([value] * PACK, spread)

    def _put(self, spec: TensorSpec, index: list[Expr], value: Any, lanes: int) -> None:
        width = spec.c_phys
        if width < _SLOT:
            value = self.code.bind(value)
            value = tirx.Shuffle(
                [value], [p * _SLOT + k for p in range(PACK) for k in range(width)]
            )
        super()._put(spec, index, value, PACK * width)

"""Write grouped transposed convolutions as dense ones with zeros between the groups.

Relax holds a grouped transposed weight by output channels per group, which gives the weight
quantizer no output axis to scale along. Requires NHWC and OHWI. The zeros count as
multiplications in the cost report.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.passes.canonicalize.rewrite import Rewriter, constant, integers, rewritten
from resq_tvm.passes.graph import const_value, is_const, op_name


@tvm.transform.module_pass(opt_level=0, name="DensifyTransposed")
class DensifyTransposed:
    """Turn grouped transposed convolutions into dense ones."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module without grouped transposed convolutions."""
        return rewritten(mod, _Densifier)


class _Densifier(Rewriter):
    def rewrite(self, var: Any, value: Any) -> Any:
        if op_name(value) != "relax.nn.conv2d_transpose" or not is_const(value.args[1]):
            return value
        at = value.attrs
        groups = int(at.groups)
        if groups == 1:
            return value
        weight = const_value(value.args[1])
        per, height, width, channels = weight.shape
        dense = np.zeros((groups * per, height, width, channels), np.float32)
        step = channels // groups
        for group in range(groups):
            columns = slice(group * step, (group + 1) * step)
            dense[group * per : (group + 1) * per, ..., columns] = weight[..., columns]
        return relax.op.nn.conv2d_transpose(
            value.args[0], constant(dense), integers(at.strides), integers(at.padding),
            integers(at.output_padding), integers(at.dilation), 1, "NHWC", "OHWI",
        )  # fmt: skip

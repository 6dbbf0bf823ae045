from __future__ import annotations

import numpy as np
from tvm.script import ir as I
from tvm.script import relax as R

from resq_tvm.passes.canonicalize.densify import DensifyTransposed
from tests.passes.canonicalize.compare import expect

GROUPED = np.arange(1, 5, dtype="float32").reshape(1, 1, 1, 4)
DENSE = np.array([[1, 2, 0, 0], [0, 0, 3, 4]], "float32").reshape(2, 1, 1, 4)


def test_groups_become_blocks_of_a_dense_weight() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 3, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d_transpose(
                    x, R.const(GROUPED), strides=[2, 2], groups=2, data_layout="NHWC",
                    kernel_layout="OHWI",
                )  # fmt: skip
                gv = (y,)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 3, 3, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d_transpose(
                    x, R.const(DENSE), strides=[2, 2], data_layout="NHWC", kernel_layout="OHWI"
                )
                gv = (y,)
                R.output(gv)
            return gv

    expect(DensifyTransposed(), Before, After)

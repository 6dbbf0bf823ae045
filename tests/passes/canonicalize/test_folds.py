import numpy as np
from tvm.script import ir as I
from tvm.script import relax as R

from resq_tvm.passes.canonicalize.flush_tiny import FlushTiny
from resq_tvm.passes.canonicalize.fold_affine import FoldAffine
from resq_tvm.passes.canonicalize.fold_constants import FoldConstants
from resq_tvm.passes.canonicalize.fold_pad import FoldPad
from tests.passes.canonicalize.compare import expect

W = np.random.default_rng(0).standard_normal((8, 3, 3, 4)).astype("float32")
S = np.arange(1, 9, dtype="float32")
B = np.arange(8, dtype="float32") - 3


def test_constants_are_folded() -> None:
    half = W.transpose(1, 2, 3, 0).astype("float16")
    whole = half.astype("float32").transpose(3, 0, 1, 2)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                w = R.astype(R.const(half), "float32")
                w2 = R.permute_dims(w, [3, 0, 1, 2])
                y = R.nn.conv2d(x, w2, data_layout="NHWC", kernel_layout="OHWI")
                gv = (y,)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, R.const(whole), data_layout="NHWC", kernel_layout="OHWI")
                gv = (y,)
                R.output(gv)
            return gv

    expect(FoldConstants(), Before, After)


def test_affine_chain_goes_into_the_convolution() -> None:
    scaled = (W.astype("float64") * S.reshape(-1, 1, 1, 1)).astype("float32")
    shift = (B.astype("float64") * S + B).astype("float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
                a = R.add(y, R.const(B))
                m = R.multiply(a, R.const(S))
                b = R.add(m, R.const(B))
                z = R.nn.relu(b)
                gv = (z,)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, R.const(scaled), data_layout="NHWC", kernel_layout="OHWI")
                b = R.add(y, R.const(shift))
                z = R.nn.relu(b)
                gv = (z,)
                R.output(gv)
            return gv

    made = expect(FoldAffine(), Before, After)
    assert made["main"].body.blocks[0].bindings[0].var.name == "y"


def test_affine_chain_stays_where_the_layer_is_read_twice() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
                m = R.multiply(y, R.const(S))
                z = R.add(m, y)
                gv = (z,)
                R.output(gv)
            return gv

    expect(FoldAffine(), Before, Before)


def test_affine_chain_stays_where_the_layer_is_a_result() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
                m = R.multiply(y, R.const(S))
                gv = (m, y)
                R.output(gv)
            return gv

    expect(FoldAffine(), Before, Before)


def test_chain_without_a_layer_becomes_one_scale_and_one_shift() -> None:
    both = (S * S).astype("float32")
    shift = (B * S).astype("float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 8), "float32")):
            with R.dataflow():
                a = R.multiply(x, R.const(S))
                b = R.add(a, R.const(B))
                c = R.multiply(b, R.const(S))
                gv = (c,)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 8), "float32")):
            with R.dataflow():
                a = R.multiply(x, R.const(both))
                b = R.add(a, R.const(shift))
                gv = (b,)
                R.output(gv)
            return gv

    expect(FoldAffine(), Before, After)


def test_padding_goes_into_convolution_and_average() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                p = R.nn.pad(x, [0, 0, 1, 2, 0, 1, 0, 0])
                y = R.nn.conv2d(
                    p, R.const(W), padding=[1, 1, 1, 1], data_layout="NHWC", kernel_layout="OHWI"
                )
                a = R.nn.avg_pool2d(p, [3, 3], padding=[0, 0, 0, 0], layout="NHWC")
                gv = (y, a)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(
                    x, R.const(W), padding=[2, 1, 3, 2], data_layout="NHWC", kernel_layout="OHWI"
                )
                a = R.nn.avg_pool2d(
                    x, [3, 3], padding=[1, 0, 2, 1], count_include_pad=True, layout="NHWC"
                )
                gv = (y, a)
                R.output(gv)
            return gv

    expect(lambda m: FoldPad()(FoldPad()(m)), Before, After)


def test_zero_padding_goes_into_max_pool_only_behind_a_relu() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                r = R.nn.relu(x)
                p = R.nn.pad(r, [0, 0, 1, 1, 1, 1, 0, 0])
                q = R.nn.pad(x, [0, 0, 1, 1, 1, 1, 0, 0])
                y = R.nn.max_pool2d(p, [3, 3], padding=[0, 0, 0, 0], layout="NHWC")
                z = R.nn.max_pool2d(q, [3, 3], padding=[0, 0, 0, 0], layout="NHWC")
                gv = (y, z)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                r = R.nn.relu(x)
                q = R.nn.pad(x, [0, 0, 1, 1, 1, 1, 0, 0])
                y = R.nn.max_pool2d(r, [3, 3], padding=[1, 1, 1, 1], layout="NHWC")
                z = R.nn.max_pool2d(q, [3, 3], padding=[0, 0, 0, 0], layout="NHWC")
                gv = (y, z)
                R.output(gv)
            return gv

    # A pad whose readers are all folded dies with the next pass.
    expect(lambda m: FoldPad()(FoldPad()(m)), Before, After)


def test_tiny_constants_become_zero_but_single_ones() -> None:
    dead = np.array([1, 1e-39, -1e-31, 1e-30], "float32")
    alive = np.array([1, 0, 0, 1e-30], "float32")
    guard = np.float32(1e-38)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                a = R.multiply(x, R.const(dead))
                b = R.add(a, R.const(guard))
                c = R.divide(b, R.const(dead))
                z = R.nn.prelu(c, R.const(dead), axis=3)
                gv = (z,)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32")):
            with R.dataflow():
                a = R.multiply(x, R.const(alive))
                b = R.add(a, R.const(guard))
                c = R.divide(b, R.const(dead))
                z = R.nn.prelu(c, R.const(alive), axis=3)
                gv = (z,)
                R.output(gv)
            return gv

    expect(FlushTiny(), Before, After)

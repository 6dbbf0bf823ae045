"""Fusion: what becomes one kernel, and what is never materialised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from resq_tvm.passes.fuse import FuseKernels
from resq_tvm.passes.graph import Graph, op_name
from resq_tvm.passes.partition import Partition
from tests.graphs import annotated


def composites(mod: tvm.IRModule) -> dict[str, Any]:
    return {g.name_hint: f for g, f in mod.functions_items() if "Composite" in (f.attrs or {})}


def network(build: Any) -> tvm.IRModule:
    """Build ``main`` over a 1 × 4 × 4 × 2 input from ``build(emit, x)``."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 4, 2), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            result = build(lambda e, n: bb.emit(e, name_hint=n), x)
            out = bb.emit_output(relax.Tuple(result))
        bb.emit_func_output(out)
    return bb.finalize()


def conv(x: Any, out: int = 2) -> Any:
    w = relax.const(np.ones((out, 1, 1, int(x.ty.shape[3])), "float32"))
    return relax.op.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="OHWI")


def test_one_kernel_per_layer_with_its_epilogue() -> None:
    @I.ir_module
    class Before:
        @R.function
        def keyframe(x: R.Tensor((1, 4, 4, 2), "float32")) -> R.Tuple(
            R.Tuple(R.Tensor((1, 4, 4, 2), "float32")), R.Tuple(R.Tensor((1, 4, 4, 2), "float32"))
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                a = R.nn.max_pool2d(x, [1, 1], layout="NHWC")
                b = R.nn.relu(a)
                gv = ((b,), (a,))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def keyframe_a(x: R.Tensor((1, 4, 4, 2), "float32")) -> R.Tuple(
            R.Tensor((1, 4, 4, 2), "float32"), R.Tensor((1, 4, 4, 2), "float32")
        ):
            R.func_attr({"Composite": "resq.pool"})
            with R.dataflow():
                a = R.nn.max_pool2d(x, [1, 1], layout="NHWC")
                b = R.nn.relu(a)
                gv = (a, b)
                R.output(gv)
            return gv

        @R.function
        def keyframe(x: R.Tensor((1, 4, 4, 2), "float32")) -> R.Tuple(
            R.Tuple(R.Tensor((1, 4, 4, 2), "float32")), R.Tuple(R.Tensor((1, 4, 4, 2), "float32"))
        ):
            R.func_attr({"num_input": 1})
            cls = Expected
            with R.dataflow():
                out = cls.keyframe_a(x)
                a = out[0]
                b = out[1]
                gv = ((b,), (a,))
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FuseKernels()(Before), Expected)


def test_codes_are_concatenated_inside_the_layer_that_reads_them() -> None:
    def build(emit: Any, x: Any) -> list[Any]:
        a = emit(relax.op.nn.relu(emit(conv(x), "first")), "a")
        b = emit(relax.op.nn.relu(emit(conv(x, 3), "second")), "b")
        cat = emit(relax.op.concat([a, b], axis=3), "cat")
        return [emit(conv(cat, 5), "third")]

    fused = FuseKernels()(Partition()(annotated(network(build), "W8A8->W8A4")))
    # Two pieces of codes; in the residual program the output's keyframe value, too.
    for program, reads in (("keyframe", 2), ("residual", 3)):
        outside = [op_name(e) for _, e in Graph.of(fused[program]).bindings]
        assert "relax.concat" not in outside
        assert len(composites(fused)[f"{program}_third"].params) == reads


def test_recomputed_keyframe_values_make_no_kernel_of_their_own() -> None:
    def build(emit: Any, x: Any) -> list[Any]:
        a = emit(conv(x), "first")
        r = emit(relax.op.nn.relu(a), "r")
        s = emit(relax.op.add(emit(conv(r), "second"), r), "s")
        return [emit(relax.op.nn.relu(s), "t")]

    fused = FuseKernels()(Partition()(annotated(network(build), "W8A8->W4A4")))
    kinds = [str(f.attrs["Composite"]) for n, f in composites(fused).items() if n.startswith("res")]
    assert sorted(kinds) == ["resq.conv", "resq.conv", "resq.walk"]


def test_what_no_kernel_covers_stays_an_operator() -> None:
    def build(emit: Any, x: Any) -> list[Any]:
        flat = emit(relax.op.reshape(emit(conv(x), "first"), (1, 32)), "flat")
        return [emit(relax.op.nn.softmax(flat, axis=-1), "soft")]

    fused = FuseKernels()(Partition()(annotated(network(build), "W8A8->W4A4")))
    outside = [op_name(e) for _, e in Graph.of(fused["keyframe"]).bindings]
    assert [o for o in outside if o] == ["relax.reshape", "relax.nn.softmax"]


@pytest.mark.parametrize("joined", [False, True])
def test_a_layer_of_two_codes_is_one_kernel(joined: bool) -> None:
    def build(emit: Any, x: Any) -> list[Any]:
        a = emit(relax.op.nn.relu(emit(conv(x), "first")), "a")
        b = emit(relax.op.nn.relu(emit(conv(x, 3), "second")), "b")
        cat = emit(relax.op.concat([a, b], axis=3), "cat") if joined else a
        return [emit(conv(cat, 5), "third")]

    partitioned = Partition()(annotated(network(build), "W8A16->W8A8"))

    def products(together: bool) -> dict[str, int]:
        fused = composites(FuseKernels(together=together)(partitioned))
        counts = {
            n: sum(op_name(e) == "relax.nn.conv2d" for _, e in Graph.of(f).bindings)
            for n, f in fused.items()
            if n.startswith("keyframe")
        }
        return {n: count for n, count in counts.items() if count}

    layers = 3 if joined else 2
    assert list(products(False).values()) == [1] * 2 * layers
    assert list(products(True).values()) == [2] * layers
    fused = composites(FuseKernels()(partitioned))
    (last,) = (f for n, f in fused.items() if n.startswith("keyframe") and "third" in n)
    assert len(last.params) == (4 if joined else 2)

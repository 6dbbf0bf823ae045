"""Lowering: physical layouts, shared constants, what stays outside the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from resq_tvm.passes.fuse import FuseKernels
from resq_tvm.passes.lower import Lowered, lower
from resq_tvm.passes.partition import Partition
from resq_tvm.targets.preset import get_target
from tests.graphs import annotated


def lowered(build: Any, scheme: str = "W8A8->W8A8", state: str = "float16") -> Lowered:
    """Lower ``main`` over a 1 × 6 × 5 × 3 input from ``build(emit, x)``."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 6, 5, 3), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            result = build(lambda e, n: bb.emit(e, name_hint=n), x)
            out = bb.emit_output(relax.Tuple(result))
        bb.emit_func_output(out)
    mod = annotated(bb.finalize(), scheme)
    return lower(FuseKernels()(Partition(state)(mod)), get_target("x86-generic"))


def conv(x: Any, out: int, k: int = 1, dilation: int = 1, pad: int = 0) -> Any:
    rng = np.random.default_rng(out * k)
    w = relax.const(rng.standard_normal((out, k, k, int(x.ty.shape[3]))).astype("float32"))
    return relax.op.nn.conv2d(
        x, w, [1, 1], [pad] * 4, [dilation, dilation], data_layout="NHWC", kernel_layout="OHWI"
    )


def inputs(low: Lowered, program: str, layer: str) -> Any:
    """Return the first input tensor of the kernel that runs a layer."""
    found = [r for r in low.kernels.values() if (r.program, r.layer) == (program, layer)]
    assert len(found) == 1
    return found[0].kernel.inputs[0]


def test_codes_have_the_widest_halo_that_a_reader_needs() -> None:
    def build(emit: Any, x: Any) -> list[Any]:
        a = emit(relax.op.nn.relu(emit(conv(x, 12), "first")), "a")
        near = emit(conv(a, 4, 3, 1, 1), "near")
        far = emit(conv(a, 4, 3, 2, 2), "far")
        return [emit(relax.op.add(near, far), "sum")]

    low = lowered(build)
    for layer in ("near", "far"):
        spec = inputs(low, "keyframe", layer)
        assert spec.halo == (2, 2, 2, 2)
        assert spec.shape == (1, 10, 9, 16)
    assert inputs(low, "keyframe", "first").halo == (0, 0, 0, 0)
    assert inputs(low, "keyframe", "first").c_phys == 4


def test_equal_constants_of_both_programs_are_stored_once() -> None:
    def build(emit: Any, x: Any) -> list[Any]:
        return [emit(conv(x, 16, 3, 1, 1), "only")]

    same = lowered(build, "W8A8->W8A8")
    fewer_bits = lowered(build, "W8A8->W4A8")
    weights = [a for a in same.params.values() if a.dtype == np.int8]
    assert len(weights) == 1
    assert len([a for a in fewer_bits.params.values() if a.dtype == np.int8]) == 2


def test_state_has_one_layout_in_both_programs() -> None:
    def build(emit: Any, x: Any) -> list[Any]:
        a = emit(relax.op.nn.relu(emit(conv(x, 12), "first")), "a")
        return [emit(conv(a, 5), "second")]

    low = lowered(build)
    taken = low.module["residual"].params[1].ty
    assert [(tuple(int(d) for d in t.shape), str(t.dtype)) for t in taken.fields] == low.state_types
    assert ((1, 6, 5, 16), "float16") in low.state_types  # 12 channels, padded
    assert ((1, 6, 5, 3), "float16") in low.state_types  # the frame, as it is
    returned = low.module["keyframe"].body.body.ty.fields[1]
    tvm.ir.assert_structural_equal(returned, taken)


def test_operators_outside_the_kernels_are_named() -> None:
    def build(emit: Any, x: Any) -> list[Any]:
        flat = emit(relax.op.reshape(emit(conv(x, 2), "first"), (1, 60)), "flat")
        return [emit(relax.op.nn.softmax(flat, axis=-1), "soft")]

    assert lowered(build).opaque["keyframe"] == ["reshape flat", "nn.softmax soft"]

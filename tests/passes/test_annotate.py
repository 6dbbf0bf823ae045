"""Annotate: which precision each layer gets, and that nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from resq_tvm.errors import SchemeError
from resq_tvm.passes.annotate import Annotate, edge_layers, resolve_layers
from resq_tvm.passes.graph import Graph
from resq_tvm.scheme import PrecisionPlan, Scheme

W = np.ones((2, 1, 1, 2), np.float32)


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 4, 4, 2), "float32")):
        with R.dataflow():
            scaled = R.multiply(x, R.const(2.0, "float32"))
            stem = R.nn.conv2d(scaled, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
            act = R.nn.relu(stem)
            body = R.nn.conv2d(act, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
            skip = R.nn.conv2d(x, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
            joined = R.add(body, skip)
            head = R.nn.conv2d(joined, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
            out = R.sigmoid(head)
            gv = (out, joined)
            R.output(gv)
        return gv


def test_attribute_is_all_that_changes() -> None:
    plan = PrecisionPlan(Scheme.parse("W8A8->W4A4"), {"sk*": "W8A8->W8A8"}, "float")
    after = Annotate(plan)(Before)["main"]
    layers = {
        "stem": "float",
        "body": "float",
        "skip": "W8A8->W8A8",
        "head": "float",
    }
    expected = Before["main"].with_attr("resq.layers", json.dumps(layers))
    tvm.ir.assert_structural_equal(after, expected, map_free_vars=True)


def test_edges_are_found_through_elementwise_operators_and_at_every_output() -> None:
    # `joined` is an output, too: what feeds it is a last layer although `head` follows.
    assert edge_layers(Graph.of(Before["main"])) == {"stem", "skip", "body", "head"}

    @I.ir_module
    class Chain:
        @R.function
        def main(x: R.Tensor((1, 4, 4, 2), "float32")):
            with R.dataflow():
                a = R.nn.conv2d(x, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
                b = R.nn.conv2d(a, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
                c = R.nn.conv2d(b, R.const(W), data_layout="NHWC", kernel_layout="OHWI")
                R.output(c)
            return c

    assert edge_layers(Graph.of(Chain["main"])) == {"a", "c"}


def test_override_that_matches_nothing_is_an_error() -> None:
    plan = PrecisionPlan(Scheme.parse("W8A8"), {"stemm": "float"})
    with pytest.raises(SchemeError, match="'stemm' matches no layer"):
        resolve_layers(Before["main"], plan)

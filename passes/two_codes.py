"""Find the layers that read two codes: both of their products go into one kernel.

A keyframe's activation of more than 8 bits is two codes (`resq_tvm.scheme.split`), and its layer
``dequantize(layer(first)) + dequantize(layer(rest))`` with the same weights. One kernel keeps the
first sums in the first cache level until it has the others; two pass them through memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi

from resq_tvm.passes.graph import Graph, const_value, is_linear_layer, op_name, shape_of


def first_products(graph: Graph) -> dict[Any, list[Any]]:
    """Return what belongs to the first codes of layers that read two.

    Parameters
    ----------
    graph : Graph
        A program in the quantized form that `Partition` makes.

    Returns
    -------
    dict
        Variable of the layer on the rest → variables of the layer on the first codes and of its
        dequantization, which nothing but the sum of both reads.
    """
    consumers, producers = graph.consumers(), graph.producers
    found: dict[Any, list[Any]] = {}
    for var, call in graph.bindings:
        if op_name(call) != "relax.add":
            continue
        first, rest = (_term(value, producers) for value in call.args[:2])
        if first and rest and _same_layer(producers[first[0]], producers[rest[0]]):
            readers = [consumers[v] for v in (*first, *rest)]
            if readers == [[first[1]], [var], [rest[1]], [var]]:
                found[rest[0]] = first
    return found


def _term(value: Any, producers: dict[Any, Any]) -> list[Any]:
    """Return [sums of an integer layer, their dequantization] for the latter, else nothing."""
    call: Any = producers.get(value)
    if op_name(call) != "relax.dequantize":
        return []
    layer: Any = producers.get(call.args[0])
    integer = is_linear_layer(layer) and str(layer.args[0].ty.dtype) == "int8"
    return [call.args[0], value] if integer else []


def _same_layer(one: Any, other: Any) -> bool:
    """Whether two layers differ in their inputs alone."""
    return bool(
        op_name(one) == op_name(other)
        and not one.args[0].same_as(other.args[0])
        and shape_of(one.args[0]) == shape_of(other.args[0])
        and tvm_ffi.structural_equal(one.attrs, other.attrs)
        and np.array_equal(const_value(one.args[1]), const_value(other.args[1]))
    )

"""Give every linear layer of a canonical ``main`` its precision.

Requires canonical form. Writes the function attribute ``resq.layers``: JSON text, layer → scheme
string or ``"float"``, in the order of the layers. Changes no expression.
"""

from __future__ import annotations

import json
from typing import Any

import tvm

from resq_tvm.passes.graph import Graph, inputs_of, is_linear_layer
from resq_tvm.scheme import PrecisionPlan


@tvm.transform.module_pass(opt_level=0, name="Annotate")
class Annotate:
    """Write ``resq.layers`` on ``main``.

    Parameters
    ----------
    plan : PrecisionPlan
        The scheme, per-layer overrides and the rule for the first and last layers. It must fit
        the network: see `resolve_layers`, whose errors keep their type outside a pass only.
    """

    def __init__(self, plan: PrecisionPlan) -> None:
        self.plan = plan

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with ``main`` annotated."""
        main = mod["main"]
        out = tvm.IRModule(dict(mod.functions_items()))
        layers = resolve_layers(main, self.plan)
        out["main"] = main.with_attr("resq.layers", json.dumps(layers))
        return out


def resolve_layers(main: Any, plan: PrecisionPlan) -> dict[str, str]:
    """Return layer → scheme string or ``"float"`` for a canonical function.

    Raises
    ------
    SchemeError
        If an override matches no layer or differs in kind from the scheme.
    """
    graph = Graph.of(main)
    return plan.resolve([var.name for var, _ in graph.layers()], edge_layers(graph))


def edge_layers(graph: Graph) -> frozenset[str]:
    """Return the layers with no other layer between them and a network input or output."""
    exposed = set(graph.func.params)  # values that depend on an input through no layer
    first = set()
    for var, expr in graph.bindings:
        if not any(v in exposed for v in inputs_of(expr)):
            continue
        if is_linear_layer(expr):
            first.add(var.name)
        else:
            exposed.add(var)
    last = set()
    reaching = set(graph.outputs()) | set(inputs_of(graph.body))
    for var, expr in reversed(graph.bindings):
        if var not in reaching:
            continue
        if is_linear_layer(expr):
            last.add(var.name)
        else:
            reaching.update(inputs_of(expr))
    return frozenset(first | last)

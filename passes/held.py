"""Outputs that residual frames hold: they are computed on keyframes alone.

``resq.dynamic`` lists them by number as ``held``. What only they depend on is no part of the
residual program, and its keyframe values are not kept as state.
"""

from __future__ import annotations

import json
from typing import Any

from resq_tvm.passes.graph import Graph, inputs_of
from resq_tvm.passes.policy import is_dynamic


def held_outputs(main: Any) -> tuple[int, ...]:
    """Return the numbers of the outputs that residual frames hold."""
    if not is_dynamic(main):
        return ()
    return tuple(json.loads(str(main.attrs["resq.dynamic"])).get("held") or ())


def live_values(main: Any) -> set[Any]:
    """Return the values of ``main`` that outputs depend on which residual frames compute."""
    graph = Graph.of(main)
    producers, held = graph.producers, held_outputs(main)
    pending = [v for n, v in enumerate(graph.outputs()) if n not in held]
    live: set[Any] = set()
    while pending:
        value = pending.pop()
        if value not in live:
            live.add(value)
            pending += inputs_of(producers[value]) if value in producers else []
    return live


def held_values(main: Any) -> set[Any]:
    """Return the values of ``main`` that are held outputs and nothing else."""
    outputs = Graph.of(main).outputs()
    producers = Graph.of(main).producers
    wanted = {outputs[n] for n in held_outputs(main) if outputs[n] in producers}
    return wanted - live_values(main)

"""Outputs that residual frames hold: they are computed on keyframes alone.

``resq.dynamic`` lists them by number as ``held``. What only they depend on is no part of the
residual program, and its keyframe values are not kept as state.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from resq_tvm.passes.graph import Graph
from resq_tvm.passes.policy import is_dynamic


def held_outputs(main: Any) -> tuple[int, ...]:
    """Return the numbers of the outputs that residual frames hold."""
    if not is_dynamic(main):
        return ()
    return tuple(json.loads(str(main.attrs["resq.dynamic"])).get("held") or ())


def live_values(main: Any, held: Collection[int] | None = None) -> set[Any]:
    """Return the values of ``main`` that outputs depend on which residual frames compute.

    ``held`` are the numbers of the others; those that ``main`` names by default.
    """
    graph, held = Graph.of(main), held_outputs(main) if held is None else held
    return graph.behind(v for n, v in enumerate(graph.outputs()) if n not in held)


def held_values(main: Any) -> set[Any]:
    """Return the values of ``main`` that are held outputs and nothing else."""
    graph = Graph.of(main)
    outputs, producers = graph.outputs(), graph.producers
    wanted = {outputs[n] for n in held_outputs(main) if outputs[n] in producers}
    return wanted - live_values(main)

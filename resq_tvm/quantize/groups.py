"""Which choices move together in a fit of thresholds.

With few frames the effect of one threshold is hard to tell from chance; that of all values of one
size is not, and values of one size resemble each other in noise and in what a tile is worth.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from resq_tvm.passes.graph import Graph, concat_pieces, shape_of
from resq_tvm.passes.held import live_values
from resq_tvm.passes.policy import choice_name
from resq_tvm.scheme import Scheme

UNREAD = "unread"


def choice_groups(main: Any, outputs: Sequence[int] | None) -> dict[str, list[str]]:
    """Return group → its choices.

    Parameters
    ----------
    main : relax.Function
        Canonical and calibrated ``main``.
    outputs : sequence of int, optional
        The network's outputs that matter; all by default.

    Returns
    -------
    dict of str to list of str
        ``"<height>x<width>"`` → choices of values of that size (``"1x1"`` for vectors), with
        ``" window"`` behind it if a layer with a kernel larger than 1 × 1 reads them: there a
        pixel costs several tiles. `UNREAD` → choices that no output that matters depends on.
    """
    graph = Graph.of(main)
    producers = graph.producers
    layers: dict[str, str] = json.loads(str(main.attrs["resq.layers"]))
    found = graph.outputs()
    read = graph.behind(found[n] for n in (range(len(found)) if outputs is None else outputs))
    sizes: dict[str, str] = {}
    live: set[str] = set()
    computed = live_values(main)
    for var, call in graph.layers():
        if var not in computed:
            continue
        text = layers[var.name]
        residual = None if text == "float" else Scheme.parse(text).residual
        if residual is None or not residual.pool:
            continue
        for piece in concat_pieces(call.args[0], producers):
            shape = shape_of(piece)
            name = choice_name(piece.name, residual.pool)
            size = f"{shape[1]}x{shape[2]}" if len(shape) == 4 else "1x1"
            wide = len(shape) == 4 and shape_of(call.args[1])[1] > 1
            if wide or name not in sizes:
                sizes[name] = f"{size} window" if wide else size
            if var in read:
                live.add(name)
    groups: dict[str, list[str]] = {}
    for name, size in sizes.items():
        groups.setdefault(size if name in live else UNREAD, []).append(name)
    return groups

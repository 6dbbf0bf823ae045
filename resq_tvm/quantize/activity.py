"""How much of a layer's work a residual frame executes.

Work is done by tiles of ``TILE`` output pixels: a tile is active if any pixel in its receptive
field has a code that is not zero. Where a pixel depends on its own place alone, it is a tile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from resq_tvm.bops import layer_macs
from resq_tvm.passes.graph import Graph, concat_pieces, op_name
from resq_tvm.passes.held import live_values
from resq_tvm.passes.policy import choice_name
from resq_tvm.reference.operands import ints
from resq_tvm.scheme import Scheme

TILE = (2, 2)  # output pixels, rows by columns

Shares = Mapping[str, float]  # layer → share of its output tiles that are active
Cost = Callable[[Shares], float]


class ActivityMeter:
    """Shares of active tiles of the layers of a residual program.

    Layers of which only held outputs depend are none of it.

    Parameters
    ----------
    main : relax.Function
        Canonical ``main``.
    """

    def __init__(self, main: Any) -> None:
        graph = Graph.of(main)
        producers = graph.producers
        precisions: dict[str, str] = json.loads(str(main.attrs["resq.layers"]))
        self.layers: dict[str, tuple[Any, tuple[str, ...]]] = {}
        live = live_values(main)
        for var, call in graph.layers():
            if var not in live:
                continue
            text = precisions[var.name]
            residual = None if text == "float" else Scheme.parse(text).residual
            pool = residual.pool if residual is not None else ()
            pieces = concat_pieces(call.args[0], producers) if pool else []
            self.layers[var.name] = call, tuple(choice_name(p.name, pool) for p in pieces)

    def shares(self, moved: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Return layer → share of active tiles.

        Parameters
        ----------
        moved : mapping of str to torch.Tensor
            Choice → bool, its value's shape without the channels: whether a pixel has any code
            that is not zero. Layers without a pool of bits are fully active.
        """
        result = {}
        for layer, (call, pieces) in self.layers.items():
            if pieces:
                mask = torch.stack([moved[piece] for piece in pieces]).any(0)
                result[layer] = active_share(call, mask)
            else:
                result[layer] = 1.0
        return result


def active_share(call: Any, moved: torch.Tensor) -> float:
    """Return the share of a linear layer's output tiles that are active.

    Parameters
    ----------
    call : relax.Call
        The layer, in canonical form.
    moved : torch.Tensor, bool
        (1, H, W) of its input for convolutions, the leading axes for a dense layer (whose rows
        are tiles of one).
    """
    if op_name(call) == "relax.matmul":
        return float(moved.float().mean())
    if not bool(moved.any()):
        return 0.0
    at = call.attrs
    weight = call.args[1].ty.shape
    ones = torch.ones((1, 1, int(weight[1]), int(weight[2])))
    top, left, bottom, right = ints(at.padding)
    stride, dilation = ints(at.strides), ints(at.dilation)
    x = moved.float().unsqueeze(0)
    if op_name(call) == "relax.nn.conv2d":
        reached = F.conv2d(F.pad(x, (left, right, top, bottom)), ones, None, stride, 0, dilation)
    else:
        extra_h, extra_w = ints(at.output_padding)
        reached = F.conv_transpose2d(x, ones, None, stride, 0, 0, 1, dilation)
        reached = F.pad(reached, (-left, extra_w - right, -top, extra_h - bottom))
    active = (reached > 0.5).float()
    if ones.numel() > 1 or max(stride) > 1:
        active = F.max_pool2d(active, TILE, ceil_mode=True)
    return float(active.mean())


def mac_share(main: Any) -> Cost:
    """Return the default cost: the share of the multiply-accumulates that active tiles hold."""
    macs = {var.name: layer_macs(call) for var, call in Graph.of(main).layers()}
    total = sum(macs.values())

    def cost(shares: Shares) -> float:
        return sum(macs[layer] * share for layer, share in shares.items()) / total

    return cost

"""How much of a layer's work a residual frame executes.

Work is done by tiles of ``TILE`` output pixels: a tile is active if any pixel in its receptive
field has a code that is not zero. Where a pixel depends on its own place alone, it is a tile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
        self.layers: dict[str, tuple[Reach, tuple[str, ...]]] = {}
        live = live_values(main)
        for var, call in graph.layers():
            if var not in live:
                continue
            text = precisions[var.name]
            residual = None if text == "float" else Scheme.parse(text).residual
            pool = residual.pool if residual is not None else ()
            pieces = concat_pieces(call.args[0], producers) if pool else []
            names = tuple(choice_name(p.name, pool) for p in pieces)
            self.layers[var.name] = Reach.of(call), names

    def shares(self, moved: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Return layer → share of active tiles.

        Parameters
        ----------
        moved : mapping of str to torch.Tensor
            Choice → bool, its value's shape without the channels: whether a pixel has any code
            that is not zero. Layers without a pool of bits are fully active.
        """
        result = {}
        for layer, (reach, pieces) in self.layers.items():
            if pieces:
                masks = [moved[piece].numpy() for piece in pieces]
                result[layer] = reach.active_share(reduce(np.logical_or, masks))
            else:
                result[layer] = 1.0
        return result


@dataclass(frozen=True)
class Reach:
    """Which output pixels of a linear layer depend on an input pixel.

    Along rows and columns each: kernel taps, stride, dilation, padding before and after. A
    transposed convolution's stride is between inputs; its padding is cut from the output. A dense
    layer (``taps`` of 0) has rows as its tiles of one.
    """

    taps: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    transposed: bool = False

    @classmethod
    def of(cls, call: Any) -> Reach:
        """Read a layer in canonical form."""
        if op_name(call) == "relax.matmul":
            return cls()
        at, weight = call.attrs, call.args[1].ty.shape
        transposed = op_name(call) != "relax.nn.conv2d"
        top, left, bottom, right = ints(at.padding)
        down, across = ints(at.output_padding) if transposed else (0, 0)
        (sy, sx), (dy, dx) = ints(at.strides), ints(at.dilation)
        return cls(
            taps=(int(weight[1]), int(weight[2])),
            stride=(sy, sx),
            dilation=(dy, dx),
            before=(top, left),
            after=(bottom - down, right - across),
            transposed=transposed,
        )

    def active_share(self, moved: NDArray[np.bool_]) -> float:
        """Return the share of the output tiles that are active.

        Parameters
        ----------
        moved : ndarray, bool
            (1, H, W) of the layer's input for convolutions, the leading axes for a dense layer.
        """
        if not self.taps[0]:
            return float(moved.mean())
        if not moved.any():
            return 0.0
        plane = self._along(self._along(moved[0], 0).T, 1).T
        if self.taps == self.stride == (1, 1):
            return float(plane.mean())
        rows, columns = plane.shape
        padded = np.zeros((rows + -rows % TILE[0], columns + -columns % TILE[1]), bool)
        padded[:rows, :columns] = plane
        # Slices are many times faster than a reduction over axes of two and four.
        bands = reduce(np.logical_or, [padded[i :: TILE[0]] for i in range(TILE[0])])
        tiles = reduce(np.logical_or, [bands[:, i :: TILE[1]] for i in range(TILE[1])])
        return float(np.count_nonzero(tiles)) / tiles.size

    def _along(self, plane: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
        """Spread what moved over the kernel's extent along one axis, the plane's first."""
        taps, stride, dilation = self.taps[axis], self.stride[axis], self.dilation[axis]
        before, after = self.before[axis], self.after[axis]
        extent, span = len(plane), (taps - 1) * dilation
        if self.transposed:
            reached = np.zeros(
                ((extent - 1) * stride + span + 1 + max(-after, 0), plane.shape[1]), bool
            )
            for tap in range(taps):
                first = tap * dilation
                reached[first : first + (extent - 1) * stride + 1 : stride] |= plane
            return reached[before : len(reached) - max(after, 0)]
        padded = np.zeros((before + extent + after, plane.shape[1]), bool)
        padded[before : before + extent] = plane
        count = (len(padded) - span - 1) // stride + 1
        reached = np.zeros((count, plane.shape[1]), bool)
        for tap in range(taps):
            first = tap * dilation
            reached |= padded[first : first + (count - 1) * stride + 1 : stride]
        return reached


def mac_share(main: Any) -> Cost:
    """Return the default cost: the share of the multiply-accumulates that active tiles hold."""
    macs = {var.name: layer_macs(call) for var, call in Graph.of(main).layers()}
    total = sum(macs.values())

    def cost(shares: Shares) -> float:
        return sum(macs[layer] * share for layer, share in shares.items()) / total

    return cost

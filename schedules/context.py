"""What the emission of one kernel carries along: buffers, packed constants, channel blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from resq_tvm.schedules.code import Code, Expr, load
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.spec import (
    FusedKernel,
    GlobalMean,
    Pool,
    Resize,
    Sparse,
    TensorSpec,
)
from resq_tvm.targets.preset import Target

LANES = 16


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class ChannelBlock:
    """``count`` runs of ``len(lanes)`` vectors, the first at vector ``start``.

    ``lanes[i]`` is 16, or less for the last vector of a tensor without padding channels.
    """

    start: int
    count: int
    lanes: tuple[int, ...]


def input_maps(sparse: Sparse) -> list[TensorSpec]:
    """Return the maps that a kernel reads, each once, in parameter order."""
    return list({m.name: m for m in sparse.maps.values()}.values())


def output_maps(sparse: Sparse) -> list[TensorSpec]:
    """Return the maps that a kernel writes, each once, in parameter order."""
    maps = {m.name: m for m in sparse.out_maps.values()}
    if sparse.gate_map is not None:
        maps[sparse.gate_map.name] = sparse.gate_map
    return list(maps.values())


def _maps(kernel: FusedKernel) -> list[TensorSpec]:
    if kernel.sparse is None:
        return []
    return [*input_maps(kernel.sparse), *output_maps(kernel.sparse)]


class SparseBuffers:
    """What every sparse kernel takes besides tensors: thresholds, tiles, list, counts."""

    def __init__(self, kernel: FusedKernel) -> None:
        sparse = kernel.sparse
        assert sparse is not None
        self.thresholds = _buffer((max(1, sparse.thresholds),), "float32", "thresholds")
        # A tile has at least one pixel.
        self.tiles = _buffer((kernel.h * kernel.w,), "uint8", "tiles")
        self.list = _buffer((sparse.list_size,), "int32", "list")
        self.counts = _buffer((2 * sparse.counts,), "int32", "counts")
        self._reserved = 0

    def reserve(self, count: int) -> int:
        """Return the index of the first of ``count`` tiles."""
        first = self._reserved
        self._reserved += count
        return first


def _buffer(shape: tuple[int, ...], dtype: str, name: str) -> Any:
    return tirx.decl_buffer(shape, dtype, name, layout=None)


class Context:
    """One kernel under emission.

    Parameters
    ----------
    kernel, decision, target
        What is emitted, how, and for which machine.
    """

    def __init__(self, kernel: FusedKernel, decision: Decision, target: Target) -> None:
        self.kernel = kernel
        self.decision = decision
        self.target = target
        self.code = Code()
        self.constants: list[tuple[str, NDArray[Any]]] = []
        self._constant_buffers: list[Any] = []
        self.planes: dict[str, Any] = {}  # input → its bit planes
        self.choosers: list[Any] = []  # of the epilogue: a budget comes after all tiles
        specs = {s.name: s for s in (*kernel.inputs, *kernel.outputs, *_maps(kernel))}
        self._buffers = {
            name: tirx.decl_buffer(spec.shape, spec.dtype, f"{name}_{i}", layout=None)
            for i, (name, spec) in enumerate(specs.items())
        }
        self.sparse = SparseBuffers(kernel) if kernel.sparse is not None else None

    def buffer(self, name: str) -> Any:
        """Return the buffer of an input or output tensor."""
        return self._buffers[name]

    def constant(self, name: str, array: NDArray[Any]) -> Any:
        """Add a packed constant and return its buffer."""
        array = np.ascontiguousarray(array)
        name = f"{name}{len(self.constants)}"
        self.constants.append((name, array))
        buffer = tirx.decl_buffer(array.shape, str(array.dtype), name, layout=None)
        self._constant_buffers.append(buffer)
        return buffer

    def parameters(self) -> list[Any]:
        """Return the buffers in the order of the PrimFunc's parameters."""
        inputs = [self._buffers[s.name] for s in self.kernel.inputs]
        outputs = [self._buffers[s.name] for s in self.kernel.outputs]
        if self.sparse is None:
            return [*inputs, *self._constant_buffers, *outputs]
        assert self.kernel.sparse is not None
        inputs += [self._buffers[m.name] for m in input_maps(self.kernel.sparse)]
        outputs += [self._buffers[m.name] for m in output_maps(self.kernel.sparse)]
        return [
            *inputs,
            self.sparse.thresholds,
            *self._constant_buffers,
            *outputs,
            self.sparse.tiles,
            self.sparse.list,
            self.sparse.counts,
        ]

    @property
    def vectors(self) -> int:
        """Vectors of 16 output channels."""
        return ceil_div(self.kernel.c, LANES)

    @property
    def tail(self) -> int:
        """Lanes of the last vector: fewer than 16 where a tensor has fewer padding channels."""
        kernel = self.kernel
        names = {node.name for node in kernel.nodes if node.op == "load"}
        if isinstance(kernel.anchor, Pool | GlobalMean | Resize):
            names.add(kernel.anchor.input)
        tensors = (*(kernel.tensor(name) for name in names), *kernel.outputs)
        before = (self.vectors - 1) * LANES
        return min(LANES, *(t.c_phys - before for t in tensors if t.c == kernel.c))

    def channel_blocks(self, tile_o: int) -> list[ChannelBlock]:
        """Cut the output's vectors into runs of ``tile_o`` and a rest."""
        vectors, tail = self.vectors, self.tail
        regular = vectors if tail == LANES else vectors - 1
        count = regular // tile_o
        blocks = [ChannelBlock(0, count, (LANES,) * tile_o)] if count else []
        rest = vectors - count * tile_o
        if rest:
            blocks.append(ChannelBlock(count * tile_o, 1, (LANES,) * (rest - 1) + (tail,)))
        return blocks


def load_vector(ctx: Context, name: str, index: Sequence[Expr], block: ChannelBlock) -> Expr:
    """Load the 16 channels of a one-vector block from an anchor's input.

    Where the tensor ends before, its last lanes are repeated rather than read from beyond.
    """
    spec = ctx.kernel.tensor(name)
    lanes = LANES
    if block.start + block.count == ctx.vectors and block.count == 1:
        lanes = min(LANES, spec.c_phys - block.start * LANES)
    value = load(ctx.buffer(name), index, lanes)
    if lanes == LANES:
        return value
    # TVM refuses shuffles that have more lanes than their operands.
    return tirx.Shuffle([value] * ceil_div(LANES, lanes), list(range(LANES)))


def block_outputs(array: NDArray[Any], ctx: Context, block: ChannelBlock) -> NDArray[Any]:
    """Return a block's outputs of an array that has one row per output; missing ones are zero."""
    missing = ctx.vectors * LANES - array.shape[0]
    padded = np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    return padded[block.start * LANES : (block.start + block.count) * LANES]


def pad_channels(array: NDArray[Any], vectors: int) -> NDArray[Any]:
    """Pad the last axis with zero to whole vectors."""
    missing = vectors * LANES - array.shape[-1]
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])


def at(spec: TensorSpec, y: Any, x: Any, c: Any) -> list[Any]:
    """Return the physical index of a logical position."""
    return [0, y + spec.halo[0], x + spec.halo[1], c]

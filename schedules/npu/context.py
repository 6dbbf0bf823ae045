"""What the emission of one NPU kernel carries along: parameters, buffers in SRAM, programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from resq_tvm.errors import CompileError
from resq_tvm.schedules.code import Code, Expr
from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.intrinsics import ACCUMULATORS, SRAM, call
from resq_tvm.schedules.npu.tensors import CHANNEL_GRAIN, Rect, Tile, in_place, transfer_arguments
from resq_tvm.schedules.spec import ANYTHING, FusedKernel, TensorSpec
from resq_tvm.targets.npu.commands import VectorProgram
from resq_tvm.targets.npu.description import Npu
from resq_tvm.targets.preset import Target

ALIGNMENT = 64  # bytes: slots begin at whole bursts
_MANY = 4  # copies of small tiles
_ENOUGH = 512 << 10  # bytes for tiles, where that is not more than half of the memory


def skips_tiles(kernel: FusedKernel) -> bool:
    """Return whether a kernel skips the tiles whose inputs show no difference."""
    return kernel.sparse is not None and not kernel.sparse.everywhere


def aligned(nbytes: int) -> int:
    """Return bytes rounded up to `ALIGNMENT`: what a tensor or a tile takes of a memory."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def working_bytes(npu: Npu) -> int:
    """Return the bytes of SRAM that a kernel's tiles may take; tensors stay in the rest."""
    if npu.sram.tile_bytes:
        return npu.sram.tile_bytes
    return max(npu.sram.bytes // 4, min(npu.sram.bytes // 2, _ENOUGH))


@dataclass(frozen=True)
class Slots:
    """Copies of one tile that take turns, so that a transfer and its use overlap."""

    buffer: Any
    size: int
    count: int

    def at(self, turn: Expr) -> Expr:
        """Return the byte offset of the copy that has its turn."""
        if self.count == 1:
            return 0
        return turn % self.count * self.size


class NpuContext:
    """One kernel under emission.

    Parameters
    ----------
    kernel, decision, target
        What is emitted, how, and for which machine.
    """

    def __init__(self, kernel: FusedKernel, decision: Decision, target: Target) -> None:
        assert target.npu is not None
        self.kernel, self.decision, self.npu = kernel, decision, target.npu
        self.code = Code()
        self.programs: list[VectorProgram] = []
        self.constants: list[tuple[str, NDArray[Any]]] = []
        self._constant_buffers: list[Any] = []
        self.sram_bytes = self.accumulator_bytes = 0
        self.kept_bytes = 0  # of sram_bytes: constants that are loaded once
        self.by_bands = False  # whether rows are the outermost loop, behind all constants
        self.maps_in = dict(kernel.sparse.maps) if kernel.sparse is not None else {}
        self.maps_out = dict(kernel.sparse.out_maps) if kernel.sparse is not None else {}
        names = (m.name for key, m in self.maps_out.items() if key != ANYTHING)
        self.out_map_names = tuple(dict.fromkeys(names))
        self.skips = skips_tiles(kernel)
        self.specs = {
            s.name: s
            for s in (
                *kernel.inputs, *self.maps_in.values(), *kernel.outputs, *self.maps_out.values(),
            )
        }  # fmt: skip
        self._buffers = {
            name: tirx.decl_buffer(spec.shape, spec.dtype, f"{name}_{i}", layout=None)
            for i, (name, spec) in enumerate(self.specs.items())
        }

    def constant(self, name: str, array: NDArray[Any]) -> Any:
        """Add a packed constant and return its data variable."""
        array = np.ascontiguousarray(array)
        name = f"{name}{len(self.constants)}"
        self.constants.append((name, array))
        buffer = tirx.decl_buffer(array.shape, str(array.dtype), name, layout=None)
        self._constant_buffers.append(buffer)
        return buffer.data

    def parameters(self) -> list[Any]:
        """Return the buffers of the PrimFunc: inputs, their maps, constants, outputs, maps."""
        count = len(self.kernel.inputs) + len({m.name for m in self.maps_in.values()})
        buffers = list(self._buffers.values())
        return [*buffers[:count], *self._constant_buffers, *buffers[count:]]

    @property
    def whole_pixels(self) -> bool:
        """Whether a tile has to hold all channels: choices of bits look at whole pixels."""
        return any(s.choice is not None for s in self.kernel.stores)

    def tile_channels(self, count: int) -> int:
        """Return the channels of a tile, of ``count``; every tile's begin at a whole byte."""
        if self.whole_pixels:
            return count
        wanted = self.decision.tile_o * self.npu.matrix.outputs
        return min(ceil_div(wanted, CHANNEL_GRAIN) * CHANNEL_GRAIN, count)

    # Memory ----------------------------------------------------------------------------------

    def copies(self, turns: int) -> int:
        """Return how many copies of a tile take turns, of ``turns`` tiles.

        Small tiles take less time than it takes to load one: more of them are under way.
        """
        return min(turns, _MANY if self.skips else 2)

    def slots(self, name: str, size: int, count: int, kept: bool = False) -> Slots:
        """Allocate ``count`` copies of a tile of ``size`` bytes in SRAM.

        ``kept``: what they hold is loaded once, before the first tile.
        """
        size = max(ALIGNMENT, aligned(size))
        self.sram_bytes += size * count
        self.kept_bytes += size * count if kept else 0
        buffer = self.code.allocate(size * count, "uint8", name, SRAM)
        return Slots(buffer.data, size, count)

    def accumulators(self, elements: int, count: int) -> Slots:
        """Allocate ``count`` tiles of int32 accumulators."""
        size = 4 * elements
        self.accumulator_bytes += aligned(size * count)
        buffer = self.code.allocate(size * count, "uint8", "acc", ACCUMULATORS)
        return Slots(buffer.data, size, count)

    def require_fit(self) -> None:
        """Check that the kernel's tiles fit.

        Raises
        ------
        CompileError
            If they do not.
        """
        limit = working_bytes(self.npu)
        if self.sram_bytes > limit or self.accumulator_bytes > self.npu.matrix.accumulator_bytes:
            raise CompileError(
                f"kernel {self.kernel.name}: tile {self.decision} takes {self.sram_bytes} bytes of "
                f"SRAM and {self.accumulator_bytes} of accumulators, {self.npu.name} has "
                f"{limit} and {self.npu.matrix.accumulator_bytes} for a kernel; use a smaller tile "
                "or a machine with more memory"
            )

    # Transfers -------------------------------------------------------------------------------

    def spec(self, name: str) -> TensorSpec:
        """Return the tensor or map of that name."""
        return self.specs[name]

    def base(self, name: str) -> Any:
        """Return the data variable of a tensor or a map."""
        return self._buffers[name].data

    def is_resident(self, name: str) -> bool:
        """Whether a tensor stays in SRAM."""
        return self.specs[name].memory == "sram"

    def fetch(self, name: str, rect: Rect, tile: Tile | None) -> Tile:
        """Load a rectangle of a tensor; one that stays in SRAM is read where it is."""
        spec = self.spec(name)
        if self.is_resident(name):
            return in_place(spec, self.base(name), rect)
        assert tile is not None
        self.code.run(call("npu.load", *transfer_arguments(spec, self.base(name), rect, tile)))
        return tile

    def put(self, name: str, rect: Rect, tile: Tile) -> None:
        """Store a tile of a tensor, unless it was written where it stays."""
        if not self.is_resident(name):
            spec = self.spec(name)
            self.code.run(call("npu.store", *transfer_arguments(spec, self.base(name), rect, tile)))

    def load_constant(self, base: Any, offset: Expr, slots: Slots, turn: Expr, size: Expr) -> Expr:
        """Load bytes of a constant; return the offset of the slot that holds them."""
        at = slots.at(turn)
        self.code.run(call("npu.load", base, offset, slots.buffer, at, 1, 1, size, 0, 0, 0, 0))
        return at

"""Plan the workspace of a dynamic residual program: what its kernels keep from frame to frame.

Every output of a kernel stays in the workspace, beside a map of the pixels that are not as on the
keyframe, and the kernel's tiles (`resq_tvm.schedules.spec.Sparse`). So a kernel whose inputs did
not change writes nothing, and its readers find the right values all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from resq_tvm.schedules.context import output_maps
from resq_tvm.schedules.listing import MARGIN
from resq_tvm.schedules.spec import FusedKernel, Sparse, TensorSpec

THRESHOLDS = "thresholds"
REFRESH = 2  # a tile that holds nothing yet


@dataclass(frozen=True)
class WorkspaceTensor:
    """One tensor of the workspace.

    Attributes
    ----------
    name, shape, dtype
        What it is.
    fill : int
        Its content before the first frame.
    refresh : bool
        Whether it has to be filled anew after every keyframe: tiles of kernels that write
        keyframe values where nothing changed.
    output : int or None
        The network's output that it holds, if a keyframe's own output can take its place: then
        nothing has to be written where nothing changed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    fill: int = 0
    refresh: bool = False
    output: int | None = None


class Workspace:
    """The workspace tensors of one program in order, and who uses which.

    Parameters
    ----------
    func : relax.Function
        The fused residual program.
    state : list
        Its parameters that hold state.
    planes : iterable of (h, w, c)
        Of all kernels.
    kernels : int
        How many there are.
    outputs : dict
        Variable → number of the network's output that it is, in the layout that the program keeps.
    """

    def __init__(
        self,
        func: Any,
        state: list[Any],
        planes: Iterable[tuple[int, int, int]],
        kernels: int,
        outputs: dict[Any, int],
    ) -> None:
        self.deltas = frozenset(json.loads(str(func.attrs["resq.deltas"])))
        self.fixed = set(state)
        self.outputs = outputs
        self.tensors: list[WorkspaceTensor] = []
        self.maps: dict[Any, TensorSpec] = {}  # variable → its map
        self.kernels = kernels
        self.list_size = max(h * w for h, w, _ in planes) + MARGIN
        self.place: dict[str, int] = {}
        self.list = self._add(WorkspaceTensor("list", (self.list_size,), "int32"))
        self.counts = self._add(WorkspaceTensor("counts", (2 * kernels,), "int32"))

    def _add(self, tensor: WorkspaceTensor) -> int:
        self.place[tensor.name] = len(self.tensors)
        self.tensors.append(tensor)
        return self.place[tensor.name]

    def plan(
        self, kernel: FusedKernel, index: int, reads: list[Any], results: list[Any]
    ) -> FusedKernel:
        """Return a kernel with its sparse execution, and take note of what it keeps.

        Parameters
        ----------
        kernel : FusedKernel
        index : int
            Its number in the program.
        reads, results : list of relax.Var
            The variables of ``kernel.inputs`` and ``kernel.outputs``.
        """
        inputs = dict(zip(reads, kernel.inputs, strict=True))
        maps = {spec.name: self.maps[var] for var, spec in inputs.items() if var in self.maps}
        loose = [v for v in reads if v not in self.maps and v not in self.fixed]
        everywhere = bool(loose) and kernel.gate is None
        gate_map = None
        if kernel.gate is not None:
            gate_map = _map(f"{kernel.name}_changed", kernel.h, kernel.w)
        choices = {s.name for s in kernel.stores if s.choice is not None}
        out_maps = {}
        for var, spec in zip(results, kernel.outputs, strict=True):
            if spec.name in choices:
                out_maps[spec.name] = _map(f"{spec.name}_bits", kernel.h, kernel.w)
            else:
                shared = _map(f"{kernel.name}_changed", kernel.h, kernel.w)
                out_maps[spec.name] = gate_map or shared
            self.maps[var] = out_maps[spec.name]
        code = kernel.code
        differences = frozenset(
            spec.name
            for var, spec in inputs.items()
            if var in self.maps and (spec.dtype == code.dtype or var.name in self.deltas)
        )
        sparse = Sparse(
            maps,
            everywhere,
            out_maps,
            1,
            self.kernels,
            index,
            self.list_size,
            gate_map,
            differences,
        )
        full = [
            var
            for var, spec in zip(results, kernel.outputs, strict=True)
            if spec.dtype != code.dtype and var.name not in self.deltas
        ]
        replaced = all(var in self.outputs for var in full)
        for var, spec in zip(results, kernel.outputs, strict=True):
            fill = code.zero_point if spec.dtype == code.dtype else 0
            output = self.outputs.get(var) if replaced and var in full else None
            self._add(WorkspaceTensor(spec.name, spec.shape, spec.dtype, fill, output=output))
        for one in output_maps(sparse):
            self._add(WorkspaceTensor(one.name, one.shape, one.dtype))
        refresh = not replaced
        tiles = (kernel.h * kernel.w,)
        name = f"{kernel.name}_tiles"
        self._add(WorkspaceTensor(name, tiles, "uint8", REFRESH if refresh else 0, refresh))
        return replace(kernel, sparse=sparse)


def with_thresholds(kernel: FusedKernel, count: int) -> FusedKernel:
    """Return a sparse kernel that takes so many thresholds."""
    assert kernel.sparse is not None
    return replace(kernel, sparse=replace(kernel.sparse, thresholds=count))


def _map(name: str, h: int, w: int) -> TensorSpec:
    return TensorSpec(name, h, w, 1, "uint8", 1)

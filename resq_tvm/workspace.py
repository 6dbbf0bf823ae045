"""The workspace of one stream: what a residual program that chooses bits keeps between frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from resq_tvm.passes.changes import THRESHOLDS, WorkspaceTensor
from resq_tvm.passes.programs import KernelRecord
from resq_tvm.schedules.context import input_maps, output_maps


class StreamWorkspace:
    """Tensors in the order in which the programs take them.

    Parameters
    ----------
    entries : sequence of WorkspaceTensor
        `resq_tvm.passes.lower.Lowered.workspace`.
    """

    def __init__(self, entries: Sequence[WorkspaceTensor]) -> None:
        self._entries = entries
        self._tensors = {
            e.name: tvm.runtime.tensor(np.full(e.shape, e.fill, e.dtype)) for e in entries
        }

    @property
    def tensors(self) -> list[Any]:
        """All tensors, as an argument of a program."""
        return list(self._tensors.values())

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a view of the tensor of that name, in its physical layout."""
        view: NDArray[Any] = np.from_dlpack(self._tensors[name])
        return view

    def keyframe(self, outputs: Sequence[Any]) -> None:
        """Go on from a keyframe.

        Parameters
        ----------
        outputs : sequence of ndarray
            The network's, on that keyframe.
        """
        for entry in self._entries:
            if entry.refresh:
                self[entry.name].fill(entry.fill)
            if entry.output is not None:
                self[entry.name][...] = outputs[entry.output].reshape(entry.shape)

    def launch(
        self,
        library: Any,
        record: KernelRecord,
        inputs: Sequence[Any],
        constants: dict[str, Any],
    ) -> list[NDArray[Any]]:
        """Run one kernel on the workspace.

        Parameters
        ----------
        library : tvm.runtime.Module
            With the kernels.
        record : KernelRecord
            Of a residual program that chooses bits.
        inputs : sequence of tensors
            In the physical layout of ``record.kernel.inputs``.
        constants : dict
            The parameters of all programs, in order.

        Returns
        -------
        list of ndarray
            Views of the kernel's outputs, in their physical layouts.
        """
        kernel = record.kernel
        sparse = kernel.sparse
        assert sparse is not None
        packed = list(constants.values())
        outputs = [s.name for s in kernel.outputs]
        written = [*outputs, *(m.name for m in output_maps(sparse))]
        library[kernel.name](
            *inputs,
            *(self._tensors[m.name] for m in input_maps(sparse)),
            constants[THRESHOLDS],
            *(packed[i] for i in record.params),
            *(self._tensors[n] for n in (*written, f"{kernel.name}_tiles", "list", "counts")),
        )
        return [self[name] for name in outputs]

"""An NPU behind the calling convention of TVM's virtual machine, by way of its simulator.

Programs compute what the NPU would, bit by bit. How long a call takes says nothing of the NPU:
`resq_tvm.npu.report` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from resq_tvm.errors import ConfigError
from resq_tvm.manifest import Manifest, TensorEntry
from resq_tvm.npu.host import HostLibrary
from resq_tvm.npu.program import NpuProgram
from resq_tvm.targets.npu.commands import Program, TensorPlace
from resq_tvm.targets.npu.functional import Executed, Machine

_TO_NHWC = (0, 2, 3, 1)


class SimulatedMachine:
    """One NPU with its memories, as a virtual machine; one thread may use it at a time.

    Parameters
    ----------
    program : NpuProgram
        What it runs.
    manifest : Manifest
        Shapes of outputs and state, order of the parameters.
    library : Any
        TVM's, of the functions that the host runs; None if there are none.
    threshold_scale : float
        Factor on every threshold of a program that chooses bits.

    Attributes
    ----------
    executed : Executed or None
        What the latest run found out.
    """

    def __init__(
        self, program: NpuProgram, manifest: Manifest, library: Any, threshold_scale: float = 1.0
    ) -> None:
        self._program = program
        self._manifest = manifest
        self._host = HostLibrary(library)
        dram = np.zeros(program.stream.dram_bytes, np.uint8)
        self._machine = Machine(program.npu, program.stream, dram)
        self._machine.threshold_scale = threshold_scale
        self._params: Any = None  # those that are in the memory
        self.executed: Executed | None = None

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Return ``keyframe(frame…, params)`` or ``residual(frame…, state, params)``.

        Both return the outputs and the state.
        """
        program = self._program.stream.programs[name]
        if name == "residual":
            return lambda *args: self._run(program, args[:-2], args[-2], args[-1])
        return lambda *args: self._run(program, args[:-1], None, args[-1])

    def set_instrument(self, _instrument: Callable[..., int]) -> None:
        """Refuse: kernels overlap, and what simulating them takes is no matter.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError(
            f"kernels on {self._program.npu.name} cannot be timed one by one; use 'bench', which "
            "simulates their cycles"
        )

    def _run(self, program: Program, frames: Sequence[Any], state: Any, params: Any) -> Any:
        self._load_params(params)
        given = [*zip(program.inputs, frames, strict=True)]
        if state is not None:
            given += zip(program.state, state, strict=True)
        with np.errstate(over="ignore"):  # beyond float16 is infinity
            for place, tensor in given:
                values = np.from_dlpack(tensor).reshape(place.h, place.w, place.c)
                self._machine.write(place, values)
        self.executed = self._machine.run(program.name, self._host)
        results = [
            self._read(place, _shape(entry), "float32")
            for place, entry in zip(program.outputs, self._manifest.outputs, strict=True)
        ]
        kept = [
            self._read(place, entry.shape, entry.dtype)
            for place, entry in zip(program.state, self._manifest.state, strict=True)
        ]
        return tvm_ffi.convert(results), tvm_ffi.convert(kept)

    def _load_params(self, params: Any) -> None:
        """Write the parameters into the memory, where they stay until others come."""
        if params is self._params:
            return
        addresses = self._program.stream.params
        for entry, tensor in zip(self._manifest.params, params, strict=True):
            if entry.name in addresses:
                contents = np.from_dlpack(tensor).reshape(-1).view(np.uint8)
                begin = addresses[entry.name]
                self._machine.dram[begin : begin + contents.size] = contents
        self._params = params

    def _read(self, place: TensorPlace, shape: tuple[int, ...], dtype: str) -> Any:
        values = self._machine.read(place).astype(dtype, copy=False)
        return tvm.runtime.tensor(np.ascontiguousarray(values).reshape(shape))


def _shape(entry: TensorEntry) -> tuple[int, ...]:
    """Return an output's shape as programs give it: NHWC."""
    if entry.layout == "NCHW":
        return tuple(entry.shape[axis] for axis in _TO_NHWC)
    return entry.shape

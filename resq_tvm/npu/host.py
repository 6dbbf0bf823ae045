"""What runs beside an NPU: functions of a library for this CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm

from resq_tvm.targets.npu.commands import HostCall
from resq_tvm.targets.npu.functional import Machine


class HostLibrary:
    """The functions that an NPU's program calls.

    Parameters
    ----------
    library : Any
        TVM's, with a virtual machine's functions; None if there is nothing to call.
    """

    def __init__(self, library: Any) -> None:
        from tvm.runtime.vm import VirtualMachine

        self._machine = None if library is None else VirtualMachine(library, tvm.cpu())

    def __call__(self, call: HostCall, machine: Machine) -> None:
        """Run one function on tensors in an NPU's memories."""
        assert self._machine is not None  # checked when the artifact was loaded
        arguments = [
            tvm.runtime.tensor(np.ascontiguousarray(machine.read(place)).reshape(shape))
            for place, shape in zip(call.reads, call.shapes, strict=False)
        ]
        result = self._machine[call.function](*arguments)
        tensors = [result] if hasattr(result, "data_ptr") else list(result)
        for place, tensor in zip(call.writes, tensors, strict=True):
            machine.write(place, tensor.numpy().reshape(place.h, place.w, place.c))

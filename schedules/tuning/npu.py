"""Candidates on an NPU's simulators: bits from the functional one, seconds from the timing one."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.npu.single import ENTRY, Single
from resq_tvm.schedules.tuning.devices import Built
from resq_tvm.schedules.tuning.fingerprint import Fingerprint
from resq_tvm.schedules.tuning.roof import Roof
from resq_tvm.schedules.tuning.scenes import Scene
from resq_tvm.targets.npu.description import Npu
from resq_tvm.targets.npu.functional import Machine
from resq_tvm.targets.npu.timing import simulate
from resq_tvm.targets.preset import Target

Array = NDArray[Any]

MODEL_VERSION = 1  # of the cycle model; counts up whenever the same commands take another time


def npu_fingerprint(target: Target) -> Fingerprint:
    """Return the fingerprint of simulated times on an NPU: two descriptions share no records."""
    assert target.npu is not None
    described = target.npu.model_dump_json(exclude={"about"})
    digest = hashlib.sha256(described.encode()).hexdigest()[:8]
    return Fingerprint(target.name, f"cycles-{MODEL_VERSION}-{digest}", simulated=True)


def npu_roof(npu: Npu) -> Roof:
    """Return what the machine can do at most, by its description."""
    best = max(npu.matrix.rates.values())
    return Roof(npu.macs_per_cycle * best * npu.clock_hz / 1e9, npu.dram.bytes_per_second / 1e9)


class NpuDevice:
    """A simulated NPU, as a `resq_tvm.schedules.tuning.devices.Device`.

    Parameters
    ----------
    target : Target
    """

    def __init__(self, target: Target) -> None:
        assert target.npu is not None
        self._npu = target.npu

    def load(self, scene: Scene, footprint: int) -> None:
        """Keep the scene; the machine has no caches that the footprint could empty."""
        self._scene = scene

    def run(
        self, programs: list[Built], repeats: int, limit_s: float | None
    ) -> list[tuple[list[Array], list[float]]]:
        """Run each program once: repeats give the same; see `Device`."""
        return [self._run(built) for built, _ in programs]

    def _run(self, built: Single) -> tuple[list[Array], list[float]]:
        machine = Machine(self._npu, built.stream, built.dram.copy())
        kernel = self._scene.kernel
        for spec, array in zip(kernel.inputs, self._scene.inputs, strict=True):
            machine.write(built.tensors[spec.name], array[0])
        machine.run(ENTRY)
        outputs: list[Array] = [
            np.asarray(machine.read(built.tensors[s.name])).reshape(s.shape) for s in kernel.outputs
        ]
        return outputs, [simulate(self._npu, built.stream, ENTRY).seconds]

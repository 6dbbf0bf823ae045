"""Where candidates run: one interface for this machine, boards and simulators."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray

from resq_tvm.schedules.tuning.build import ENTRY
from resq_tvm.schedules.tuning.scenes import MOST_COPIES, Scene

Array = NDArray[Any]
Built = tuple[Any, list[Array]]  # machine code, packed constants

# Packed weights go from copy to copy, too: enough of them to leave the second cache level.
_WEIGHT_COPIES = 16
_WEIGHT_BYTES = 4 << 20


class Device(Protocol):
    """Runs machine code; made and used in one worker process.

    A simulator gives simulated seconds. What it raises counts as the candidates' failure;
    `DeviceLostError` counts as the device's.
    """

    def load(self, scene: Scene, footprint: int) -> None:
        """Get ready for the candidates of one task.

        ``footprint`` is how many bytes the network touches between two runs of a kernel.
        """

    def run(
        self, programs: list[Built], repeats: int, limit_s: float | None
    ) -> list[tuple[list[Array], list[float]]]:
        """Run programs on the scene, taking turns.

        Returns the outputs of each and the seconds of its ``repeats`` runs; fewer runs if none of
        the first takes less than ``limit_s``.
        """


class DeviceLostError(Exception):
    """The device does not answer; the candidate may be tried on another one."""


class LocalDevice:
    """The CPU of this process.

    Parameters
    ----------
    threads : int
        Threads per kernel.
    """

    def __init__(self, threads: int = 1) -> None:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)

    def load(self, scene: Scene, footprint: int) -> None:
        """Lay out copies of the scene, as many as make up the footprint."""
        self._scene = scene
        count = min(MOST_COPIES, max(2, -(-footprint // scene.nbytes)))
        self._copies = [
            (
                [tvm.runtime.tensor(a) for a in scene.inputs],
                [tvm.runtime.tensor(a) for a in scene.blank()],
            )
            for _ in range(count)
        ]

    def run(
        self, programs: list[Built], repeats: int, limit_s: float | None
    ) -> list[tuple[list[Array], list[float]]]:
        """Run in this process; see `Device`."""
        calls, results = [], []
        for module, constants in programs:
            call = module[ENTRY]
            size = sum(a.nbytes for a in constants)
            count = min(len(self._copies), _WEIGHT_COPIES, max(1, _WEIGHT_BYTES // max(size, 1)))
            packed = [[tvm.runtime.tensor(a) for a in constants] for _ in range(count)]
            inputs, outputs = self._copies[0]
            for tensor, array in zip(outputs, self._scene.blank(), strict=True):
                tensor.copyfrom(array)
            call(*inputs, *packed[0], *outputs)
            calls.append((call, packed))
            results.append(([t.numpy() for t in outputs], list[float]()))
        turn = 0
        for n in range(repeats):
            for (call, packed), (_, seconds) in zip(calls, results, strict=True):
                turn += 1
                inputs, outputs = self._copies[turn % len(self._copies)]
                for i in self._scene.fresh:
                    np.copyto(np.from_dlpack(inputs[i]), self._scene.inputs[i])
                constants = packed[turn % len(packed)]
                start = time.perf_counter()
                call(*inputs, *constants, *outputs)
                seconds.append(time.perf_counter() - start)
            if limit_s is not None and n >= 5 and all(min(s) > limit_s for _, s in results):
                break
        return results

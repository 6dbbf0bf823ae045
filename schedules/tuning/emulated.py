"""Candidates on the emulated board: simulated seconds, the same in every run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resq_tvm.schedules.tuning.build import ENTRY
from resq_tvm.schedules.tuning.devices import Built
from resq_tvm.schedules.tuning.fingerprint import Fingerprint
from resq_tvm.schedules.tuning.scenes import Scene
from resq_tvm.targets.boardkit import board_kit
from resq_tvm.targets.emulated.board import EmulatedBoard
from resq_tvm.targets.emulated.cores import MODEL_VERSION
from resq_tvm.targets.emulated.kernels import kernel_runner, run_kernel
from resq_tvm.targets.preset import Target
from resq_tvm.targets.toolchain import export_options, is_foreign

Array = NDArray[Any]

DEVICE = f"emulator-{MODEL_VERSION}"  # in records


def is_emulated(target: Target) -> bool:
    """Return whether a target's code runs on the emulated board here, not on this machine."""
    return bool(target.core) and is_foreign(target)


def emulated_fingerprint(target: Target) -> Fingerprint:
    """Return the fingerprint of measurements on the emulated board."""
    return Fingerprint(target.name, DEVICE, simulated=True)


class EmulatedDevice:
    """The emulated board of a target's core, as a `resq_tvm.schedules.tuning.devices.Device`.

    Parameters
    ----------
    target : Target

    Raises
    ------
    AssetError
        If TVM's libraries for the board cannot be had.
    TargetError
        If qemu or a compiler is not installed.
    """

    def __init__(self, target: Target) -> None:
        self._board = EmulatedBoard(target.core, cache_model=True)
        self._export = export_options(target)
        kernel_runner(board_kit())

    def load(self, scene: Scene, footprint: int) -> None:
        """Keep the scene; caches lose as many bytes as the footprint before a measured run."""
        self._scene, self._footprint = scene, footprint

    def run(
        self, programs: list[Built], repeats: int, limit_s: float | None
    ) -> list[tuple[list[Array], list[float]]]:
        """Run each program once: repeats give the same; see `Device`."""
        results = []
        with tempfile.TemporaryDirectory(prefix="resq-") as folder:
            for n, (module, constants) in enumerate(programs):
                library = Path(folder) / f"{n}.so"
                module.export_library(str(library), **self._export)
                outputs, execution = run_kernel(
                    self._board,
                    library,
                    ENTRY,
                    [*self._scene.inputs, *constants],
                    self._scene.blank(),
                    fresh=self._scene.fresh,
                    evict=self._footprint,
                )
                results.append((outputs, [execution.seconds()]))
        return results

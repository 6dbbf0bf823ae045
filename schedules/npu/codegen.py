"""From the PrimFuncs of an NPU's kernels to the commands of a program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from resq_tvm.errors import CompileError
from resq_tvm.schedules.npu.hazards import Hazards
from resq_tvm.schedules.npu.kernel_run import Base, KernelRun, Place
from resq_tvm.targets.npu.commands import (
    Command,
    VectorProgram,
)

Run = tuple[Any, int, Sequence[Place]]  # a kernel's PrimFunc, its number, its places


class Assembler:
    """Writes the commands of one program, kernel by kernel.

    Parameters
    ----------
    scratch : (int, int)
        First and last address of the SRAM that tiles may take.
    accumulators : int
        Bytes of the accumulator memory.
    programs : dict
        Vector programs known so far → their numbers; it grows.
    """

    def __init__(
        self, scratch: tuple[int, int], accumulators: int, programs: dict[VectorProgram, int]
    ) -> None:
        self._scratch, self._accumulators = scratch, accumulators
        self._programs = programs
        self.hazards = Hazards()
        self.commands: list[Command] = []
        self._upwards = True

    def kernel(self, func: Any, number: int, places: Sequence[Place]) -> None:
        """Append a kernel's commands.

        Parameters
        ----------
        func : tvm.tirx.PrimFunc
            What `resq_tvm.schedules.npu.emit.emit_npu` wrote.
        number : int
            The kernel's, for the commands to carry.
        places : sequence of Place
            Of the function's parameters.
        """
        run = KernelRun(self, func, number, places)
        # Neighbours take memory from opposite ends, so that the next one can begin early.
        run.allocate(self._upwards)
        self._upwards = not self._upwards
        run.execute()

    def cascade(self, kernels: Sequence[Run], order: Iterable[tuple[int, int]]) -> None:
        """Append the commands of kernels that take turns, band by band of rows.

        Parameters
        ----------
        kernels : sequence of Run
        order : iterable of (int, int)
            Kernel (its place in ``kernels``) and band; every band once, those of a kernel in
            order.

        Raises
        ------
        CompileError
            If their constants and tiles do not fit into the SRAM together.
        """
        runs = [KernelRun(self, *kernel) for kernel in kernels]
        bands = [0] * len(runs)
        order = list(order)
        for kernel, _ in order:
            bands[kernel] += 1
        for run, count in zip(runs, bands, strict=True):
            run.split(count)
        _allocate_together(runs, self.limits["sram"])
        for number, run in enumerate(runs):
            run.allocate(number % 2 == 0, ("acc",))
        for kernel, band in order:
            runs[kernel].band(band)

    def intern(self, program: VectorProgram) -> int:
        """Return the number of a vector program."""
        return self._programs.setdefault(program, len(self._programs))

    @property
    def limits(self) -> dict[str, tuple[int, int]]:
        """Memory → addresses that tiles may take."""
        return {"sram": self._scratch, "acc": (0, self._accumulators)}


def _allocate_together(runs: Sequence[KernelRun], limits: tuple[int, int]) -> None:
    """Give kernels that take turns SRAM: constants for good, tiles one after the other in turn."""
    first, last = limits
    passing: list[tuple[KernelRun, Any, int]] = []
    for run in runs:
        kept = run.kept()
        for buffer, memory, size in run.buffers():
            if memory != "sram":
                continue
            if buffer in kept:
                run.bases[buffer] = Base("sram", first, "sram")
                first += size
            else:
                passing.append((run, buffer, size))
    widest = max((sum(size for own, _, size in passing if own is run) for run in runs), default=0)
    if first + widest > last:
        raise CompileError(
            f"cascade from kernel {runs[0].name} to {runs[-1].name}: constants and tiles take "
            f"{first + widest - limits[0]} bytes of sram, {last - limits[0]} are there; "
            "use smaller bands or compile without cascades"
        )
    address = first
    for run in runs:
        own = [(buffer, size) for kernel, buffer, size in passing if kernel is run]
        if address + sum(size for _, size in own) > last:
            address = first
        for buffer, size in own:
            run.bases[buffer] = Base("sram", address, "sram")
            address += size

"""From the PrimFuncs of an NPU's kernels to the commands of a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from resq_tvm.errors import CompileError
from resq_tvm.schedules.npu.hazards import Hazards
from resq_tvm.schedules.npu.kernel_run import Base, Place
from resq_tvm.schedules.npu.template import Template
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
    templates : dict, optional
        Kernels whose loops were run before; it grows.
    """

    def __init__(
        self,
        scratch: tuple[int, int],
        accumulators: int,
        programs: dict[VectorProgram, int],
        templates: dict[Any, Template] | None = None,
    ) -> None:
        self._scratch, self._accumulators = scratch, accumulators
        self._programs = programs
        self._templates = {} if templates is None else templates
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
        placing = self._placing((func, number, places), 0)
        # Neighbours take memory from opposite ends, so that the next one can begin early.
        placing.allocate(self.limits, self._upwards)
        self._upwards = not self._upwards
        self._write(placing, 0)

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
        order = list(order)
        bands = Counter(kernel for kernel, _ in order)
        runs = [self._placing(kernel, bands[n]) for n, kernel in enumerate(kernels)]
        _allocate_together(runs, self.limits["sram"])
        for number, run in enumerate(runs):
            run.allocate(self.limits, number % 2 == 0, ("acc",))
        for kernel, band in order:
            self._write(runs[kernel], band)

    def _placing(self, run: Run, bands: int) -> _Placing:
        func, number, places = run
        key = (func, bands)
        if key not in self._templates:
            self._templates[key] = Template(func, places, bands)
        return _Placing(self._templates[key], number, places)

    def _write(self, run: _Placing, turn: int) -> None:
        """Append the commands of a turn."""
        bases = tuple(run.bases[n] for n in range(len(run.bases)))
        for entry in run.template.placed(turn, bases, run.number, self._programs):
            waits = self.hazards.command(entry.command.engine, entry.reads, entry.writes)
            self.commands.append(replace(entry.command, waits=waits))

    @property
    def limits(self) -> dict[str, tuple[int, int]]:
        """Memory → addresses that tiles may take."""
        return {"sram": self._scratch, "acc": (0, self._accumulators)}


class _Placing:
    """A kernel's template with the addresses of its parameters and, soon, of its tiles."""

    def __init__(self, template: Template, number: int, places: Sequence[Place]) -> None:
        self.template, self.number = template, number
        self.bases = {n: Base(p.memory, p.address, p.key) for n, p in enumerate(places)}

    def allocate(
        self,
        limits: Mapping[str, tuple[int, int]],
        upwards: bool,
        memories: Sequence[str] = ("sram", "acc"),
    ) -> None:
        """Give every tile buffer of these memories an address."""
        used = {"sram": 0, "acc": 0}
        for buffer, memory, size in self.template.buffers:
            if memory not in memories:
                continue
            first, last = limits[memory]
            address = first + used[memory] if upwards else last - used[memory] - size
            used[memory] += size
            if used[memory] > last - first:
                raise CompileError(
                    f"kernel {self.template.name}: tiles take {used[memory]} bytes "
                    f"of {memory}, {last - first} are there; use smaller tiles"
                )
            self.bases[buffer] = Base(memory, address, memory)


def _allocate_together(runs: Sequence[_Placing], limits: tuple[int, int]) -> None:
    """Give kernels that take turns SRAM: constants for good, tiles one after the other in turn."""
    first, last = limits
    passing: list[tuple[_Placing, int, int]] = []
    for run in runs:
        for buffer, memory, size in run.template.buffers:
            if memory != "sram":
                continue
            if buffer in run.template.kept:
                run.bases[buffer] = Base("sram", first, "sram")
                first += size
            else:
                passing.append((run, buffer, size))
    widest = max((sum(size for own, _, size in passing if own is run) for run in runs), default=0)
    if first + widest > last:
        names = f"{runs[0].template.name} to {runs[-1].template.name}"
        raise CompileError(
            f"cascade from kernel {names}: constants and tiles take "
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

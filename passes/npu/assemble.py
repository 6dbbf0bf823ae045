"""From kernels with places to the commands and host calls of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tvm import relax

from resq_tvm.passes.graph import op_name, shape_of
from resq_tvm.passes.npu.cascade import Cascade
from resq_tvm.passes.npu.host import kernel_function, operator_function
from resq_tvm.passes.npu.items import Item, ProgramItems
from resq_tvm.schedules.npu.codegen import Assembler, Place, Run
from resq_tvm.schedules.npu.single import tensor_place
from resq_tvm.schedules.npu.template import Template
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.targets.npu.commands import (
    Command,
    HostCall,
    Program,
    TensorPlace,
    VectorProgram,
)
from resq_tvm.targets.npu.description import Npu

Emitted = tuple[Any, list[str], FusedKernel]  # PrimFunc, names of its constants, kernel


class ProgramWriter:
    """Writes programs that share parameters, vector programs and the host's functions.

    Parameters
    ----------
    npu : Npu
    templates : dict
        Kernels whose loops were run before; it grows.
    """

    def __init__(self, npu: Npu, templates: dict[Any, Template]) -> None:
        self.npu, self._templates = npu, templates
        self.vector_programs: dict[VectorProgram, int] = {}
        self.host = relax.BlockBuilder()
        self._host_calls = 0

    def program(
        self,
        items: ProgramItems,
        made: Mapping[Any, Emitted],
        numbers: Mapping[str, int],
        params: Mapping[str, Place],
        scratch: tuple[int, int],
    ) -> Program:
        """Write a program whose tensors have places.

        Parameters
        ----------
        items : ProgramItems
        made : mapping
            Variable of a kernel's call → what was emitted for it.
        numbers : mapping
            Kernel's name → its number.
        params : mapping
            Constant's name → its place.
        scratch : (int, int)
            Addresses of the SRAM that kernels' tiles may take.
        """
        assembler = Assembler(
            scratch, self.npu.matrix.accumulator_bytes, self.vector_programs, self._templates
        )
        places = _Places(items, assembler)
        for var in (*items.plan.frames, *items.plan.state_in):
            places.of(var)
        written: list[tuple[Command, ...] | HostCall] = []
        cascades = {c.first: c for c in items.cascades}
        waiting: list[Run] = []
        cascade: Cascade | None = None
        for index, item in enumerate(items.items):
            cascade = cascades.get(index, cascade)
            if item.call is not None:
                if assembler.commands:
                    written.append(tuple(assembler.commands))
                    assembler.commands.clear()
                written.append(self._host_call(items, item))
                for var in (*item.reads, *item.results):
                    places.of(var)
                assembler.hazards.drain()
                continue
            func, names, kernel = made[item.var]
            sparse = kernel.sparse
            maps_in = {} if sparse is None else {m.name: m for m in sparse.maps.values()}
            maps_out = {} if sparse is None else {m.name: m for m in sparse.out_maps.values()}
            found = [
                *(places.of(v) for v in item.reads),
                *(places.of(n) for n in maps_in),
                *(params[n] for n in names),
                *(places.of(v) for v in item.results),
                *(places.of(n) for n in maps_out),
            ]
            run = (func, numbers[kernel.name], found)
            if cascade is None:
                assembler.kernel(*run)
                continue
            waiting.append(run)
            if index == cascade.last:
                assembler.cascade(waiting, cascade.turns)
                waiting, cascade = [], None
        if assembler.commands:
            written.append(tuple(assembler.commands))
        plan = items.plan
        held = plan.state_out if items.name == "keyframe" else plan.state_in
        return Program(
            items.name,
            tuple(_tensor(items, v) for v in plan.frames),
            tuple(_tensor(items, v) for v in plan.outputs),
            tuple(_tensor(items, v) for v in held),
            tuple(written),
        )

    def _host_call(self, items: ProgramItems, item: Item) -> HostCall:
        name = f"host_{self._host_calls}"
        self._host_calls += 1
        if item.kernel is not None:
            kernel_function(self.host, name, item.kernel)
            operator = type(item.kernel.anchor).__name__.lower()
            reads = item.reads
            shapes = [tuple(s.shape) for s in (*item.kernel.inputs, *item.kernel.outputs)]
        else:
            reads = operator_function(self.host, name, item.call)
            operator = op_name(item.call).removeprefix("relax.")
            shapes = [shape_of(v) for v in (*reads, *item.results)]
        return HostCall(
            name,
            operator,
            tuple(_tensor(items, v) for v in reads),
            tuple(_tensor(items, v) for v in item.results),
            tuple(shapes),
        )


class _Places:
    """Makes a program's tensors known to the hazards when they are first met."""

    def __init__(self, items: ProgramItems, assembler: Assembler) -> None:
        self._items, self._assembler = items, assembler
        self._declared: set[str] = set()
        self._begins = {c.first for c in items.cascades}

    def of(self, var: Any) -> Place:
        """Return the place of a variable's tensor, or of the map of that name."""
        value = self._items.values[var if isinstance(var, str) else self._items.root(var)]
        key = f"{value.memory}:{value.address}:{value.first}"
        if key not in self._declared:
            self._declared.add(key)
            end = value.address + value.nbytes
            # What a cascade makes it reads, too, before all of it is there.
            passing = value.first in self._begins
            self._assembler.hazards.declare(key, value.memory, value.address, end, passing)
        return Place(value.memory, value.address, value.nbytes, key)


def _tensor(items: ProgramItems, var: Any) -> TensorPlace:
    value = items.values[items.root(var)]
    spec = replace(items.spec(var), name=var.name)
    return tensor_place(spec, value.memory, value.address)

"""One lowering for an NPU: tensors get places, kernels are written, commands become a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import tvm
from numpy.typing import NDArray

from resq_tvm.errors import CompileError
from resq_tvm.passes.graph import op_name
from resq_tvm.passes.kernel_spec import Thresholds
from resq_tvm.passes.layouts import Plan
from resq_tvm.passes.lower import KernelRecord, Lowered
from resq_tvm.passes.npu.assemble import Emitted, ProgramWriter
from resq_tvm.passes.npu.cascade import Cascade, Planner, place_cascades
from resq_tvm.passes.npu.items import Item, ProgramItems
from resq_tvm.passes.npu.memory import Arena, keep_on_chip, spill
from resq_tvm.schedules.choice import CASCADE, Chosen, Decider
from resq_tvm.schedules.npu.codegen import Place
from resq_tvm.schedules.npu.context import ALIGNMENT, working_bytes
from resq_tvm.schedules.npu.emit import emit_npu
from resq_tvm.schedules.spec import FusedKernel, TensorSpec
from resq_tvm.targets.npu.commands import Stream
from resq_tvm.targets.preset import Target

Plans = Mapping[str, Sequence[Cascade]]  # program's name → its cascades

STATE_MEMORIES: Final = ("auto", "sram", "dram")


@dataclass(frozen=True, eq=False)
class LoweredNpu(Lowered):
    """A lowered network with its command stream and the host's functions.

    ``module`` holds the PrimFuncs of all kernels, ``host`` the functions that host calls name.
    """

    stream: Stream
    host: tvm.IRModule


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Lowering:
    """Writes the programs of a fused module for an NPU.

    Parameters
    ----------
    mod : IRModule
        What `FuseKernels` made.
    target : Target
    decide : callable
        Takes the decision about every kernel that runs on its own.
    state_memory : str
        As of `resq_tvm.passes.npu.lower.lower_npu`.
    plans : mapping
        Program's name → its cascades.

    Raises
    ------
    CompileError
        If something does not fit, or ``state_memory`` is unknown.
    """

    def __init__(
        self,
        mod: tvm.IRModule,
        target: Target,
        decide: Decider,
        state_memory: str,
        plans: Plans,
    ) -> None:
        assert target.npu is not None
        if state_memory not in STATE_MEMORIES:
            raise CompileError(
                f"state memory {state_memory!r} is unknown; use {', '.join(STATE_MEMORIES)}"
            )
        self.mod, self.target, self.npu, self.decide = mod, target, target.npu, decide
        self.state_memory, self.chosen = state_memory, plans
        names = [g.name_hint for g in mod.get_global_vars()]
        self.thresholds = Thresholds()
        self.programs = [
            ProgramItems(Plan(mod, n, target), target, self.thresholds)
            for n in ("keyframe", "residual")
            if n in names
        ]
        self.params: dict[str, NDArray[Any]] = {}
        self.known: dict[Any, str] = {}  # contents of a parameter → its name
        self.addresses: dict[str, int] = {}
        self.records: dict[str, KernelRecord] = {}
        self.functions = tvm.IRModule()
        self.dram = 0
        self.resident = self.npu.sram.bytes - working_bytes(self.npu)
        self.writer = ProgramWriter(self.npu, (self.resident, self.npu.sram.bytes))

    def plans(self, lengths: Sequence[int]) -> list[Plans]:
        """Return plans of cascades, one for each of these lengths that they have at most."""
        self._require_support()
        self._place_state()
        room = (self.state_end, self.resident)
        working = self.npu.sram.bytes - self.resident
        planners = {p.name: Planner(p, self.target, room, working) for p in self.programs}
        return [{n: p.plan(longest) for n, p in planners.items()} for longest in lengths]

    def run(self) -> LoweredNpu:
        """Write everything; once only."""
        self._require_support()
        self._place_state()
        temporary = self._place_frames()
        return self._write(temporary)

    def _require_support(self) -> None:
        complaints = [c for p in self.programs for c in p.complaints]
        if complaints:
            raise CompileError(
                f"{len(complaints)} kernel(s) cannot run on {self.npu.name}: "
                f"{'; '.join(complaints)}; use a machine that has these or calibrate without them"
            )

    def _write(self, temporary: int) -> LoweredNpu:
        for program in self.programs:
            on_chip = Arena(self.state_end, self.resident)
            program.cascades = list(self.chosen.get(program.name, ()))
            place_cascades(program, program.cascades, on_chip)
            keep_on_chip(program.values.values(), on_chip)
        kernels = {p.name: self._emit(p) for p in self.programs}
        first = self._place_params(temporary)
        top = first
        for program in self.programs:
            arena = Arena(first)
            spill(program.values.values(), arena)
            top = max(top, arena.top)
        self.dram = top
        numbers = {name: i for i, name in enumerate(self.records)}
        constants = {n: Place("dram", a, self.params[n].nbytes) for n, a in self.addresses.items()}
        programs = {
            p.name: self.writer.program(p, kernels[p.name], numbers, constants)
            for p in self.programs
        }
        stream = Stream(
            self.npu.name, tuple(self.records), tuple(self.writer.vector_programs),
            self.addresses, self.dram, programs,
        )  # fmt: skip
        key = self.programs[0].plan
        opaque = {
            p.name: [f"{op_name(i.call).removeprefix('relax.')} {i.var.name}"
                     if i.kernel is None else f"{type(i.kernel.anchor).__name__} {i.kernel.name}"
                     for i in p.items if i.call is not None]
            for p in self.programs
        }  # fmt: skip
        state = [key.physical_type(v) for v in key.state_out]
        return LoweredNpu(
            self.mod, self.functions, self.params, self.records, opaque, state, [],
            dict(self.thresholds.values), stream, self.writer.host.finalize(),
        )  # fmt: skip

    # Places ----------------------------------------------------------------------------------

    def _place_state(self) -> None:
        """Give state one place for both programs."""
        key = self.programs[0]
        made = [key.values[key.root(v)] for v in key.plan.state_out]
        room = self.resident if self.state_memory == "sram" else self.resident // 2
        self.state_end = 0
        movable = set(made) - {v for v, may in zip(made, self._may_stay(), strict=True) if not may}
        needed = sum(_aligned(v.nbytes) for v in movable)
        if self.state_memory == "sram" and needed > room:
            raise CompileError(
                f"state takes {needed} bytes, {self.npu.name} has {room} bytes of SRAM for "
                "tensors; let it lie in DRAM"
            )
        if self.state_memory == "dram" or needed > room:
            movable = set()
        places = []
        for value in made:
            if value.address < 0 and value in movable:
                value.memory, value.address = "sram", self.state_end
                self.state_end += _aligned(value.nbytes)
            elif value.address < 0:
                value.address = self.dram
                self.dram += _aligned(value.nbytes)
            places.append((value.memory, value.address))
        for program in self.programs[1:]:
            plan = program.plan
            for before, after in zip(plan.state_in, plan.state_out, strict=True):
                if before != after and not before.same_as(after):
                    raise CompileError(
                        f"program {program.name} changes its state ({after.name}), which NPUs do "
                        "not support; calibrate with residual='pairwise'"
                    )
            for var, (memory, address) in zip(plan.state_in, places, strict=True):
                value = program.values[var]
                value.memory, value.address = memory, address

    def _may_stay(self) -> list[bool]:
        """Return which state the host neither reads nor writes: it may stay on the chip."""
        key = self.programs[0].plan
        free = [True] * len(key.state_out)
        for program in self.programs:
            plan = program.plan
            hosts = {program.root(v) for v in (*plan.frames, *plan.outputs)}
            held = plan.state_out if program is self.programs[0] else plan.state_in
            for index, var in enumerate(map(program.root, held)):
                free[index] &= program.values[var].movable and var not in hosts
        return free

    def _place_frames(self) -> int:
        """Give frames and outputs places in DRAM; return the first address behind them."""
        top = self.dram
        for program in self.programs:
            address = self.dram
            for var in (*program.plan.frames, *program.plan.outputs):
                value = program.values[program.root(var)]
                if value.address < 0:
                    value.address = address
                    address += _aligned(value.nbytes)
            top = max(top, address)
        return top

    def _place_params(self, first: int) -> int:
        for name, array in self.params.items():
            self.addresses[name] = first
            first += _aligned(array.nbytes)
        return first

    # Kernels ---------------------------------------------------------------------------------

    def _emit(self, program: ProgramItems) -> dict[Any, Emitted]:
        """Write the PrimFuncs of a program: variable → function, its constants, its kernel."""
        made = {}
        index = 0
        thresholds = tuple(float(np.float32(v)) for v in self.thresholds.values.values())
        banded = {
            id(program.items[c.first + i]): decision
            for c in program.cascades
            for i, decision in enumerate(c.decisions)
        }
        for item in program.items:
            if item.kernel is None or item.call is not None:
                continue
            kernel = self._placed(program, item)
            decision = banded.get(id(item))
            chosen = self.decide(kernel) if decision is None else Chosen(decision, CASCADE)
            func, constants = emit_npu(kernel, chosen.decision, self.target, thresholds)
            names = [self._param(f"{kernel.name}.{n}", a) for n, a in constants]
            order = list(self.params)
            self.records[kernel.name] = KernelRecord(
                program.name, item.layer, kernel, chosen.decision, chosen.origin,
                tuple(order.index(n) for n in names), index,
            )  # fmt: skip
            self.functions[kernel.name] = func
            made[item.var] = (func, names, kernel)
            index += 1
        return made

    def _param(self, name: str, array: NDArray[Any]) -> str:
        """Add a parameter; return the name under which its bytes are found."""
        array = np.ascontiguousarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        known = self.known.setdefault(key, name)
        if known == name:
            self.params[name] = array
        return known

    def _placed(self, program: ProgramItems, item: Item) -> FusedKernel:
        """Return a kernel whose tensors say where they stay."""
        kernel = item.kernel
        assert kernel is not None

        def lay(spec: TensorSpec, var: Any) -> TensorSpec:
            value = program.values[program.root(var)]
            memory = "sram" if value.memory == "sram" else ""
            return replace(spec, memory=memory, ring=value.spec.ring)

        def lay_map(spec: TensorSpec) -> TensorSpec:
            value = program.values[spec.name]
            return replace(spec, memory="sram" if value.memory == "sram" else "")

        sparse = kernel.sparse
        if sparse is not None:
            sparse = replace(
                sparse,
                maps={n: lay_map(m) for n, m in sparse.maps.items()},
                out_maps={n: lay_map(m) for n, m in sparse.out_maps.items()},
            )
        return replace(
            kernel,
            inputs=tuple(lay(s, v) for s, v in zip(kernel.inputs, item.reads, strict=True)),
            outputs=tuple(lay(s, v) for s, v in zip(kernel.outputs, item.results, strict=True)),
            sparse=sparse,
        )

"""One lowering for an NPU: tensors get places, kernels are written, commands become a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import tvm
from numpy.typing import NDArray

from resq_tvm.errors import CompileError
from resq_tvm.passes.graph import op_name
from resq_tvm.passes.kernel_spec import Thresholds
from resq_tvm.passes.layouts import Plan
from resq_tvm.passes.lower import Lowered
from resq_tvm.passes.npu.arrangement import Arrangement, network_key
from resq_tvm.passes.npu.assemble import Emitted, ProgramWriter
from resq_tvm.passes.npu.cascade import Cascade, Findings, Planner, place_cascades
from resq_tvm.passes.npu.items import Item, ProgramItems
from resq_tvm.passes.npu.memory import Arena, keep_on_chip, spill
from resq_tvm.passes.programs import KernelRecord
from resq_tvm.schedules.choice import CASCADE, NETWORK, Chosen, Decider
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.codegen import Place
from resq_tvm.schedules.npu.context import aligned, working_bytes
from resq_tvm.schedules.npu.emit import emit_npu, fits
from resq_tvm.schedules.npu.rules import decide_npu
from resq_tvm.schedules.npu.template import Template
from resq_tvm.schedules.spec import FusedKernel, TensorSpec
from resq_tvm.targets.npu.commands import Stream
from resq_tvm.targets.npu.description import Npu
from resq_tvm.targets.preset import Target

STATE_MEMORIES: Final = ("auto", "sram", "dram")
_MOST_EMITTED = 4096  # kernels that a source keeps in memory


@dataclass(frozen=True, eq=False)
class LoweredNpu(Lowered):
    """A lowered network with its command stream and the host's functions.

    ``module`` holds the PrimFuncs of all kernels, ``host`` the functions that host calls name.
    """

    stream: Stream
    host: tvm.IRModule


class Source:
    """The programs of a fused module, read once: what lowerings of it share.

    Parameters
    ----------
    mod : IRModule
        What `FuseKernels` made.
    target : Target
    decide : callable
        Takes the decision about every kernel that runs on its own, if the arrangement has none.
    state_memory : str
        As of `resq_tvm.passes.npu.lower.lower_npu`.

    Raises
    ------
    CompileError
        If something cannot run there (all of it is listed), or ``state_memory`` is unknown.
    """

    def __init__(
        self, mod: tvm.IRModule, target: Target, decide: Decider, state_memory: str
    ) -> None:
        if state_memory not in STATE_MEMORIES:
            raise CompileError(
                f"state memory {state_memory!r} is unknown; use {', '.join(STATE_MEMORIES)}"
            )
        self.mod, self.target, self.decide, self.state_memory = mod, target, decide, state_memory
        names = [g.name_hint for g in mod.get_global_vars()]
        self.thresholds = Thresholds()
        self.programs = [
            ProgramItems(Plan(mod, n, target), target, self.thresholds)
            for n in ("keyframe", "residual")
            if n in names
        ]
        complaints = [c for p in self.programs for c in p.complaints]
        if complaints:
            raise CompileError(
                f"{len(complaints)} kernel(s) cannot run on {target.name}: "
                f"{'; '.join(complaints)}; use a machine that has these or calibrate without them"
            )
        self._emitted: dict[Any, tuple[Any, list[tuple[str, NDArray[Any]]]]] = {}
        self.templates: dict[Any, Template] = {}
        self._planners: dict[Any, Planner] = {}
        self._findings: dict[tuple[str, int], Findings] = {}

    @property
    def names(self) -> list[str]:
        """Names of the programs."""
        return [p.name for p in self.programs]

    def largest_state(self) -> list[int]:
        """Return the numbers of the state tensors, the largest first."""
        program = self.programs[0]
        sizes = [program.values[program.root(v)].nbytes for v in program.plan.state_out]
        return sorted(range(len(sizes)), key=lambda n: -sizes[n])

    @property
    def key(self) -> str:
        """As of `resq_tvm.passes.npu.arrangement.network_key`."""
        return network_key(self.programs, self.state_memory)

    def planner(self, name: str, arrangement: Arrangement) -> Planner:
        """Return the planner of a program with the state and the bytes for tiles that it has."""
        part = arrangement.program(name)
        key = (name, arrangement.state, part.tile_bytes)
        if key not in self._planners:
            self._planners[key] = Lowering(self, arrangement, (name,)).planner(name)
        return self._planners[key]

    def findings(self, name: str, border: int) -> Findings:
        """Return what planners of a program found, with tiles above that address of the SRAM."""
        return self._findings.setdefault((name, border), Findings())

    def emit(
        self, kernel: FusedKernel, decision: Decision, target: Target
    ) -> tuple[Any, list[tuple[str, NDArray[Any]]]]:
        """Write a kernel, as of `resq_tvm.schedules.npu.emit.emit_npu`; the same one only once."""
        sparse = kernel.sparse
        maps = () if sparse is None else (*sparse.maps.values(), *sparse.out_maps.values())
        places = tuple((s.memory, s.ring) for s in (*kernel.inputs, *kernel.outputs, *maps))
        key = (kernel.name, places, decision, working_bytes(_machine(target)))
        if key not in self._emitted:
            thresholds = tuple(float(np.float32(v)) for v in self.thresholds.values.values())
            if len(self._emitted) >= _MOST_EMITTED:
                self._emitted.clear()
                self.templates.clear()
            self._emitted[key] = emit_npu(kernel, decision, target, thresholds)
        return self._emitted[key]


class Lowering:
    """Writes programs for an NPU, once.

    Parameters
    ----------
    source : Source
    arrangement : Arrangement
    only : sequence of str, optional
        Names of the programs that are written; all by default.

    Raises
    ------
    CompileError
        If something does not fit.
    """

    def __init__(
        self, source: Source, arrangement: Arrangement, only: Sequence[str] | None = None
    ) -> None:
        self.source, self.arrangement = source, arrangement
        npu = source.target.npu
        assert npu is not None
        self.npu, self.mod = npu, source.mod
        self.programs = [p.fresh() for p in source.programs]
        self.written = [p for p in self.programs if only is None or p.name in only]
        self.targets = {
            n: replace(source.target, npu=npu.with_tile_bytes(arrangement.program(n).tile_bytes))
            if arrangement.program(n).tile_bytes
            else source.target
            for n in source.names
        }
        # Tensors of a program lie below, tiles above.
        self.borders = {
            n: npu.sram.bytes - working_bytes(_machine(t)) for n, t in self.targets.items()
        }
        self.params: dict[str, NDArray[Any]] = {}
        self.known: dict[Any, str] = {}  # contents of a parameter → its name
        self.addresses: dict[str, int] = {}
        self.records: dict[str, KernelRecord] = {}
        self.functions = tvm.IRModule()
        self.dram = 0
        self.writer = ProgramWriter(npu, source.templates)
        self._place_state()

    def planner(self, name: str) -> Planner:
        """Return what finds a program's cascades."""
        program = next(p for p in self.programs if p.name == name)
        border = self.borders[name]
        room = (self.state_end, border)
        findings = self.source.findings(name, border)
        return Planner(program, self.targets[name], room, self.npu.sram.bytes - border, findings)

    def run(self) -> LoweredNpu:
        """Write everything; once only."""
        return self._write(self._place_frames())

    def _write(self, temporary: int) -> LoweredNpu:
        for program in self.written:
            on_chip = Arena(self.state_end, self.borders[program.name])
            program.cascades = self._cascades(program.name)
            place_cascades(program, program.cascades, on_chip)
            keep_on_chip(program.values.values(), on_chip)
        kernels = {p.name: self._emit(p) for p in self.written}
        first = self._place_params(temporary)
        top = first
        for program in self.written:
            arena = Arena(first)
            spill(program.values.values(), arena)
            top = max(top, arena.top)
        self.dram = top
        numbers = {name: i for i, name in enumerate(self.records)}
        constants = {n: Place("dram", a, self.params[n].nbytes) for n, a in self.addresses.items()}
        programs = {
            p.name: self.writer.program(
                p, kernels[p.name], numbers, constants, (self.borders[p.name], self.npu.sram.bytes)
            )
            for p in self.written
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
            for p in self.written
        }  # fmt: skip
        state = [key.physical_type(v) for v in key.state_out]
        return LoweredNpu(
            self.mod, self.functions, self.params, self.records, opaque, state, [],
            dict(self.source.thresholds.values), stream, self.writer.host.finalize(),
        )  # fmt: skip

    def _cascades(self, name: str) -> list[Cascade]:
        """Return the cascades of a program's groups."""
        part = self.arrangement.program(name)
        planner = self.source.planner(name, self.arrangement)
        found: list[Cascade] = []
        for group in part.groups:
            cascade = planner.banded(group, part.tiles)
            if cascade is None or (found and group.first <= found[-1].last):
                raise CompileError(
                    f"arrangement: items {group.first} to {group.last} of program {name} do not "
                    f"fit {self.npu.name} in bands of {group.rows} rows; tune the network again"
                )
            found.append(cascade)
        return found

    # Places ----------------------------------------------------------------------------------

    def _place_state(self) -> None:
        """Give state one place for both programs."""
        key = self.programs[0]
        made = [key.values[key.root(v)] for v in key.plan.state_out]
        border = min(self.borders[p.name] for p in self.written)
        memory = self.source.state_memory
        self.state_end = 0
        chosen = self.arrangement.state
        room = border if memory == "sram" or chosen is not None else border // 2
        movable = {v for v, may in zip(made, self._may_stay(), strict=True) if may}
        if chosen is not None:
            movable &= {made[n] for n in chosen if 0 <= n < len(made)}
        needed = sum(aligned(v.nbytes) for v in movable)
        if needed > room and (memory == "sram" or chosen is not None):
            raise CompileError(
                f"state takes {needed} bytes, {self.npu.name} has {room} bytes of SRAM for "
                "tensors; let it lie in DRAM"
            )
        if memory == "dram" or needed > room:
            movable = set()
        places = []
        for value in made:
            if value.address < 0 and value in movable:
                value.memory, value.address = "sram", self.state_end
                self.state_end += aligned(value.nbytes)
            elif value.address < 0:
                value.address = self.dram
                self.dram += aligned(value.nbytes)
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
                    address += aligned(value.nbytes)
            top = max(top, address)
        return top

    def _place_params(self, first: int) -> int:
        for name, array in self.params.items():
            self.addresses[name] = first
            first += aligned(array.nbytes)
        return first

    # Kernels ---------------------------------------------------------------------------------

    def _emit(self, program: ProgramItems) -> dict[Any, Emitted]:
        """Write the PrimFuncs of a program: variable → function, its constants, its kernel."""
        made = {}
        index = 0
        target, tiles = self.targets[program.name], self.arrangement.program(program.name).tiles
        banded = {
            id(program.items[c.first + i]): decision
            for c in program.cascades
            for i, decision in enumerate(c.decisions)
        }
        for number, item in enumerate(program.items):
            if item.kernel is None or item.call is not None:
                continue
            kernel = self._placed(program, item)
            if id(item) in banded:
                chosen = Chosen(banded[id(item)], CASCADE)
            elif number in tiles:
                chosen = Chosen(tiles[number], NETWORK)
            else:
                chosen = self._decide(kernel, target)
            func, constants = self.source.emit(kernel, chosen.decision, target)
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

    def _decide(self, kernel: FusedKernel, target: Target) -> Chosen:
        """Return the decision about a kernel that the arrangement says nothing about."""
        chosen = self.source.decide(kernel)
        if target is self.source.target or fits(kernel, chosen.decision, target):
            return chosen
        return replace(chosen, decision=decide_npu(kernel, target))

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


def _machine(target: Target) -> Npu:
    assert target.npu is not None
    return target.npu

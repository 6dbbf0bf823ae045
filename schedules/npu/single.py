"""One kernel as a stream of its own: what tests and the tuner run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import CompileError
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.codegen import Assembler, Place
from resq_tvm.schedules.npu.context import aligned, working_bytes
from resq_tvm.schedules.npu.emit import emit_npu
from resq_tvm.schedules.npu.tensors import format_of, tensor_bytes
from resq_tvm.schedules.spec import FusedKernel, TensorSpec
from resq_tvm.targets.npu.commands import Program, Stream, TensorPlace
from resq_tvm.targets.preset import Target

ENTRY = "kernel"


@dataclass(frozen=True)
class Single:
    """A kernel's stream, its DRAM image with the constants in it, and its tensors.

    ``tensors`` are those of the kernel, and its maps, by name.
    """

    stream: Stream
    dram: NDArray[np.uint8]
    tensors: dict[str, TensorPlace]


def tensor_place(spec: TensorSpec, memory: str, address: int) -> TensorPlace:
    """Return where a tensor lies."""
    return TensorPlace(spec.name, memory, address, spec.h, spec.w, spec.c, format_of(spec))


def single(
    kernel: FusedKernel, decision: Decision, target: Target, thresholds: tuple[float, ...] = ()
) -> Single:
    """Write a kernel and lay it out in memory.

    Parameters
    ----------
    kernel, decision, target, thresholds
        As of `resq_tvm.schedules.npu.emit.emit_npu`.

    Raises
    ------
    CompileError
        If the tiles do not fit.
    """
    func, constants = emit_npu(kernel, decision, target, thresholds)
    return lay_out(func, [array for _, array in constants], kernel, target)


def lay_out(
    func: Any, constants: Sequence[NDArray[Any]], kernel: FusedKernel, target: Target
) -> Single:
    """Lay a kernel that was written out in memory.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
    constants : sequence of ndarray
        As of `resq_tvm.schedules.npu.emit.emit_npu`.
    kernel : FusedKernel
    target : Target
    """
    npu = target.npu
    assert npu is not None
    sparse = kernel.sparse
    maps_in = {} if sparse is None else {m.name: m for m in sparse.maps.values()}
    maps_out = {} if sparse is None else {m.name: m for m in sparse.out_maps.values()}
    sizes = {"dram": 0, "sram": 0}

    def take(memory: str, nbytes: int) -> int:
        address = sizes[memory]
        sizes[memory] += aligned(nbytes)
        return address

    tensors: dict[str, TensorPlace] = {}

    def place(spec: TensorSpec) -> Place:
        memory = spec.memory or "dram"
        address = take(memory, tensor_bytes(spec))
        tensors[spec.name] = tensor_place(spec, memory, address)
        return Place(memory, address, tensor_bytes(spec), spec.name)

    inputs = (*kernel.inputs, *maps_in.values())
    outputs = (*kernel.outputs, *maps_out.values())
    places = [place(s) for s in inputs]
    contents: list[tuple[int, NDArray[Any]]] = []
    for array in constants:
        address = take("dram", array.nbytes)
        contents.append((address, array))
        places.append(Place("dram", address, array.nbytes))
    places += [place(s) for s in outputs]
    programs: dict[Any, int] = {}
    scratch = (npu.sram.bytes - working_bytes(npu), npu.sram.bytes)
    if sizes["sram"] > scratch[0]:
        raise CompileError(
            f"kernel {kernel.name}: tensors that stay in SRAM take {sizes['sram']} bytes, "
            f"{npu.name} has {scratch[0]} for them; let some lie in DRAM"
        )
    assembler = Assembler(scratch, npu.matrix.accumulator_bytes, programs)
    for p in places:
        if p.key is not None:
            assembler.hazards.declare(p.key, p.memory, p.address, p.address + p.nbytes)
    assembler.kernel(func, 0, places)
    dram = np.zeros(sizes["dram"], np.uint8)
    for address, array in contents:
        dram[address : address + array.nbytes] = array.reshape(-1).view(np.uint8)
    program = Program(
        ENTRY,
        tuple(tensors[s.name] for s in inputs),
        tuple(tensors[s.name] for s in outputs),
        (),
        (tuple(assembler.commands),),
    )
    stream = Stream(npu.name, (kernel.name,), tuple(programs), {}, sizes["dram"], {ENTRY: program})
    return Single(stream, dram, tensors)


def plain(kernel: FusedKernel, npu_bits: dict[str, int] | None = None) -> FusedKernel:
    """Return a kernel with its tensors as they lie on an NPU: no halo, no padding channels.

    ``npu_bits`` says at how many bits codes are stored; 8 by default.
    """
    bits = npu_bits or {}

    def lay(spec: TensorSpec) -> TensorSpec:
        width = bits.get(spec.name, 8) if spec.dtype in ("int8", "uint8") else 0
        dtype = "int8" if width else spec.dtype
        return replace(spec, c_phys=spec.c, halo=(0, 0, 0, 0), bits=width, dtype=dtype)

    return replace(
        kernel,
        inputs=tuple(lay(s) for s in kernel.inputs),
        outputs=tuple(lay(s) for s in kernel.outputs),
    )

"""Hand-made streams for tests of the functional simulator: memories, operands, programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.spec import CodeFormat, FusedKernel, Node, Store, TensorSpec
from resq_tvm.targets.npu.codes import CODE_FORMATS, pack
from resq_tvm.targets.npu.commands import (
    Command,
    HostCall,
    Operand,
    Plane,
    Program,
    Step,
    Stream,
    Vector,
    VectorProgram,
    format_bits,
    pixel_bytes,
)
from resq_tvm.targets.npu.description import Npu, preset_npus
from resq_tvm.targets.npu.functional import Executed, Machine

DTYPES = {"f32": np.float32, "f16": np.float16, "u8": np.uint8, "i32": np.int32}


def small_npu(sram: int = 1 << 18, accumulators: int = 1 << 16) -> Npu:
    """Return npu-micro with memories of this size."""
    npu = preset_npus()["npu-micro"]
    return npu.model_copy(
        update={
            "sram": npu.sram.model_copy(update={"bytes": sram}),
            "matrix": npu.matrix.model_copy(update={"accumulator_bytes": accumulators}),
        }
    )


def raw_bytes(value: NDArray[Any], format: str) -> NDArray[np.uint8]:
    """Return the bytes of a dense tensor, (h, w, c)."""
    if format in CODE_FORMATS:
        return pack(value, CODE_FORMATS[format]).reshape(-1)
    return np.ascontiguousarray(value, DTYPES[format]).view(np.uint8).reshape(-1)


@dataclass
class Bench:
    """Lays tensors out in SRAM one after another and runs commands on them."""

    npu: Npu = field(default_factory=small_npu)
    programs: list[VectorProgram] = field(default_factory=list)
    contents: list[tuple[int, NDArray[np.uint8]]] = field(default_factory=list)
    end: int = 3  # odd, so that nothing relies on alignment
    dram: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(16, np.uint8))
    machine: Machine | None = None
    before: NDArray[np.uint8] | None = None  # SRAM as the first command found it

    def reserve(self, nbytes: int) -> int:
        """Return the address of fresh bytes."""
        self.end += nbytes
        return self.end - nbytes

    def blank(self, h: int, w: int, c: int, format: str, gap: int = 0) -> Operand:
        """Return a tensor that holds junk; ``gap`` bytes lie between its pixels."""
        pixel = pixel_bytes(c, format) + gap
        return Operand("sram", format, self.reserve(h * w * pixel), h, w, c, w * pixel, pixel)

    def put(self, value: NDArray[Any], format: str) -> Operand:
        """Return a tensor with these elements, (h, w, c)."""
        operand = self.blank(*value.shape, format)
        self.contents.append((operand.address, raw_bytes(value, format)))
        return operand

    def program(self, *steps: Step) -> int:
        """Return the number of a new vector program."""
        self.programs.append(steps)
        return len(self.programs) - 1

    def run(
        self, *items: Command | HostCall, threshold_scale: float = 1.0, **options: Any
    ) -> Executed:
        """Run commands, and host calls between them, on a new machine."""
        runs: list[Any] = []
        for item in items:
            if isinstance(item, HostCall):
                runs.append(item)
            elif runs and isinstance(runs[-1], tuple):
                runs[-1] = (*runs[-1], item)
            else:
                runs.append((item,))
        program = Program("keyframe", (), (), (), tuple(runs))
        stream = Stream(
            self.npu.name,
            ("first", "second"),
            tuple(self.programs),
            {},
            self.dram.size,
            {"keyframe": program},
        )
        self.machine = Machine(self.npu, stream, self.dram)
        for address, data in self.contents:
            self.machine.sram[address : address + data.size] = data
        self.before = self.machine.sram.copy()
        self.machine.threshold_scale = threshold_scale
        return self.machine.run("keyframe", **options)

    def get(self, operand: Operand) -> NDArray[Any]:
        """Return a dense tensor's elements after `run`, codes as int32."""
        assert self.machine is not None
        memory = self.machine.sram if operand.memory == "sram" else self.machine.accumulators
        size = operand.h * operand.w * operand.pixel
        raw = memory[operand.address : operand.address + size].copy()
        raw = raw.reshape(operand.h, operand.w, operand.pixel)
        if operand.format in CODE_FORMATS:
            bits = format_bits(operand.format)
            fields = raw[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
            codes = (fields & ((1 << bits) - 1)).astype(np.int32).reshape(*raw.shape[:2], -1)
            codes = codes[..., : operand.c]
            return np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
        return raw.view(DTYPES[operand.format])[..., : operand.c]


def plane_of(operand: Operand, first: int = 0, channels: int | None = None) -> Plane:
    """Return codes as a matrix command reads them."""
    return Plane(
        operand.address,
        operand.h,
        operand.w,
        first,
        operand.c - first if channels is None else channels,
        operand.row,
        operand.pixel,
        format_bits(operand.format),
    )


def tensor(name: str, h: int, w: int, c: int, dtype: str = "float32") -> TensorSpec:
    """Return a tensor of a fused kernel; its layout on a CPU is of no interest here."""
    return TensorSpec(name, h, w, c, dtype, c)


def kernel_of(
    anchor: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    nodes: tuple[Node, ...],
    stores: tuple[Store, ...],
    vectors: dict[str, NDArray[np.float32]] | None = None,
) -> FusedKernel:
    """Return a fused kernel."""
    first = outputs[0]
    code = CodeFormat("int8", 0)
    size = (first.h, first.w, first.c)
    return FusedKernel("k", anchor, *size, inputs, outputs, nodes, stores, code, vectors or {})


def steps_of(kernel: FusedKernel, anchor: Step, formats: dict[str, int]) -> VectorProgram:
    """Return a kernel's nodes as a vector program.

    Parameters
    ----------
    anchor : Step
        Stands for node ``anchor``.
    formats : dict of str to int
        Tensor or vector → number of its operand.
    """
    steps = []
    for node in kernel.nodes:
        if node.op == "anchor":
            steps.append(anchor)
        elif node.op in ("load", "vector"):
            steps.append(Step("read", index=formats[node.name]))
        else:
            steps.append(Step(node.op, node.args, node.value, node.limit))
    writes = [Step("write", (s.node,), index=formats[s.name]) for s in kernel.stores]
    return (*steps, *writes)


def whole(program: int, operands: tuple[Operand, ...], h: int, w: int, c: int) -> Vector:
    """Return a vector command on a whole tensor."""
    return Vector(program, h, w, c, operands)

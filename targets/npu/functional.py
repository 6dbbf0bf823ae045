"""The functional simulator: executes the commands of a program on memories, bit by bit.

It knows no time. Commands run in the order of the stream, or in any other that is asked for: with
the order in which `resq_tvm.targets.npu.timing` starts them, a missing wait shows up as a wrong
result, all the more as no memory is empty at first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from resq_tvm.errors import ArtifactError
from resq_tvm.targets.npu.codes import CODE_FORMATS
from resq_tvm.targets.npu.commands import (
    Command,
    HostCall,
    Load,
    Matrix,
    Operand,
    Program,
    Store,
    Stream,
    TensorPlace,
    Transfer,
    Vector,
)
from resq_tvm.targets.npu.cost import block_classes, pixel_blocks
from resq_tvm.targets.npu.description import Npu
from resq_tvm.targets.npu.memory import Fault, Memory, filled_with_junk
from resq_tvm.targets.npu.unit_matrix import MatrixUnit, bits_of
from resq_tvm.targets.npu.unit_operands import read_operand, write_operand
from resq_tvm.targets.npu.vector_unit import PlannedStep, plan, run_vector

_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}  # pieces moved as one

RunHost = Callable[[HostCall, "Machine"], None]


@dataclass
class Executed:
    """What a run of a program found out.

    Attributes
    ----------
    blocks : dict
        Number of a matrix command with a bits map → its blocks of output pixels by the bits that
        they need (`resq_tvm.targets.npu.cost.block_classes`). Commands are numbered as in
        ``Program.commands``.
    skipped : set
        Numbers of the commands whose flag was 0.
    """

    blocks: dict[int, dict[int, int]] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)


class Machine:
    """An NPU with its memories; runs the programs of a stream.

    Parameters
    ----------
    npu : Npu
    stream : Stream
    dram : ndarray of uint8 (stream.dram_bytes,)
        The DRAM image, with parameters in place; programs change it.

    Attributes
    ----------
    threshold_scale : float
        Multiplies every threshold of the policy (``choose``), in float32.

    Raises
    ------
    ArtifactError
        If the image is not of the stream's size, or the stream is of another machine.

    Notes
    -----
    SRAM and accumulators hold junk at first and keep what they hold from run to run.
    """

    def __init__(self, npu: Npu, stream: Stream, dram: NDArray[np.uint8]) -> None:
        if stream.npu != npu.name:
            raise ArtifactError(f"the stream is for {stream.npu!r}, not for {npu.name!r}")
        if dram.dtype != np.uint8 or dram.shape != (stream.dram_bytes,):
            raise ArtifactError(
                f"a DRAM image of {dram.size} {dram.dtype} is not of the {stream.dram_bytes} bytes "
                "that the stream names; compile again"
            )
        if not (dram.flags.c_contiguous and dram.flags.writeable):
            raise ArtifactError("the DRAM image cannot be written; pass a copy")
        self.npu = npu
        self.stream = stream
        self.threshold_scale = 1.0
        self._dram = Memory("DRAM", dram)
        self._sram = Memory("SRAM", filled_with_junk(npu.sram.bytes, 1))
        accumulators = filled_with_junk(npu.matrix.accumulator_bytes, 2)
        self._accumulators = Memory("accumulator", accumulators)
        self._matrix = MatrixUnit(self._sram, self._accumulators)
        self._plans: dict[int, tuple[PlannedStep, ...]] = {}

    @property
    def dram(self) -> NDArray[np.uint8]:
        """The DRAM image."""
        return self._dram.data

    @property
    def sram(self) -> NDArray[np.uint8]:
        """The SRAM's bytes."""
        return self._sram.data

    @property
    def accumulators(self) -> NDArray[np.uint8]:
        """The accumulator memory's bytes."""
        return self._accumulators.data

    def run(
        self,
        program_name: str,
        host: RunHost | None = None,
        order: Sequence[int] | None = None,
    ) -> Executed:
        """Run a program.

        Parameters
        ----------
        program_name : str
        host : callable, optional
            Runs a host call: reads its operands from the machine and writes its results there.
        order : sequence of int, optional
            Numbers of all commands in the order in which to run them. Host calls stay where they
            are: commands before one run before it.

        Raises
        ------
        ArtifactError
            If the program is unknown, a command reaches outside a memory or is malformed (the
            message names it), or there is a host call and no ``host``.
        ValueError
            If ``order`` does not name every command once.
        """
        program = self._program(program_name)
        executed = Executed()
        begin = 0
        orders = _split_order(program, order)
        # The products are many and small. Threads of a BLAS gain little by them, and lose much on a
        # busy machine, where they wait for each other at every product.
        with np.errstate(all="ignore"), _blas().limit(limits=1):
            for item, chosen in zip(program.items, orders, strict=True):
                if isinstance(item, HostCall):
                    if host is None:
                        raise ArtifactError(
                            f"program {program_name!r} calls {item.function!r} on the host, and "
                            "nobody runs host calls; pass `host`"
                        )
                    host(item, self)
                    continue
                for local in chosen:
                    command = item[local]
                    try:
                        self._run_command(begin + local, command, executed)
                    except Fault as fault:
                        place = self._describe(program_name, begin + local, command)
                        raise ArtifactError(f"{place}: {fault}; compile again") from None
                    except (ValueError, IndexError, KeyError) as error:
                        place = self._describe(program_name, begin + local, command)
                        message = f"{place} is malformed ({error!r}); compile again"
                        raise ArtifactError(message) from error
                begin += len(item)
        return executed

    def read(self, place: TensorPlace) -> NDArray[Any]:
        """Return a tensor.

        Returns
        -------
        ndarray (h, w, c)
            float32 or float16; codes as int8, maps of bits as uint8, accumulators as int32.
        """
        memory = self._memory_of(place)
        try:
            value = read_operand(memory, _operand(place))
        except Fault as fault:
            raise ArtifactError(f"tensor {place.name!r}: {fault}; compile again") from None
        kinds = {"i32": np.int32, "f32": np.float32, "f16": np.float16, "u8": np.uint8}
        return value.astype(kinds.get(place.format, np.int8))

    def write(self, place: TensorPlace, value: NDArray[Any]) -> None:
        """Write a tensor of ``(h, w, c)`` elements, converted to its format.

        Raises
        ------
        ArtifactError
            If the value is of another shape, its codes do not fit, or the tensor lies outside.
        """
        if value.shape != (place.h, place.w, place.c):
            shape = (place.h, place.w, place.c)
            raise ArtifactError(f"tensor {place.name!r} is {shape}, and not {value.shape}")
        try:
            write_operand(self._memory_of(place), _operand(place), value)
        except Fault as fault:
            raise ArtifactError(f"tensor {place.name!r}: {fault}") from None

    def _program(self, name: str) -> Program:
        try:
            return self.stream.programs[name]
        except KeyError:
            raise ArtifactError(
                f"the stream has no program {name!r}; it has {', '.join(self.stream.programs)}"
            ) from None

    def _memory_of(self, place: TensorPlace) -> Memory:
        return self._dram if place.memory == "dram" else self._sram

    def _run_command(self, number: int, command: Command, executed: Executed) -> None:
        if command.flag is not None and not self._sram.view("u1", command.flag, (1,), (1,))[0]:
            executed.skipped.add(number)
            if isinstance(command, Matrix) and command.bits_map is not None:
                executed.blocks[number] = {0: pixel_blocks(self.npu, command)}
            return
        match command:
            case Load():
                _transfer(command, self._dram, self._sram)
            case Store():
                _transfer(command, self._dram, self._sram)
            case Matrix():
                if command.bits_map is not None:
                    executed.blocks[number] = self._blocks(command)
                self._matrix.run(command)
            case Vector():
                memories = {"sram": self._sram, "acc": self._accumulators}
                run_vector(command, self._plan(command.program), memories, self.threshold_scale)

    def _blocks(self, command: Matrix) -> dict[int, int]:
        assert command.bits_map is not None
        try:
            return block_classes(command, bits_of(self._sram, command.bits_map), self.npu)
        except ValueError as error:
            raise Fault(str(error)) from None

    def _plan(self, index: int) -> tuple[PlannedStep, ...]:
        known = self._plans.get(index)
        if known is None:
            if not 0 <= index < len(self.stream.vector_programs):
                raise Fault(f"there is no vector program {index}")
            known = self._plans[index] = plan(self.stream.vector_programs[index])
        return known

    def _describe(self, program: str, number: int, command: Command) -> str:
        names = self.stream.kernels
        kernel = names[command.kernel] if 0 <= command.kernel < len(names) else command.kernel
        return (
            f"program {program!r}, command {number} ({type(command).__name__} of kernel {kernel!r})"
        )


@cache
def _blas() -> ThreadpoolController:
    """Return what sets the threads of NumPy's matrix products."""
    return ThreadpoolController().select(user_api="blas")


def _split_order(program: Program, order: Sequence[int] | None) -> list[Iterable[int]]:
    """Return, for every item, the numbers of its commands within it in the order to run them."""
    lengths = [0 if isinstance(item, HostCall) else len(item) for item in program.items]
    if order is None:
        return [range(n) for n in lengths]
    numbers = np.asarray(order, np.int64).reshape(-1)
    if not np.array_equal(np.sort(numbers), np.arange(sum(lengths))):
        raise ValueError(f"order must name every one of {sum(lengths)} commands once")
    ends = np.cumsum(lengths)
    return [
        (numbers[(numbers >= end - n) & (numbers < end)] - (end - n)).tolist()
        for end, n in zip(ends, lengths, strict=True)
    ]


def _transfer(command: Transfer, dram: Memory, sram: Memory) -> None:
    """Move the pieces of a DMA."""
    # Small pieces move as one element each, which is many times as fast as byte by byte.
    word = np.dtype(_WORDS.get(command.piece, np.uint8))
    shape = (command.rows, command.columns, command.piece // word.itemsize)
    strides = (command.dram_row, command.dram_column, word.itemsize)
    outside = dram.view(word, command.dram, shape, strides)
    strides = (command.sram_row, command.sram_column, word.itemsize)
    inside = sram.view(word, command.sram, shape, strides)
    if isinstance(command, Load):
        np.copyto(inside, outside)
    else:
        np.copyto(outside, inside)


def _operand(place: TensorPlace) -> Operand:
    """Return a tensor as an operand."""
    assert place.format in CODE_FORMATS or place.format in ("i32", "f32", "f16", "u8")
    return Operand(
        place.memory,
        place.format,
        place.address,
        place.h,
        place.w,
        place.c,
        place.w * place.pixel,
        place.pixel,
    )

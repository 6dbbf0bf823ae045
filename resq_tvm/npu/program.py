"""The files of an artifact that an NPU needs: its commands and its description."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from resq_tvm.errors import ArtifactError, TargetError
from resq_tvm.manifest import LIBRARY_NAME, NPU_NAME, STREAM_NAME, Manifest
from resq_tvm.targets.npu.commands import HostCall, Program, Stream, TensorPlace, Transfer
from resq_tvm.targets.npu.description import Npu, read_npu
from resq_tvm.targets.npu.stream_file import read_stream, write_stream

_DTYPES: Final = {"i32": "int32", "f32": "float32", "f16": "float16", "u8": "uint8"}


@dataclass(frozen=True, eq=False)
class NpuProgram:
    """What an NPU runs, and the machine that it was compiled for."""

    npu: Npu
    stream: Stream

    def host_calls(self, program: str) -> list[HostCall]:
        """Return the calls of the host in a program, in order."""
        return host_calls(self.stream.programs[program])


def host_calls(program: Program) -> list[HostCall]:
    """Return the calls of the host in a program, in order."""
    return [item for item in program.items if isinstance(item, HostCall)]


def place_type(place: TensorPlace) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of a tensor as `resq_tvm.npu.machine` takes and returns it."""
    return (1, place.h, place.w, place.c), _DTYPES.get(place.format, "int8")


def sram_used(stream: Stream) -> int:
    """Return the bytes of SRAM, from its beginning on, that transfers and tensors reach."""
    ends = [0]
    for program in stream.programs.values():
        for command in program.commands:
            if isinstance(command, Transfer):
                rows, columns = command.rows - 1, command.columns - 1
                reach = rows * command.sram_row + columns * command.sram_column
                ends.append(command.sram + reach + command.piece)
        places = _places(program, host_calls(program))
        ends += [p.address + p.nbytes for p in places if p.memory == "sram"]
    return max(ends)


def write_program(folder: Path, npu: Npu, stream: Stream) -> None:
    """Write ``program.npu`` and ``npu.json`` into a folder."""
    write_stream(folder / STREAM_NAME, stream)
    (folder / NPU_NAME).write_text(npu.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_program(folder: Path, manifest: Manifest) -> NpuProgram:
    """Read what `write_program` wrote; sizes and hashes were checked before.

    Raises
    ------
    ArtifactError
        If a file is malformed, or the files contradict each other or the manifest.
    """
    try:
        npu = read_npu(folder / NPU_NAME)
    except TargetError as error:
        raise _wrong(folder, str(error)) from None
    stream = read_stream(folder / STREAM_NAME)
    for problem in _problems(manifest, npu, stream):
        raise _wrong(folder, problem)
    return NpuProgram(npu, stream)


def _problems(manifest: Manifest, npu: Npu, stream: Stream) -> Iterator[str]:
    """Yield what does not fit together."""
    if stream.npu != npu.name or manifest.target.name != npu.name:
        yield (
            f"{STREAM_NAME} is for {stream.npu}, {NPU_NAME} describes {npu.name} and the manifest "
            f"names {manifest.target.name}"
        )
    wanted = {"keyframe", *(["residual"] if manifest.has_residual else [])}
    if missing := wanted - set(stream.programs):
        yield f"{STREAM_NAME} has no program {', '.join(sorted(missing))}"
    sizes = {entry.name: _nbytes(entry.shape, entry.dtype) for entry in manifest.params}
    for name, address in stream.params.items():
        if name not in sizes:
            yield f"{STREAM_NAME} reads a parameter {name} that is not there"
        elif not 0 <= address <= stream.dram_bytes - sizes[name]:
            yield f"{STREAM_NAME} puts parameter {name} outside of its memory"
    for program in stream.programs.values():
        yield from _program_problems(manifest, npu, stream, program)


def _program_problems(
    manifest: Manifest, npu: Npu, stream: Stream, program: Program
) -> Iterator[str]:
    for kind, places, entries in (
        ("inputs", program.inputs, manifest.inputs),
        ("outputs", program.outputs, manifest.outputs),
        ("state tensors", program.state, manifest.state),
    ):
        found = [p.h * p.w * p.c for p in places]
        declared = [int(np.prod(entry.shape)) for entry in entries]
        if found != declared:
            yield (
                f"program {program.name} of {STREAM_NAME} has {kind} of {found} elements, the "
                f"manifest has {declared}"
            )
    calls = host_calls(program)
    if calls and LIBRARY_NAME not in manifest.files:
        yield f"program {program.name} calls {calls[0].function} of a {LIBRARY_NAME} that is absent"
    limits = {"dram": stream.dram_bytes, "sram": npu.sram.bytes}
    for place in _places(program, calls):
        if not 0 <= place.address <= limits.get(place.memory, 0) - place.nbytes:
            yield f"program {program.name} puts tensor {place.name} outside of its memory"


def _places(program: Program, calls: Iterable[HostCall]) -> Iterator[TensorPlace]:
    yield from (*program.inputs, *program.outputs, *program.state)
    for call in calls:
        yield from (*call.reads, *call.writes)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _wrong(folder: Path, problem: Any) -> ArtifactError:
    return ArtifactError(f"artifact {str(folder)!r}: {problem}; compile it anew")

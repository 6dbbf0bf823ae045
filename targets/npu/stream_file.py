"""Streams as files: a JSON header with tables, binary records for commands.

docs/npu.md, section "Stream file", tells the format. Reading runs nothing and unpickles nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from resq_tvm.errors import ArtifactError, CompileError
from resq_tvm.files import atomic_file
from resq_tvm.targets.npu.commands import (
    STREAM_VERSION,
    Command,
    HostCall,
    Program,
    Step,
    Stream,
    TensorPlace,
    Vector,
)
from resq_tvm.targets.npu.stream_layout import TABLES, Unfit, pack, unpack

MAGIC: Final = b"RESQNPU\n"
_PREAMBLE: Final = struct.Struct(
    "<8sIIQ32s"
)  # magic, version, 0, header bytes, SHA-256 of the rest

_WAY_OUT: Final = "compile the network again"


def write_stream(path: str | os.PathLike[str], stream: Stream) -> None:
    """Write a stream under a temporary name, then rename it.

    Raises
    ------
    OutputError
        If the file cannot be written.
    CompileError
        If a number does not fit its field (a memory of more than 4 GiB on chip).
    """
    data = to_bytes(stream)
    with atomic_file(path) as staging:
        staging.write_bytes(data)


def read_stream(path: str | os.PathLike[str]) -> Stream:
    """Read a stream.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged, of another version, or contradicts itself.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"stream {str(file)!r} cannot be read ({error.strerror}); {_WAY_OUT}"
        ) from None
    return from_bytes(data, str(file))


def to_bytes(stream: Stream) -> bytes:
    """Return a stream as the bytes of its file; equal streams give equal bytes.

    Raises
    ------
    CompileError
        If a number does not fit its field.
    """
    programs, sections = [], []
    for name, program in stream.programs.items():
        try:
            tables = pack(program.commands)
        except Unfit as problem:
            raise CompileError(
                f"program {name!r} for {stream.npu} does not fit into a stream ({problem}); "
                "use a machine with less memory on chip"
            ) from None
        header = _program_header(program)
        header["tables"] = {table: len(tables[table]) for table, _ in TABLES}
        programs.append({"key": name, **header})
        sections += [tables[table].tobytes() for table, _ in TABLES]
    header = {
        "npu": stream.npu,
        "kernels": stream.kernels,
        "vector_programs": [[_step_header(s) for s in p] for p in stream.vector_programs],
        "params": stream.params,
        "dram_bytes": stream.dram_bytes,
        "programs": programs,
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join([text, *sections])
    digest = hashlib.sha256(body).digest()
    return _PREAMBLE.pack(MAGIC, STREAM_VERSION, 0, len(text), digest) + body


def from_bytes(data: bytes, name: str) -> Stream:
    """Return the stream of a file's bytes; ``name`` is the file's, for errors.

    Raises
    ------
    ArtifactError
        As of `read_stream`.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"stream {name!r} is no stream of NPU commands; {_WAY_OUT}")
    if len(data) < _PREAMBLE.size:
        raise ArtifactError(f"stream {name!r} is truncated ({len(data)} bytes); {_WAY_OUT}")
    _, version, _, header_bytes, digest = _PREAMBLE.unpack_from(data)
    if version != STREAM_VERSION:
        raise ArtifactError(
            f"stream {name!r} has format version {version}, this program reads {STREAM_VERSION}; "
            f"{_WAY_OUT} with this version"
        )
    body = memoryview(data)[_PREAMBLE.size :]
    if hashlib.sha256(body).digest() != digest:
        raise ArtifactError(
            f"stream {name!r} is damaged or truncated ({len(data)} bytes, SHA-256 differs); "
            f"{_WAY_OUT}"
        )
    try:
        stream = _parse(body, header_bytes)
        for problem in _contradictions(stream):
            raise Unfit(problem)
    except (Unfit, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"stream {name!r} is malformed ({error}); {_WAY_OUT}") from None
    return stream


def _parse(body: memoryview, header_bytes: int) -> Stream:
    header = json.loads(bytes(body[:header_bytes]))
    offset = header_bytes
    programs = {}
    for entry in header["programs"]:
        tables = {}
        for table, record in TABLES:
            count = entry["tables"][table]
            tables[table] = np.frombuffer(body, record, count, offset)
            offset += count * record.itemsize
        programs[entry["key"]] = _program(entry, unpack(tables))
    if offset != len(body):
        raise Unfit(f"{len(body) - offset} bytes too many")
    return Stream(
        npu=header["npu"],
        kernels=tuple(header["kernels"]),
        vector_programs=tuple(tuple(map(_step, p)) for p in header["vector_programs"]),
        params=header["params"],
        dram_bytes=header["dram_bytes"],
        programs=programs,
    )


# --- header -----------------------------------------------------------------------------------


def _program_header(program: Program) -> dict[str, Any]:
    return {
        "name": program.name,
        "inputs": [asdict(place) for place in program.inputs],
        "outputs": [asdict(place) for place in program.outputs],
        "state": [asdict(place) for place in program.state],
        "items": [
            {"host": asdict(item)} if isinstance(item, HostCall) else {"commands": len(item)}
            for item in program.items
        ],
    }


def _program(entry: dict[str, Any], commands: tuple[Command, ...]) -> Program:
    items: list[tuple[Command, ...] | HostCall] = []
    begin = 0
    for item in entry["items"]:
        if "host" in item:
            items.append(_host_call(item["host"]))
        else:
            items.append(commands[begin : begin + item["commands"]])
            begin += item["commands"]
    if begin != len(commands):
        raise Unfit(f"items hold {begin} of {len(commands)} commands")
    return Program(
        name=entry["name"],
        inputs=_places(entry["inputs"]),
        outputs=_places(entry["outputs"]),
        state=_places(entry["state"]),
        items=tuple(items),
    )


def _places(entries: list[dict[str, Any]]) -> tuple[TensorPlace, ...]:
    return tuple(TensorPlace(**entry) for entry in entries)


def _host_call(entry: dict[str, Any]) -> HostCall:
    return HostCall(
        function=entry["function"],
        operator=entry["operator"],
        reads=_places(entry["reads"]),
        writes=_places(entry["writes"]),
        shapes=_frozen(entry["shapes"]),
    )


_DEFAULTS: Final = {field.name: field.default for field in fields(Step) if field.name != "op"}


def _step_header(step: Step) -> dict[str, Any]:
    values = {name: getattr(step, name) for name in _DEFAULTS}
    # By their texts: −0.0 equals 0.0 but is another number.
    kept = {n: v for n, v in values.items() if repr(v) != repr(_DEFAULTS[n])}
    return {"op": step.op, **kept}


def _step(entry: dict[str, Any]) -> Step:
    return Step(**{name: _frozen(value) for name, value in entry.items()})


def _frozen(value: Any) -> Any:
    """Return lists as tuples: steps are compared and hashed."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


# --- consistency ------------------------------------------------------------------------------


def _contradictions(stream: Stream) -> Iterator[str]:
    """Yield what refers to something that is not there."""
    for name, program in stream.programs.items():
        for number, command in enumerate(program.commands):
            if command.kernel >= len(stream.kernels):
                yield f"command {number} of {name!r} is of kernel {command.kernel}, which is not"
            if isinstance(command, Vector):
                if command.program >= len(stream.vector_programs):
                    yield f"command {number} of {name!r} runs vector program {command.program}"

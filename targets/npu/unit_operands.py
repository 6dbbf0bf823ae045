"""How the vector unit reads and writes tiles of its operands."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.npu.codes import CODE_FORMATS, code_bytes, code_range, pack, unpack
from resq_tvm.targets.npu.commands import Operand, ring_runs
from resq_tvm.targets.npu.memory import Fault, Memory

_DTYPES: Final = {"i32": "<i4", "f32": "<f4", "f16": "<f2", "u8": "u1"}


def read_operand(memory: Memory, operand: Operand) -> NDArray[Any]:
    """Return an operand's elements.

    Returns
    -------
    ndarray (h, w, c)
        int32 for accumulators, float32 for all else. Possibly a view: do not write to it.
    """
    parts = [view for _, view in _elements(memory, operand)]
    raw = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if operand.format in ("i32", "f32"):
        return raw
    if operand.format in CODE_FORMATS:
        raw = unpack(raw, CODE_FORMATS[operand.format], operand.c)
    return raw.astype(np.float32)


def write_operand(memory: Memory, operand: Operand, value: NDArray[Any]) -> None:
    """Convert a value to an operand's format and write it.

    Parameters
    ----------
    value : ndarray
        Broadcasts to the operand's ``(h, w, c)``. Floats become codes by truncation.

    Raises
    ------
    Fault
        If the value does not broadcast, a code does not fit its bits, or the operand lies outside
        its memory.
    """
    shape = (operand.h, operand.w, operand.c)
    if any(n not in (1, m) for n, m in zip(value.shape, shape, strict=True)):
        raise Fault(f"a value of {value.shape} elements is written to an operand of {shape}")
    bits = CODE_FORMATS.get(operand.format)
    if bits is None:
        for rows, place in _elements(memory, operand):
            np.copyto(place, _part(value, rows), casting="unsafe")
        return
    if value.dtype != np.int8:
        value = value.astype(np.int32)
    if bits < 8 or value.dtype != np.int8:
        least, most = code_range(bits)
        if value.size and not (least <= value.min() and value.max() <= most):
            raise Fault(f"a code of {_farthest(value)} does not fit {bits} bits")
    # A value that broadcasts along the channels has to be laid out before it can be packed.
    if value.shape[2] != operand.c:
        value = np.broadcast_to(value, (*value.shape[:2], operand.c))
    packed = pack(value, bits)
    for rows, place in _elements(memory, operand):
        np.copyto(place, _part(packed, rows))


def _part(value: NDArray[Any], rows: slice) -> NDArray[Any]:
    """Return rows of a value, or the one that it has for all of them."""
    return value if value.shape[0] == 1 else value[rows]


def _elements(memory: Memory, operand: Operand) -> list[tuple[slice, NDArray[Any]]]:
    """Return an operand's elements in place, run by run of its rows; codes as packed bytes."""
    if operand.format in CODE_FORMATS:
        count, size = code_bytes(operand.c, CODE_FORMATS[operand.format]), 1
        dtype = "u1"
    else:
        dtype = _DTYPES[operand.format]
        count, size = operand.c, np.dtype(dtype).itemsize
    strides = (operand.row, operand.pixel, size)
    found, begin = [], 0
    for first, rows in ring_runs(operand.top, operand.h, operand.ring):
        address = operand.address + first * operand.row
        view = memory.view(dtype, address, (rows, operand.w, count), strides)
        found.append((slice(begin, begin + rows), view))
        begin += rows
    return found


def _farthest(value: NDArray[Any]) -> int:
    return int(max(value.min(), value.max(), key=abs))

"""How the vector unit reads and writes tiles of its operands."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.npu.codes import CODE_FORMATS, code_bytes, code_range, pack, unpack
from resq_tvm.targets.npu.commands import Operand
from resq_tvm.targets.npu.memory import Fault, Memory

_DTYPES: Final = {"i32": "<i4", "f32": "<f4", "f16": "<f2", "u8": "u1"}


def read_operand(memory: Memory, operand: Operand) -> NDArray[Any]:
    """Return an operand's elements.

    Returns
    -------
    ndarray (h, w, c)
        int32 for accumulators, float32 for all else. Possibly a view: do not write to it.
    """
    raw = _elements(memory, operand)
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
    place = _elements(memory, operand)
    bits = CODE_FORMATS.get(operand.format)
    if bits is None:
        np.copyto(place, value, casting="unsafe")
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
    np.copyto(place, pack(value, bits))


def _elements(memory: Memory, operand: Operand) -> NDArray[Any]:
    """Return an operand's elements in place; codes as packed bytes."""
    if operand.format in CODE_FORMATS:
        count, size = code_bytes(operand.c, CODE_FORMATS[operand.format]), 1
        dtype = "u1"
    else:
        dtype = _DTYPES[operand.format]
        count, size = operand.c, np.dtype(dtype).itemsize
    shape = (operand.h, operand.w, count)
    return memory.view(dtype, operand.address, shape, (operand.row, operand.pixel, size))


def _farthest(value: NDArray[Any]) -> int:
    return int(max(value.min(), value.max(), key=abs))

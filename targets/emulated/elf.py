"""Functions of an aarch64 ELF file: which one holds a given place of the file."""

from __future__ import annotations

import bisect
import struct
from dataclasses import dataclass
from pathlib import Path

_FUNCTION_TYPES = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
_SYMTAB, _DYNSYM, _LOAD = 2, 11, 1


@dataclass(frozen=True)
class Functions:
    """The functions of one file, by address.

    Attributes
    ----------
    segments : tuple of (offset, size, address)
        Which part of the file lies at which of its own addresses.
    starts, ends : tuple of int
        Of the functions, in order.
    names : tuple of str
    """

    segments: tuple[tuple[int, int, int], ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    names: tuple[str, ...]

    def at(self, offset: int) -> str:
        """Return the name of the function at an offset in the file; empty if there is none."""
        for begin, size, address in self.segments:
            if begin <= offset < begin + size:
                place = address + offset - begin
                n = bisect.bisect_right(self.starts, place) - 1
                return self.names[n] if n >= 0 and place < self.ends[n] else ""
        return ""


def read_functions(path: Path) -> Functions:
    """Read the symbol tables of a 64-bit little-endian ELF file; of another file: no functions."""
    try:
        data = path.read_bytes()
        return _read(data)
    except (OSError, struct.error, ValueError, IndexError):
        return Functions((), (), (), ())


def _read(data: bytes) -> Functions:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not ELF64")
    program_at, section_at = struct.unpack_from("<QQ", data, 32)
    program_size, programs, section_size, sections = struct.unpack_from("<HHHH", data, 54)
    segments = []
    for n in range(programs):
        kind, _flags, offset, address, _physical, size = struct.unpack_from(
            "<IIQQQQ", data, program_at + n * program_size
        )
        if kind == _LOAD:
            segments.append((offset, size, address))
    headers = [
        struct.unpack_from("<IIQQQQIIQQ", data, section_at + n * section_size)
        for n in range(sections)
    ]
    found: dict[int, tuple[int, str]] = {}
    for _name, kind, _f, _address, offset, size, link, _info, _align, entry in headers:
        if kind not in (_SYMTAB, _DYNSYM) or not entry:
            continue
        strings = headers[link][4]
        for at in range(offset, offset + size, entry):
            name, info, _other, section, value, length = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 in _FUNCTION_TYPES and section and value not in found:
                end = data.index(b"\0", strings + name)
                found[value] = (length, data[strings + name : end].decode(errors="replace"))
    starts = sorted(found)
    # Hand-written assembly has functions of size 0: they reach to the next one.
    ends = [
        start + (found[start][0] or following - start)
        for start, following in zip(starts, [*starts[1:], 1 << 63], strict=True)
    ]
    names = tuple(found[start][1] for start in starts)
    return Functions(tuple(segments), tuple(starts), tuple(ends), names)

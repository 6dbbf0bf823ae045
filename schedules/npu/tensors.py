"""Tensors of an NPU kernel: how they lie in memory, and tiles of them in SRAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resq_tvm.schedules.code import Expr
from resq_tvm.schedules.spec import TensorSpec
from resq_tvm.targets.npu.commands import format_bits

CHANNEL_GRAIN = 4  # channels: even codes of 2 bits then begin at a whole byte
_FORMATS = {"float32": "f32", "float16": "f16", "uint8": "u8", "int32": "i32"}


def format_of(spec: TensorSpec) -> str:
    """Return a tensor's element format, as of `resq_tvm.targets.npu.commands.Operand`."""
    return f"c{spec.bits or 8}" if spec.dtype == "int8" else _FORMATS[spec.dtype]


def channel_bytes(spec: TensorSpec, channels: Expr) -> Expr:
    """Return the bytes of ``channels`` channels of a pixel, from a whole byte on."""
    bits = format_bits(format_of(spec))
    if isinstance(channels, int):
        return -(-channels * bits // 8)
    return channels * (bits // 8) if bits >= 8 else (channels * bits + 7) // 8


def tensor_bytes(spec: TensorSpec) -> int:
    """Return the size of a tensor in the NPU's memory."""
    return (spec.ring or spec.h) * spec.w * int(channel_bytes(spec, spec.c))


@dataclass(frozen=True)
class Rect:
    """Pixels ``y + i·step_y``, ``x + j·step_x`` and channels of a tensor; sizes are expressions."""

    y: Expr
    x: Expr
    rows: Expr
    columns: Expr
    first: Expr
    channels: Expr
    step_y: int = 1
    step_x: int = 1


@dataclass(frozen=True)
class Tile:
    """A tile in SRAM: base variable, byte offset, extents, bytes from row to row and pixel.

    ``first`` is the number of the first channel that is wanted within a pixel. With a ``ring`` the
    first row lies in row ``top`` of a circular buffer of so many rows, which begins at ``offset``.
    """

    base: Any
    offset: Expr
    h: Expr
    w: Expr
    c: Expr
    row: Expr
    pixel: Expr
    format: str
    first: Expr = 0
    ring: int = 0
    top: Expr = 0

    def operand(self) -> list[Any]:
        """Return the arguments of a vector operand."""
        return [
            self.format, self.base, self.offset, self.h, self.w, self.c, self.row, self.pixel,
            self.ring, self.top,
        ]  # fmt: skip


def in_place(spec: TensorSpec, base: Any, rect: Rect) -> Tile:
    """Return a tile of a tensor that stays in SRAM."""
    pixel = int(channel_bytes(spec, spec.c))
    row = spec.w * pixel
    offset = rect.x * pixel + channel_bytes(spec, rect.first)
    if spec.ring:
        assert rect.step_y == 1
        return Tile(
            base, offset, rect.rows, rect.columns, rect.channels,
            row, pixel * rect.step_x, format_of(spec), 0, spec.ring, rect.y % spec.ring,
        )  # fmt: skip
    offset = rect.y * row + offset
    return Tile(
        base, offset, rect.rows, rect.columns, rect.channels,
        row * rect.step_y, pixel * rect.step_x, format_of(spec),
    )  # fmt: skip


def transfer_arguments(spec: TensorSpec, base: Any, rect: Rect, tile: Tile) -> list[Any]:
    """Return the arguments of a load or a store between a tensor in DRAM and a tile."""
    pixel = int(channel_bytes(spec, spec.c))
    row = spec.w * pixel
    offset = rect.y * row + rect.x * pixel + channel_bytes(spec, rect.first)
    whole = isinstance(rect.channels, int) and rect.channels == spec.c and rect.step_x == 1
    piece = channel_bytes(spec, rect.channels)
    columns = rect.columns
    if whole:
        piece, columns = rect.columns * pixel, 1
    return [
        base, offset, tile.base, tile.offset, rect.rows, columns, piece,
        row * rect.step_y, pixel * rect.step_x, tile.row, tile.pixel,
    ]  # fmt: skip

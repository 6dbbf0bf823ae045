"""The commands of an NPU and the stream that carries them.

Every engine runs its commands in order; different engines run at once. A command begins when those
that it waits for have ended: ``waits`` says how many commands of another engine must have, counted
from the beginning of the program. Addresses are bytes: of the DRAM image, of the SRAM, of the
accumulator memory. docs/npu.md describes the file.

A command with a ``flag``, the SRAM address of a byte, does nothing where that byte is 0 when it
begins; it waits and ends in its turn all the same, so that waits mean the same either way.

Tensors are ``(h, w, c)``, row-major. Codes are signed and lie at 2, 4 or 8 bits, the first in the
lowest bits; a pixel begins at a whole byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

STREAM_VERSION: Final = 3


class Engine(IntEnum):
    """Who runs a command."""

    LOAD = 0
    STORE = 1
    MATRIX = 2
    VECTOR = 3


Waits = tuple[tuple[Engine, int], ...]


@dataclass(frozen=True)
class Transfer:
    """A DMA: ``rows × columns`` pieces of ``piece`` bytes; strides in bytes on either side.

    ``Load`` goes from DRAM (``dram``) to SRAM (``sram``), ``Store`` the other way.
    """

    dram: int
    sram: int
    rows: int
    columns: int
    piece: int
    dram_row: int
    dram_column: int
    sram_row: int
    sram_column: int

    @property
    def nbytes(self) -> int:
        """Bytes moved."""
        return self.rows * self.columns * self.piece


@dataclass(frozen=True)
class Load(Transfer):
    """DRAM to SRAM."""

    waits: Waits = ()
    kernel: int = 0
    flag: int | None = None

    engine = Engine.LOAD


@dataclass(frozen=True)
class Store(Transfer):
    """SRAM to DRAM."""

    waits: Waits = ()
    kernel: int = 0
    flag: int | None = None

    engine = Engine.STORE


@dataclass(frozen=True)
class Plane:
    """Codes in SRAM: the part of a tensor that a command may read.

    Attributes
    ----------
    address : int
        Of the first pixel.
    h, w : int
        Pixels that are there; what lies outside reads as zero.
    first, channels : int
        Channels that are read: the number of the first one in a pixel, and how many.
    row, pixel : int
        Bytes from row to row and from pixel to pixel.
    bits : int
        2, 4 or 8 per code.
    ring : int
        Rows of a circular buffer; 0: none. Row r of the plane is the buffer's row
        ``(top + r) % ring``, and ``address`` is that of the buffer's row 0.
    top : int
        Row of the circular buffer in which the plane's first row lies.
    """

    address: int
    h: int
    w: int
    first: int
    channels: int
    row: int
    pixel: int
    bits: int
    ring: int = 0
    top: int = 0


def ring_runs(first: int, rows: int, ring: int) -> list[tuple[int, int]]:
    """Return the runs of a memory's rows in which a tensor's rows lie: (first row, rows).

    Parameters
    ----------
    first : int
        Row of the circular buffer, counted on beyond its end.
    rows : int
        At most ``ring``, if there is a circular buffer.
    ring : int
        Rows of the circular buffer; 0: none, so that there is one run.

    Raises
    ------
    ValueError
        If more rows are asked for than the circular buffer has.
    """
    if ring == 0:
        return [(first, rows)]
    if rows > ring:
        raise ValueError(f"{rows} rows do not lie in a circular buffer of {ring}")
    first %= ring
    before = min(rows, ring - first)
    runs = [(first, before), (0, rows - before)]
    return [run for run in runs if run[1] > 0] or [(first, 0)]


@dataclass(frozen=True)
class Matrix:
    """A convolution of one tile into accumulators.

    ``acc[y, x, o] (+)= Σ in[y·stride_y + origin_y + ky·dilation_y, …, i] · weight[o, ky, kx, i]``

    Attributes
    ----------
    source : Plane
    weights : int
        SRAM address: ``[out][taps_y][taps_x][in]`` at ``weight_bits``, every output channel from a
        whole byte on; depthwise ``[taps_y][taps_x][out]``, every tap from a whole byte on.
    weight_bits : int
        2, 4 or 8 in memory.
    precision : tuple of int
        Bits of weights and activations that the products need (they decide about the rate).
    h, w, out : int
        Of the output tile.
    origin : tuple of int
        Pixel of ``source`` that the first tap of the first output reads (may lie outside).
    stride, taps, dilation : tuple of int
        Vertical, horizontal. A negative dilation walks back from the first tap (transposed
        convolutions); without taps or channels the sums are zero.
    depthwise : bool
        Output channel o reads input channel o alone.
    accumulators : int
        Byte address of the tile: ``(h, w, out)`` int32, dense.
    accumulate : bool
        Add to what is there.
    bits_map : Plane or None
        Bits per pixel of ``source`` (uint8, one channel), where codes have fewer than they could:
        products by zero are left out. A pixel of 0 bits reads as zero, whatever its bytes are.
    """

    source: Plane
    weights: int
    weight_bits: int
    precision: tuple[int, int]
    h: int
    w: int
    out: int
    origin: tuple[int, int]
    stride: tuple[int, int]
    taps: tuple[int, int]
    dilation: tuple[int, int]
    depthwise: bool
    accumulators: int
    accumulate: bool = False
    bits_map: Plane | None = None
    waits: Waits = ()
    kernel: int = 0
    flag: int | None = None

    engine = Engine.MATRIX


@dataclass(frozen=True)
class Operand:
    """A tensor tile that the vector unit reads or writes.

    Attributes
    ----------
    memory : str
        ``"sram"`` or ``"acc"``.
    format : str
        ``"i32"`` (accumulators), ``"f32"``, ``"f16"``, ``"c2"``, ``"c4"``, ``"c8"`` (codes),
        ``"u8"`` (a map of bits).
    address : int
        Of the first pixel and channel.
    h, w, c : int
        Elements that are there; an extent of 1 broadcasts along the tile.
    row, pixel : int
        Bytes from row to row and from pixel to pixel.
    ring, top : int
        Circular buffers in SRAM, as of `Plane`.
    """

    memory: str
    format: str
    address: int
    h: int
    w: int
    c: int
    row: int
    pixel: int
    ring: int = 0
    top: int = 0


@dataclass(frozen=True)
class Vector:
    """A vector program on one tile of ``(h, w, c)`` elements.

    Attributes
    ----------
    program : int
        Index into the stream's vector programs.
    operands : tuple of Operand
        As the program numbers them: what is read, then what is written.
    place : tuple of int
        Row, column and channel of the tile's first element in the whole output.
    window : tuple of int
        Row and column, in the whole input, of the first pixel of operand 0 (for programs that
        begin with a pooling, a resize or a window).
    """

    program: int
    h: int
    w: int
    c: int
    operands: tuple[Operand, ...]
    place: tuple[int, int, int] = (0, 0, 0)
    window: tuple[int, int] = (0, 0)
    waits: Waits = ()
    kernel: int = 0
    flag: int | None = None

    engine = Engine.VECTOR


Command = Load | Store | Matrix | Vector


@dataclass(frozen=True)
class Step:
    """One operation of a vector program on float32 elements; ids are positions in the program.

    ====================  =====================================================================
    op                    value
    ====================  =====================================================================
    ``read``              operand ``index`` as float32 (accumulators stay int32: see dequantize)
    ``scalar``            ``value``
    ``dequantize``        float32(args[0]) · args[1]
    ``add sub mul div max min neg abs exp sigmoid tanh sqrt erf``
    ``prelu``             args[0] > 0 ? args[0] : args[0] · args[1]
    ``round16``           float32 → float16 → float32
    ``quantize``          clamp(round_half_even(args[0] · value), −limit, limit)
    ``choose``            args[0], codes, reduced to the bits of ``table`` pixel by pixel
                          (``pool``, ``shifts``, ``threshold``)
    ``bits``              of args[0], a ``choose``: bits of every pixel (one channel)
    ``energy``            of blocks of ``block`` × ``block`` pixels: sum over pixels and channels of
                          clamp(round_half_even(args[0] · value), −127, 127)²
    ``changed``           1 where args[0], a plane of blocks, is above ``threshold``, or a block up
                          to ``reach`` away is; else 0
    ``spread``            operand ``index``, a plane of blocks of the whole output, for every pixel
    ``active``            of operand ``index``, a map: for every window of ``rows`` × ``columns``
                          (pairs: first and past) 1 if something in it is not 0, else 0
    ``any``               1 if some element of args[0] is not 0, else 0: one number
    ``nonzero``           ``value`` at pixels where some channel of args[0] is not 0, else 0
    ``select``            args[0] ≠ 0 ? args[1] : args[2]
    ``pool mean resize window``
                          of operand 0, as ``table`` says; with ``mask``, the number of an operand,
                          pixels at which that map is 0 read as 0
    ``write``             args[0] to operand ``index``
    ====================  =====================================================================
    """

    op: str
    args: tuple[int, ...] = ()
    value: float = 0.0
    limit: int = 0
    index: int = 0
    table: tuple[tuple[str, Any], ...] = ()  # sorted pairs of JSON values

    @property
    def facts(self) -> dict[str, Any]:
        """The table as a dictionary."""
        return dict(self.table)


VectorProgram = tuple[Step, ...]


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of a program: where its bytes lie.

    Attributes
    ----------
    name : str
    memory : str
        ``"dram"`` or ``"sram"`` (it stays there).
    address : int
    h, w, c : int
    format : str
        As of `Operand`.
    """

    name: str
    memory: str
    address: int
    h: int
    w: int
    c: int
    format: str

    @property
    def pixel(self) -> int:
        """Bytes of a pixel."""
        return pixel_bytes(self.c, self.format)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.h * self.w * self.pixel


_BITS: Final = {"i32": 32, "f32": 32, "f16": 16, "c2": 2, "c4": 4, "c8": 8, "u8": 8}


def format_bits(format: str) -> int:
    """Return the bits of one element."""
    return _BITS[format]


def pixel_bytes(channels: int, format: str) -> int:
    """Return the bytes of a pixel."""
    return -(-channels * _BITS[format] // 8)


@dataclass(frozen=True)
class HostCall:
    """A function of the host library between two runs of the NPU, which is idle meanwhile.

    ``shapes`` are those that the function takes, of ``reads`` then ``writes``.
    """

    function: str
    operator: str
    reads: tuple[TensorPlace, ...]
    writes: tuple[TensorPlace, ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Program:
    """What runs for one frame: runs of commands with host calls between them.

    Attributes
    ----------
    name : str
        ``"keyframe"``, ``"residual"``.
    inputs, outputs, state : tuple of TensorPlace
        Where the frame is put and the results are found; ``state`` is read by a residual program
        and written by a keyframe program.
    items : tuple
        Tuples of commands, or host calls.
    """

    name: str
    inputs: tuple[TensorPlace, ...]
    outputs: tuple[TensorPlace, ...]
    state: tuple[TensorPlace, ...]
    items: tuple[tuple[Command, ...] | HostCall, ...]

    @property
    def commands(self) -> list[Command]:
        """Every command, in order."""
        return [c for item in self.items if isinstance(item, tuple) for c in item]


@dataclass(frozen=True)
class Stream:
    """All programs of an artifact, with what they share.

    Attributes
    ----------
    npu : str
        Name of the machine.
    kernels : tuple of str
        Names; a command's ``kernel`` is an index.
    vector_programs : tuple
    params : dict of str to int
        Name of a parameter → its DRAM address.
    dram_bytes : int
        Size of the DRAM image.
    programs : dict of str to Program
    """

    npu: str
    kernels: tuple[str, ...]
    vector_programs: tuple[VectorProgram, ...]
    params: dict[str, int]
    dram_bytes: int
    programs: dict[str, Program] = field(default_factory=dict)

"""What an NPU is: a parameter file that the compiler, the schedules and the simulators read.

The machine has a matrix unit (integer products into 32-bit accumulators), a vector unit (float32,
reads accumulators), two DMA engines (DRAM to SRAM and back) and a command processor that feeds
their queues. docs/npu.md describes every parameter.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from resq_tvm.errors import TargetError

FORMAT_VERSION: Final = 1
PRESET_FOLDER = Path(__file__).resolve().parent / "presets"

STORAGE_WIDTHS: Final = (2, 4, 8)  # bits of a code in memory: whole numbers of codes per byte
OPERATORS: Final = ("pool", "mean", "resize", "window", "choose", "gate")
FUNCTIONS: Final = ("div", "exp", "sigmoid", "tanh", "sqrt", "erf")

Count = Annotated[int, Field(ge=1)]
Cycles = Annotated[int, Field(ge=0)]
_RATE = re.compile(r"W(\d)A(\d)")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MatrixUnit(_Part):
    """The array of multipliers: ``pixels × outputs × depth`` products per cycle at rate 1.

    Attributes
    ----------
    pixels, outputs, depth : int
        Output pixels of a row, output channels, and terms of the sums that are worked on at once.
    rates : dict of str to float
        ``"W4A8"`` → how many times as many products per cycle as at rate 1. The pairs that are
        listed are those that the array multiplies; others run as the next wider pair.
    packs_taps : bool
        Whether ``depth`` spans the taps of a kernel (a 3 × 3 kernel on 3 channels is 27 terms), or
        every tap begins anew.
    depthwise : bool
        Whether every output can have an input channel of its own (its taps lie along ``depth``).
    startup_cycles : int
        Of every command, to fill and drain the array.
    accumulator_bytes : int
        Size of the accumulator memory (int32).
    """

    pixels: Count
    outputs: Count
    depth: Count
    rates: Annotated[dict[str, float], Field(min_length=1)]
    packs_taps: bool = True
    depthwise: bool = True
    startup_cycles: Cycles
    accumulator_bytes: Annotated[int, Field(ge=256)]

    @field_validator("rates")
    @classmethod
    def _known_pairs(cls, rates: dict[str, float]) -> dict[str, float]:
        for pair, rate in rates.items():
            match = _RATE.fullmatch(pair)
            if match is None or not all(2 <= int(b) <= 8 for b in match.groups()):
                raise ValueError(f"{pair!r} is no pair of 2 to 8 bits such as 'W4A8'")
            if not rate > 0:
                raise ValueError(f"rate {rate} of {pair} is not above 0")
        if "W8A8" not in rates:
            raise ValueError("'W8A8' is missing: keyframes need it")
        return rates


class VectorUnit(_Part):
    """Elementwise work in float32: requantization, additions, activations.

    Attributes
    ----------
    lanes : int
        Elements per cycle.
    stages : int
        Operations in a row that an element passes in one go.
    startup_cycles : int
        Of every command.
    operators : tuple of str
        Of ``pool, mean, resize, window, choose, gate``, those that it has.
    functions : dict of str to int
        Of ``div, exp, sigmoid, tanh, sqrt, erf``, those that it has, and how many operations each
        counts for.
    """

    lanes: Count
    stages: Count
    startup_cycles: Cycles
    operators: tuple[str, ...] = OPERATORS
    functions: dict[str, Count] = {}

    @field_validator("operators", "functions")
    @classmethod
    def _known(cls, value: tuple[str, ...] | dict[str, int]) -> tuple[str, ...] | dict[str, int]:
        known = OPERATORS if isinstance(value, tuple) else FUNCTIONS
        for name in value:
            if name not in known:
                raise ValueError(f"{name!r} is unknown; known are {', '.join(known)}")
        return value


class Sram(_Part):
    """On-chip memory: size, and the bytes per cycle that its banks deliver to the matrix unit.

    ``tile_bytes`` of it are for the tiles of kernels; 0: as many as the compiler's rule says.
    """

    bytes: Annotated[int, Field(ge=1024)]
    banks: Count
    bank_bytes_per_cycle: Count
    tile_bytes: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _tiles_fit(self) -> Sram:
        if self.tile_bytes >= self.bytes:
            raise ValueError(f"tile_bytes {self.tile_bytes} is not below bytes {self.bytes}")
        return self


class Dram(_Part):
    """Memory outside: bandwidth, cycles until the first byte, granule of a transfer in bytes."""

    bytes_per_second: Annotated[float, Field(gt=0)]
    latency_cycles: Cycles
    burst_bytes: Count


class CommandProcessor(_Part):
    """Cycles to issue a command and to set up a DMA; depth of every engine's queue.

    ``kernel_cycles`` pass before the first command of a kernel, every time that it runs. An engine
    takes ``test_cycles`` to read the flag of a command, and nothing more if it is to skip it.
    """

    issue_cycles: Cycles
    dma_setup_cycles: Cycles
    kernel_cycles: Cycles
    queue_depth: Count
    test_cycles: Cycles = 4


class Host(_Part):
    """The processor that runs what the NPU cannot: cycles (of the NPU) per call, bytes per second.

    A call is estimated to take as long as it takes to move its operands.
    """

    call_cycles: Cycles
    bytes_per_second: Annotated[float, Field(gt=0)]


class Npu(_Part):
    """A machine. ``name`` is the target's, and begins with ``npu-``."""

    format_version: int = FORMAT_VERSION
    name: Annotated[str, Field(pattern=r"^npu-[a-z0-9][a-z0-9-]*$")]
    about: str = ""
    clock_hz: Annotated[float, Field(gt=0)]
    matrix: MatrixUnit
    vector: VectorUnit
    sram: Sram
    dram: Dram
    commands: CommandProcessor
    host: Host

    @field_validator("format_version")
    @classmethod
    def _this_version(cls, version: int) -> int:
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version} is not {FORMAT_VERSION}")
        return version

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def macs_per_cycle(self) -> int:
        """Products per cycle at rate 1."""
        return self.matrix.pixels * self.matrix.outputs * self.matrix.depth

    @property
    def bytes_per_cycle(self) -> float:
        """DRAM bandwidth in bytes per cycle."""
        return self.dram.bytes_per_second / self.clock_hz

    def with_tile_bytes(self, count: int) -> Npu:
        """Return the machine with so many bytes of its SRAM for tiles; 0: the rule's."""
        return self.model_copy(update={"sram": self.sram.model_copy(update={"tile_bytes": count})})

    def storage_bits(self, bits: int) -> int:
        """Return how many bits a code of ``bits`` takes in memory."""
        return next(width for width in STORAGE_WIDTHS if width >= bits)

    def precision(self, weight: int, activation: int) -> tuple[str, float]:
        """Return the pair of bits that the array runs for a layer, and its rate.

        The fastest pair that is wide enough for both.
        """
        return _precision(tuple(self.matrix.rates.items()), weight, activation)


@cache
def _precision(
    rates: tuple[tuple[str, float], ...], weight: int, activation: int
) -> tuple[str, float]:
    fitting = []
    for pair, rate in rates:
        w, a = int(pair[1]), int(pair[3])
        if w >= weight and a >= activation:
            fitting.append((-rate, w + a, pair))
    rate, _, pair = min(fitting)
    return pair, -rate


def read_npu(path: str | Path) -> Npu:
    """Read a parameter file.

    Parameters
    ----------
    path : path-like
        JSON, as the presets in ``targets/npu/presets``.

    Raises
    ------
    TargetError
        If it is missing, is not JSON, or describes no machine; the message names the parameter.
    """
    file = Path(path)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"NPU file {str(file)!r} cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TargetError(f"NPU file {str(file)!r} is not JSON ({error})") from None
    try:
        return Npu.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TargetError(
            f"NPU file {str(file)!r}: {place} is wrong: {first['msg']} (docs/npu.md lists the "
            "parameters)"
        ) from None


def preset_npus() -> dict[str, Npu]:
    """Return the machines that come with the program, by name."""
    npus = (read_npu(path) for path in sorted(PRESET_FOLDER.glob("*.json")))
    return {npu.name: npu for npu in npus}

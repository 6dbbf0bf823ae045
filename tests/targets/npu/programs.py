"""Machines and hand-made programs for the tests of the NPU."""

from __future__ import annotations

from dataclasses import replace

from resq_tvm.targets.npu.commands import (
    Command,
    Engine,
    Load,
    Matrix,
    Operand,
    Plane,
    Program,
    Step,
    Store,
    Stream,
    Vector,
    Waits,
)
from resq_tvm.targets.npu.description import Npu, preset_npus

REQUANTIZE = (
    Step("read", index=0),
    Step("scalar", value=0.5),
    Step("dequantize", args=(0, 1)),
    Step("quantize", args=(2,), value=4.0, limit=127),
    Step("write", args=(3,), index=1),
)


def plain_npu(**commands: int) -> Npu:
    """Return a machine with round figures: 1 byte per cycle, no overheads but those named."""
    overheads = {"issue_cycles": 0, "dma_setup_cycles": 0, "kernel_cycles": 0, "queue_depth": 8}
    return Npu.model_validate(
        {
            "name": "npu-plain",
            "clock_hz": 1e6,
            "matrix": {
                "pixels": 4, "outputs": 4, "depth": 4,
                "rates": {"W8A8": 1, "W4A4": 2}, "startup_cycles": 0, "accumulator_bytes": 4096,
            },
            "vector": {"lanes": 8, "stages": 2, "startup_cycles": 0, "functions": {"exp": 8}},
            "sram": {"bytes": 65536, "banks": 4, "bank_bytes_per_cycle": 16},
            "dram": {"bytes_per_second": 1e6, "latency_cycles": 0, "burst_bytes": 1},
            "commands": overheads | commands,
            "host": {"call_cycles": 100, "bytes_per_second": 1e6},
        }
    )  # fmt: skip


def load(nbytes: int, *, dram: int = 0, sram: int = 0, waits: Waits = (), kernel: int = 0) -> Load:
    """Return a load of bytes in a row."""
    return Load(dram, sram, 1, 1, nbytes, 0, 0, 0, 0, waits, kernel)


def store(
    nbytes: int, *, dram: int = 0, sram: int = 0, waits: Waits = (), kernel: int = 0
) -> Store:
    """Return a store of bytes in a row."""
    return Store(dram, sram, 1, 1, nbytes, 0, 0, 0, 0, waits, kernel)


def matrix(
    h: int = 4,
    w: int = 4,
    out: int = 4,
    channels: int = 4,
    *,
    taps: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    bits: tuple[int, int] = (8, 8),
    depthwise: bool = False,
    bits_map: bool = False,
    waits: Waits = (),
    kernel: int = 0,
) -> Matrix:
    """Return a convolution with the padding that keeps a plane of ``h·stride × w·stride``."""
    high, wide = h * stride[0], w * stride[1]
    pixel = -(-channels * bits[1] // 8)
    origin = tuple(-(d * (t - 1) // 2) for t, d in zip(taps, dilation, strict=True))
    source = Plane(0, high, wide, 0, channels, wide * pixel, pixel, bits[1])
    maps = Plane(32768, high, wide, 0, 1, wide, 1, 8) if bits_map else None
    return Matrix(
        source, 49152, bits[0], bits, h, w, out, (origin[0], origin[1]), stride, taps, dilation,
        depthwise, 0, False, maps, waits, kernel,
    )  # fmt: skip


def vector(
    h: int = 4, w: int = 4, c: int = 4, *, program: int = 0, waits: Waits = (), kernel: int = 0
) -> Vector:
    """Return a requantization of accumulators."""
    read = Operand("acc", "i32", 0, h, w, c, w * c * 4, c * 4)
    write = Operand("sram", "c8", 16384, h, w, c, w * c, c)
    return Vector(program, h, w, c, (read, write), (0, 0, 0), (0, 0), waits, kernel)


def stream_of(*items: object, kernels: tuple[str, ...] = ("one", "two", "three")) -> Stream:
    """Return a stream of one program ``main`` of these items."""
    program = Program("main", (), (), (), items)  # type: ignore[arg-type]
    return Stream("npu-plain", kernels, (REQUANTIZE,), {}, 1 << 20, {"main": program})


def double_buffered(kernels: int, tiles: int) -> Stream:
    """Return layers that load a tile while the one before is computed and the last one stored."""
    commands: list[Command] = []
    names = tuple(f"layer{k}" for k in range(kernels))
    mobile = preset_npus()["npu-mobile"]
    for k in range(kernels):
        for t in range(tiles):
            n = k * tiles + t  # tiles before this one
            free = ((Engine.MATRIX, n - 1),) if n >= 2 else ()
            commands.append(load(18432, dram=n * 64, waits=free, kernel=k))
            drained = ((Engine.VECTOR, n - 1),) if n >= 2 else ()
            commands.append(
                replace(
                    matrix(8, 32, 64, 64, taps=(3, 3), kernel=k),
                    waits=((Engine.LOAD, n + 1), *drained),
                )
            )
            stored = ((Engine.STORE, n - 1),) if n >= 2 else ()
            commands.append(vector(8, 32, 64, waits=((Engine.MATRIX, n + 1), *stored), kernel=k))
            commands.append(store(16384, waits=((Engine.VECTOR, n + 1),), kernel=k))
    program = Program("main", (), (), (), (tuple(commands),))
    return Stream(mobile.name, names, (REQUANTIZE,), {}, 1 << 20, {"main": program})

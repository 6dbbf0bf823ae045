"""A tiled layer by hand: what the functional simulator and the search for races are tested on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from resq_tvm.schedules.spec import Conv, Node, Phase
from resq_tvm.schedules.spec import Store as StoreNode
from resq_tvm.targets.npu.codes import pack
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
    TensorPlace,
    Vector,
)
from resq_tvm.targets.npu.functional import Machine
from tests.targets.npu.machines import kernel_of, raw_bytes, small_npu, tensor

H, W, C, OUT = 11, 13, 5, 6


def dense(name, address, h, w, c, format, memory="dram"):
    return TensorPlace(name, memory, address, h, w, c, format)


class Layer:
    """A 3 × 3 convolution of 4-bit codes in tiles: two buffers, requantization, codes out."""

    def __init__(self, rng, tile=(4, 5)):
        self.tile = tile
        self.x = rng.integers(-7, 8, (H, W, C)).astype(np.int32)
        self.weight = rng.integers(-127, 128, (OUT, 3, 3, C)).astype(np.int8)
        self.scale = (rng.random(OUT) * 1e-3).astype(np.float32)
        taps = tuple((y, x, y - 1, x - 1) for y in range(3) for x in range(3))
        nodes = (
            Node("anchor"),
            Node("vector", name="scale"),
            Node("dequantize", (0, 1)),
            Node("quantize", (2,), value=7.0, limit=7),
        )
        self.kernel = kernel_of(
            Conv(("x",), self.weight, (Phase(0, 0, taps),), (1, 1), (1, 1)),
            (tensor("x", H, W, C, "int8"),),
            (tensor("q", H, W, OUT, "int8"), tensor("y", H, W, OUT)),
            nodes,
            (StoreNode(3, "q"), StoreNode(2, "y")),
            {"scale": self.scale},
        )
        weights = pack(self.weight.reshape(OUT, -1), 8)
        self.parts = [raw_bytes(self.x, "c4"), weights.reshape(-1), raw_bytes(self.scale, "f32")]
        self.addresses = np.cumsum([0, *(p.size for p in self.parts)]).tolist()
        self.source = dense("x", self.addresses[0], H, W, C, "c4")
        self.codes = dense("q", self.addresses[3], H, W, OUT, "c4")
        self.floats = dense("y", self.addresses[3] + self.codes.nbytes, H, W, OUT, "f32")
        self.dram_bytes = self.floats.address + self.floats.nbytes

    def image(self):
        return np.concatenate(
            [*self.parts, np.zeros(self.dram_bytes - self.addresses[3], np.uint8)]
        )

    def commands(self, buffers_used=2):
        """Return the commands; weights at 0, the vector behind them, then tiles in two buffers.

        The waits are those of two buffers.
        """
        weights, vector = self.parts[1].size, self.parts[2].size
        commands = [
            Load(self.addresses[1], 0, 1, 1, weights, 0, 0, 0, 0),
            Load(self.addresses[2], weights, 1, 1, vector, 0, 0, 0, 0),
        ]
        buffers = (weights + vector, weights + vector + 2048)
        tiles = [(y, x) for y in range(0, H, self.tile[0]) for x in range(0, W, self.tile[1])]
        for i, (y, x) in enumerate(tiles):
            tile = self._tile(y, x, buffers[i % buffers_used], weights, 4096 * (i % 2))
            commands += [replace(c, waits=_waits(c, i)) for c in tile]
        return commands

    def _tile(self, y, x, buffer, vector, accumulators):
        h, w = min(self.tile[0], H - y), min(self.tile[1], W - x)
        top, left, bottom, right = (
            max(y - 1, 0),
            max(x - 1, 0),
            min(y + h + 1, H),
            min(x + w + 1, W),
        )
        pixel, across = self.source.pixel, right - left
        load = Load(
            self.source.address + (top * W + left) * pixel, buffer, bottom - top, 1, across * pixel,
            W * pixel, 0, across * pixel, 0,
        )  # fmt: skip
        plane = Plane(buffer, bottom - top, across, 0, C, across * pixel, pixel, 4)
        matrix = Matrix(
            plane, 0, 8, (8, 4), h, w, OUT, (y - 1 - top, x - 1 - left), (1, 1), (3, 3), (1, 1),
            False, accumulators,
        )  # fmt: skip
        q, f = buffer + 512, buffer + 1024
        codes = Operand("sram", "c4", q, h, w, OUT, w * self.codes.pixel, self.codes.pixel)
        floats = Operand("sram", "f32", f, h, w, OUT, w * 4 * OUT, 4 * OUT)
        operands = (
            Operand("acc", "i32", accumulators, h, w, OUT, w * 4 * OUT, 4 * OUT),
            Operand("sram", "f32", vector, 1, 1, OUT, 4 * OUT, 4 * OUT),
            codes,
            floats,
        )
        stores = [
            Store(
                place.address + (y * W + x) * place.pixel, operand.address, h, w, place.pixel,
                W * place.pixel, place.pixel, operand.row, operand.pixel,
            )
            for place, operand in ((self.codes, codes), (self.floats, floats))
        ]  # fmt: skip
        return [load, matrix, Vector(0, h, w, OUT, operands), *stores]

    def stream(self, items):
        steps = (
            Step("read", index=0),
            Step("read", index=1),
            Step("dequantize", (0, 1)),
            Step("quantize", (2,), 7.0, 7),
            Step("write", (3,), index=2),
            Step("write", (2,), index=3),
        )
        program = Program("keyframe", (self.source,), (self.codes, self.floats), (), items)
        return Stream("npu-micro", ("layer",), (steps,), {}, self.dram_bytes, {"keyframe": program})

    def machine(self, *items):
        return Machine(small_npu(1 << 15), self.stream(items), self.image())


def _waits(command: Command, i: int):
    """Return what a command of tile i waits for."""
    waits = {
        Engine.LOAD: [(Engine.MATRIX, i - 1)],
        Engine.MATRIX: [(Engine.LOAD, i + 3), (Engine.VECTOR, i - 1)],
        Engine.VECTOR: [(Engine.MATRIX, i + 1), (Engine.STORE, 2 * (i - 1))],
        Engine.STORE: [(Engine.VECTOR, i + 1)],
    }
    return tuple((engine, count) for engine, count in waits[command.engine] if count > 0)

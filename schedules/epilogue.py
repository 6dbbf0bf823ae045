"""The epilogue of a kernel: elementwise nodes on vectors of up to 16 channels, in registers.

Numbers follow NumPy's float32: every operation rounds by itself. LLVM contracts ``a·b + c`` to one
fused operation where the CPU has it, so every product is fenced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from resq_tvm.schedules import vecmath
from resq_tvm.schedules.choose import Chooser
from resq_tvm.schedules.code import (
    Expr,
    cast,
    constant,
    load,
    reinterpret,
    splat,
    vector_type,
)
from resq_tvm.schedules.context import LANES, Context, at, pad_channels
from resq_tvm.schedules.ranges import node_ranges
from resq_tvm.schedules.sparse import Finish, Tile
from resq_tvm.schedules.spec import Store, TensorSpec

_WITHIN = 0.49  # of a step: beyond a limit by less, a value is rounded to it
_MAGIC_BITS = int(np.float32(vecmath.MAGIC).view(np.int32))


class Epilogue:
    """Emits a kernel's nodes and stores at one position after another.

    Values that depend on the channels alone are bound once per call of `channels`.
    """

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.code = ctx.code
        self.nodes = ctx.kernel.nodes
        self.ranges = node_ranges(ctx.kernel)
        self.live = self.needed([s.node for s in ctx.kernel.stores])
        self.native_half = ctx.target.isa != "generic"
        self.vectors = {
            name: ctx.constant(name, self._layout_vector(np.asarray(array, np.float32)))
            for name, array in ctx.kernel.vectors.items()
            if any(self.nodes[i].op == "vector" and self.nodes[i].name == name for i in self.live)
        }
        self._shared: dict[int, Expr] = {}
        self._halves: dict[int, Expr] = {}  # nodes rounded to float16, as bits
        self._shifted: dict[int, Expr] = {}  # codes as float32, `_code_zero` too large
        self._code_zero = vecmath.MAGIC + ctx.kernel.code.zero_point
        stores = ctx.kernel.stores
        self.choosers = {s.name: self._chooser(s) for s in stores if s.choice is not None}
        ctx.choosers = list(self.choosers.values())

    def _chooser(self, store: Store) -> Chooser:
        return Chooser(self.ctx, store)

    def needed(self, pending: list[int]) -> list[int]:
        """Return the nodes that some nodes depend on, themselves included, in order."""
        live: set[int] = set()
        while pending:
            i = pending.pop()
            if i not in live:
                live.add(i)
                pending.extend(self.nodes[i].args)
        return sorted(live)

    def _layout_vector(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        return pad_channels(array, self.ctx.vectors)

    def channels(self, c: Expr, lanes: int) -> None:
        """Bind what is the same at every pixel for channels ``c`` to ``c + lanes``."""
        self._shared = {
            i: self.code.bind(load(self.vectors[self.nodes[i].name], [c], lanes), "v")
            for i in self.live
            if self.nodes[i].op == "vector"
        }

    def spill(self, acc: Sequence[Any]) -> Any:
        """Move a tile's accumulators, 16 × int32 each in registers, to memory, where they stay.

        A loop over the columns of memory takes half the time to compile and is as fast: the
        accumulators pass through the first cache level.
        """
        spill = self.code.allocate(LANES * len(acc), "int32", "spill")
        for n, buffer in enumerate(acc):
            self.code.store(spill, [n * LANES], load(buffer, [0], LANES), LANES)
        return spill

    def tile(
        self,
        sums: Sequence[Any],
        shape: tuple[int, int],
        position: Callable[[int, Expr], tuple[Expr, Expr]],
        c: Expr,
        lanes: int,
    ) -> None:
        """Evaluate the nodes on a tile of accumulators.

        Parameters
        ----------
        sums : sequence of buffers
            Of the anchor and, if it has one, of its rest: int32 [pixel][16], row by row.
        shape : (int, int)
            Rows and columns of the tile.
        position : callable
            Maps a row and a column of the tile to the output's (y, x).
        c, lanes
            The first channel and how many.
        """
        self.channels(c, lanes)
        rows, columns = shape
        for i in range(rows):
            with self.code.loop(columns, "j") as j:
                y, x = position(i, j)
                values = [load(spill, [(j + i * columns) * LANES], lanes) for spill in sums]
                self.pixel(values[0], y, x, c, lanes, *values[1:])

    def finisher(
        self, stride: tuple[int, int] = (1, 1), offsets: Sequence[tuple[int, int]] = ((0, 0),)
    ) -> Finish:
        """Return what ends a tile of a given size: the choice of its pixels' bits.

        The tile's pixels lie in the output as `resq_tvm.schedules.sparse.changed_tiles` says.
        """

        def finish(tile: Tile, size: tuple[int, int]) -> None:
            for chooser, offset in product(self.choosers.values(), offsets):
                chooser.finish(tile, size, stride, offset)

        return finish if self.choosers else None

    def pixel(
        self,
        anchor: Expr | None,
        y: Expr,
        x: Expr,
        c: Expr,
        lanes: int,
        rest: Expr | None = None,
    ) -> None:
        """Evaluate the nodes at one pixel and store; `channels` must have been called."""
        values = self.evaluate(self.live, anchor, y, x, c, lanes, rest)
        for store in self.ctx.kernel.stores:
            self._store(store.node, store.name, values, (y, x, c), lanes)

    def evaluate(
        self,
        wanted: list[int],
        anchor: Expr | None,
        y: Expr,
        x: Expr,
        c: Expr,
        lanes: int,
        rest: Expr | None = None,
    ) -> dict[int, Expr]:
        """Return the values of nodes at one pixel; ``wanted`` holds what they read, in order."""
        values: dict[int, Expr] = {}
        for i in wanted:
            node = self.nodes[i]
            if i in self._shared:
                values[i] = self._shared[i]
            elif node.op == "anchor":
                values[i] = anchor
            elif node.op == "rest":
                values[i] = rest
            elif node.op == "scalar":
                values[i] = constant(node.value, "float32", lanes)
            elif node.op == "load":
                values[i] = self.code.bind(self._load(node.name, y, x, c, lanes), "l")
            elif (same := self._unchanged(i)) is not None:
                values[i] = values[same]
            elif node.op == "gate":
                new, key = (values[a] for a in node.args)
                changed = self.changed(y, x, lanes)
                values[i] = self.code.bind(tirx.Select(changed, new, key), "g")
            else:
                args = [values[a] for a in node.args]
                values[i] = self.code.bind(self._operation(i, args, lanes), "n")
        return values

    def _unchanged(self, i: int) -> int | None:
        """Return the argument that a maximum or minimum always is, if there is one."""
        node = self.nodes[i]
        if node.op not in ("max", "min"):
            return None
        a, b = node.args
        greater, less = (a, b) if node.op == "max" else (b, a)
        # Strictly: of two zeros of either sign the sign counts.
        if bool(np.all(self.ranges[greater][0] > self.ranges[less][1])):
            return a
        if bool(np.all(self.ranges[less][0] > self.ranges[greater][1])):
            return b
        return None

    def changed(self, y: Expr, x: Expr, lanes: int) -> Expr:
        """Return whether the gate's map says that the pixel changed, for every lane."""
        sparse = self.ctx.kernel.sparse
        assert sparse is not None and sparse.gate_map is not None
        flag = load(self.ctx.buffer(sparse.gate_map.name), [0, y, x, 0], 1)
        return splat(tirx.NE(flag, tirx.const(0, "uint8")), lanes)

    def _load(self, name: str, y: Expr, x: Expr, c: Expr, lanes: int) -> Expr:
        spec = self.ctx.kernel.tensor(name)
        if spec.h == 1 and spec.w == 1:
            y = x = 0
        single = spec.c == 1 and self.ctx.kernel.c > 1
        width = 1 if single else lanes
        value = self._fetch(spec, at(spec, y, x, 0 if single else c), width)
        if spec.dtype == "float16":
            value = vecmath.from_half(self.code, value, width, self.native_half)
        elif spec.dtype != "float32":
            value = cast(value, "int32", width)
            if self.ctx.kernel.code.zero_point:
                value = value - constant(self.ctx.kernel.code.zero_point, "int32", width)
            value = cast(value, "float32", width)
        return splat(value, lanes) if single else value

    def _fetch(self, spec: TensorSpec, index: list[Expr], lanes: int) -> Expr:
        """Load lanes as they are stored; float16 as its bits."""
        value = load(self.ctx.buffer(spec.name), index, lanes)
        return reinterpret(value, "uint16", lanes) if spec.dtype == "float16" else value

    def _put(self, spec: TensorSpec, index: list[Expr], value: Expr, lanes: int) -> None:
        """Store lanes; float16 as its bits."""
        if spec.dtype == "float16":
            value = reinterpret(value, "float16", lanes)
        self.code.store(self.ctx.buffer(spec.name), index, value, lanes)

    def _operation(self, i: int, args: list[Expr], lanes: int) -> Expr:
        code, node = self.code, self.nodes[i]
        a = args[0]
        b = args[1] if len(args) > 1 else None
        zero = constant(0.0, "float32", lanes)
        match node.op:
            case "dequantize" if self.nodes[node.args[0]].op == "quantize":
                zero = constant(self._code_zero, "float32", lanes)
                return vecmath.fence((self._shifted[node.args[0]] - zero) * b, lanes)
            case "dequantize":
                return vecmath.fence(cast(a, "float32", lanes) * b, lanes)
            case "add":
                return tirx.Add(a, b)
            case "sub":
                return tirx.Sub(a, b)
            case "mul":
                return vecmath.fence(tirx.Mul(a, b), lanes)
            case "div":
                return tirx.Div(a, b)
            case "max":
                return tirx.Max(a, b)
            case "min":
                return tirx.Min(a, b)
            case "neg":
                return reinterpret(
                    reinterpret(a, "int32", lanes) ^ constant(-(2**31), "int32", lanes),
                    "float32",
                    lanes,
                )
            case "abs":
                return reinterpret(
                    reinterpret(a, "int32", lanes) & constant(2**31 - 1, "int32", lanes),
                    "float32",
                    lanes,
                )
            case "sqrt":
                return tirx.op.call_llvm_pure_intrin(vector_type("float32", lanes), "llvm.sqrt", a)
            case "exp":
                return vecmath.exp(code, a, lanes)
            case "sigmoid":
                return vecmath.sigmoid(code, a, lanes)
            case "tanh":
                return vecmath.tanh(code, a, lanes)
            case "erf":
                return vecmath.erf(code, a, lanes)
            case "prelu":
                return tirx.Select(a > zero, a, vecmath.fence(tirx.Mul(a, b), lanes))
            case "round16":
                bits = code.bind(vecmath.to_half(code, a, lanes, self.native_half), "h")
                self._halves[i] = bits
                return vecmath.from_half(code, bits, lanes, self.native_half)
            case "quantize":
                return self._quantize(i, a, lanes)
        raise ValueError(f"epilogue node {node.op!r} is not one of those that spec.Node lists")

    def _quantize(self, i: int, value: Expr, lanes: int) -> Expr:
        """Return the code as int32.

        Clamping first is the same, since the limits are integers, and is left out where values
        cannot round to a code beyond; then the addition of 1.5 · 2^23 rounds half to even and
        leaves the code in the low mantissa bits. The zero point is added in the same go, so that a
        store is left with taking the low byte.
        """
        node, zero = self.nodes[i], self.ctx.kernel.code.zero_point
        scaled = vecmath.fence(value * constant(node.value, "float32", lanes), lanes)
        least, most = (bound * node.value for bound in self.ranges[node.args[0]])
        clamped = scaled
        if not bool(np.all(most <= node.limit + _WITHIN)):
            clamped = tirx.Min(clamped, constant(node.limit, "float32", lanes))
        if not bool(np.all(least >= -node.limit - _WITHIN)):
            clamped = tirx.Max(clamped, constant(-node.limit, "float32", lanes))
        # The fence keeps TVM's simplifier from cancelling what a dequantization subtracts.
        shifted = vecmath.fence(clamped + constant(self._code_zero, "float32", lanes), lanes)
        shifted = self.code.bind(shifted, "s")
        self._shifted[i] = shifted
        bits = reinterpret(shifted, "int32", lanes)
        return bits - constant(_MAGIC_BITS + zero, "int32", lanes)

    def _store(
        self, node: int, name: str, values: dict[int, Expr], position: tuple[Expr, ...], lanes: int
    ) -> None:
        spec = self.ctx.kernel.tensor(name)
        value = values[node]
        if spec.dtype == "float16" and self.nodes[node].op == "round16":
            value = self._halves[node]
        elif spec.dtype == "float16":
            value = vecmath.to_half(self.code, value, lanes, self.native_half)
        elif spec.dtype != "float32":
            zero_point = self.ctx.kernel.code.zero_point
            if zero_point:
                value = value + constant(zero_point, "int32", lanes)
            value = cast(value, spec.dtype, lanes)
        elif self.nodes[node].op in ("quantize", "anchor", "rest"):
            value = cast(value, "float32", lanes)
        self._put(spec, at(spec, *position), value, lanes)

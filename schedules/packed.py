"""Walks over tensors of up to four channels: four pixels share one vector of 16 lanes.

The first kernel of a network turns frames of three channels into codes; pixel by pixel it would
use three lanes of sixteen. Lane ``4·p + k`` holds channel ``k`` of pixel ``p``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from resq_tvm.schedules.choose import Chooser
from resq_tvm.schedules.code import Expr, cast, constant, intrinsic, load, splat
from resq_tvm.schedules.context import LANES, Context
from resq_tvm.schedules.energy import narrow
from resq_tvm.schedules.epilogue import Epilogue
from resq_tvm.schedules.sparse import Finish
from resq_tvm.schedules.spec import Store, TensorSpec

PACK = 4  # pixels per vector
SLOT = LANES // PACK


def packable(ctx: Context, anchored: str = "") -> bool:
    """Whether every tensor of the kernel covers the plane with up to four lanes per pixel.

    ``anchored`` is an input that the anchor alone reads: its plane does not matter.
    """
    kernel = ctx.kernel
    plane = (kernel.h, kernel.w, kernel.c)
    loaded = {n.name for n in kernel.nodes if n.op == "load"}
    return kernel.w >= PACK and all(
        t.c_phys <= SLOT
        and ((t.h, t.w, t.c) == plane or (t.name == anchored and t.name not in loaded))
        for t in (*kernel.inputs, *kernel.outputs)
    )


class PackedChooser(Chooser):
    """The policy on four pixels side by side, in registers.

    With VNNI the policy on stored codes is faster: it looks at sixteen pixels at a time.
    """

    def __init__(self, ctx: Context, store: Store) -> None:
        super().__init__(ctx, store)
        slots = np.arange(LANES) % SLOT < ctx.kernel.c
        self.mask = ctx.constant("m", slots.astype(np.float32))

    def select(self, codes: Expr, y: Expr, x: Expr) -> Expr:
        """Return the codes (int32) that the policy leaves, and note the pixels' bits."""
        code, pool = self.code, self.choice.pool
        fine = code.bind(cast(codes, "float32", LANES) * load(self.mask, [0], LANES))
        kept = [code.bind(narrow(fine, b, s, LANES)) for b, s in self.candidates]
        totals = [code.bind(self._per_pixel((fine - k) * (fine - k))) for k in kept]
        if pool[0] != 0:
            own, left = totals[1:], kept[1:]
        else:
            own, left = totals, kept
        roots = [code.bind(intrinsic("llvm.sqrt", "float32", LANES, t)) for t in own]
        roots.append(constant(0.0, "float32", LANES))
        assert self.ctx.sparse is not None
        limit = splat(load(self.ctx.sparse.thresholds, [self.choice.threshold], 1), LANES)
        result = fine
        bits = constant(pool[-1], "int32", LANES)
        lost: Expr = constant(0.0, "float32", LANES)
        for i in range(len(own) - 1, -1, -1):
            enough = roots[i] - roots[i + 1] < limit
            result = tirx.Select(enough, left[i], result)
            lost = tirx.Select(enough, own[i], lost)
            bits = tirx.Select(enough, constant(pool[i], "int32", LANES), bits)
        # Nothing is left of a pixel that loses as much as by dropping it.
        bits = tirx.Select(tirx.EQ(lost, totals[0]), constant(0, "int32", LANES), bits)
        bits = code.bind(bits, "bits")
        picked = tirx.Shuffle([bits], [p * SLOT for p in range(PACK)])
        # A map has one channel: pixels of a row are contiguous.
        index = [0, y, 0, x]
        code.store(self.ctx.buffer(self.map.name), index, cast(picked, "uint8", PACK), PACK)
        return code.bind(cast(result, "int32", LANES))

    def _per_pixel(self, squares: Expr) -> Expr:
        """Sum up the lanes of each pixel; every lane gets its pixel's sum."""
        value = self.code.bind(squares)
        for step in (1, 2):
            other = tirx.Shuffle([value], [i ^ step for i in range(LANES)])
            value = self.code.bind(value + other)
        return value


class PackedEpilogue(Epilogue):
    """An epilogue whose vectors are four pixels side by side.

    Without ``spread``, vectors are runs of values as they lie in memory.
    """

    spread = True

    def _layout_vector(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tile(np.pad(array, (0, SLOT - array.size)), PACK)

    def _chooser(self, store: Store) -> Chooser:
        stored = self.ctx.target.isa == "avx512-vnni"
        return Chooser(self.ctx, store) if stored else PackedChooser(self.ctx, store)

    def finisher(
        self, stride: tuple[int, int] = (1, 1), offsets: Sequence[tuple[int, int]] = ((0, 0),)
    ) -> Finish:
        """Return what ends a tile; nothing where bits are chosen in registers."""
        if any(isinstance(chooser, PackedChooser) for chooser in self.choosers.values()):
            return None
        return super().finisher(stride, offsets)

    def changed(self, y: Expr, x: Expr, lanes: int) -> Expr:
        """Return whether the gate's map says that the pixel changed, for every lane."""
        sparse = self.ctx.kernel.sparse
        assert sparse is not None and sparse.gate_map is not None
        # A map has one channel: pixels of a row are contiguous.
        flags = load(self.ctx.buffer(sparse.gate_map.name), [0, y, 0, x], PACK)
        spread = tirx.Shuffle([flags] * PACK, [p for p in range(PACK) for _ in range(SLOT)])
        return tirx.NE(spread, constant(0, "uint8", LANES))

    def pixel(
        self,
        anchor: Expr | None,
        y: Expr,
        x: Expr,
        c: Expr,
        lanes: int,
        rest: Expr | None = None,
    ) -> None:
        """Evaluate the nodes at four pixels, choose their bits, and store."""
        values = self.evaluate(self.live, anchor, y, x, c, lanes, rest)
        for store in self.ctx.kernel.stores:
            own = dict(values)
            chooser = self.choosers.get(store.name)
            if isinstance(chooser, PackedChooser):
                own[store.node] = chooser.select(values[store.node], y, x)
            self._store(store.node, store.name, own, (y, x, c), lanes)

    def _fetch(self, spec: TensorSpec, index: list[Expr], lanes: int) -> Expr:
        if not self.spread:
            return super()._fetch(spec, index, lanes)
        width = spec.c_phys
        value = super()._fetch(spec, index, PACK * width)
        if width == SLOT:
            return value
        # Four times over: TVM refuses shuffles that have more lanes than their operands.
        spread = [p * width + min(k, width - 1) for p in range(PACK) for k in range(SLOT)]
        return tirx.Shuffle([value] * PACK, spread)

    def _put(self, spec: TensorSpec, index: list[Expr], value: Any, lanes: int) -> None:
        width = spec.c_phys
        if width < SLOT:
            value = self.code.bind(value)
            value = tirx.Shuffle([value], [p * SLOT + k for p in range(PACK) for k in range(width)])
        super()._put(spec, index, value, PACK * width)

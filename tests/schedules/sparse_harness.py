"""Running a sparse kernel over a sequence of frames; after each, everything it keeps is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray

from resq_tvm.device import use_threads
from resq_tvm.passes import policy
from resq_tvm.passes.changes import REFRESH
from resq_tvm.reference.ops_policy import changed_pixels, choose_bits
from resq_tvm.schedules import meaning
from resq_tvm.schedules.context import input_maps, output_maps
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.emit import emit
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import (
    Conv,
    FloatConv,
    FusedKernel,
    TensorSpec,
)
from resq_tvm.targets.preset import Target

Array = NDArray[Any]

RUN = 16  # pixels of a row that are one tile of a kernel without a register tile
INDEX, KERNELS = 1, 3  # the kernel's row of the counts, and how many rows there are
_POISON = 13


def tiles_of(kernel: FusedKernel, decision: Decision) -> list[NDArray[np.bool_]]:
    """Return the output pixels of every tile, (h, w), in the order of the kernel's tiles."""
    anchor = kernel.anchor
    if not isinstance(anchor, Conv | FloatConv):
        return _cover(kernel, (kernel.h, kernel.w), (1, RUN), (1, 1), [(0, 0)])
    registers = isinstance(anchor, Conv) and not decision.gather
    size = (
        decision.tile_y if registers and decision.method != "taps" else 1,
        decision.tile_x if registers else 1,
    )
    (sy, sx) = anchor.out_stride
    # Phases of a dense convolution that read the same pixels have their tiles together.
    together = isinstance(anchor, Conv) and not anchor.depthwise
    groups: dict[Any, list[tuple[int, int]]] = {}
    for phase in anchor.phases:
        plane = -(-(kernel.h - phase.oy) // sy), -(-(kernel.w - phase.ox) // sx)
        if min(plane) > 0:
            read = frozenset(t[2:] for t in phase.taps) if together else (phase.oy, phase.ox)
            groups.setdefault((plane, read), []).append((phase.oy, phase.ox))
    return [
        tile
        for (plane, _), offsets in groups.items()
        for tile in _cover(kernel, plane, size, (sy, sx), offsets)
    ]


def _cover(
    kernel: FusedKernel,
    plane: tuple[int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    offsets: Sequence[tuple[int, int]],
) -> list[NDArray[np.bool_]]:
    axes = []
    for extent, most in zip(plane, size, strict=True):
        length = min(most, extent)
        axes.append([min(i, extent - length) + np.arange(length) for i in range(0, extent, length)])
    tiles = []
    for rows, columns in product(*axes):
        mask = np.zeros((kernel.h, kernel.w), bool)
        for oy, ox in offsets:
            mask[np.ix_(rows * stride[0] + oy, columns * stride[1] + ox)] = True
        tiles.append(mask)
    return tiles


@dataclass
class Work:
    """Which tiles a frame computed, and which it only reset."""

    active: NDArray[np.bool_]
    reset: NDArray[np.bool_]


class Stream:
    """A sparse kernel and what it keeps from frame to frame.

    Parameters
    ----------
    full : bool
        Whether a float output is not a difference: after a keyframe its tiles hold nothing.
    thresholds : sequence of float
        Of the choices, then of the gate.
    """

    threads = 1

    def __init__(
        self,
        kernel: FusedKernel,
        target: Target,
        full: bool = False,
        thresholds: Sequence[float] = (),
        decision: Decision | None = None,
    ) -> None:
        assert kernel.sparse is not None
        self.kernel, self.sparse, self.full = kernel, kernel.sparse, full
        self.decision = decision or decide(kernel, target)
        self.zero = kernel.code.zero_point
        self.thresholds = np.asarray(thresholds or [0], np.float32)
        func, constants = emit(kernel, self.decision, target)
        self.built = tvm.compile(
            tvm.IRModule({"main": func}), target=tvm.target.Target(target.llvm)
        )
        self.constants = [tvm.runtime.tensor(a) for _, a in constants]
        self.tiles = tiles_of(kernel, self.decision)
        # Where the last tiles overlap their neighbours, the first one notes the bits: a pixel that
        # two tiles have can keep what it had, when only the second one is computed.
        count = np.zeros((kernel.h, kernel.w), int)
        for tile in self.tiles:
            count += tile
        assert (count > 0).all()
        self.own = count == 1
        self.rest: dict[str, Array] = {}
        self.kept: dict[str, Any] = {}
        for spec in kernel.outputs:
            fill = self.zero if spec.dtype == kernel.code.dtype else 0
            self._keep(spec.name, spec.shape, spec.dtype, fill)
        for seen in output_maps(self.sparse):
            self._keep(seen.name, seen.shape, seen.dtype, 0)
        self._keep("tiles", (kernel.h * kernel.w,), "uint8", 0)
        self._keep("list", (self.sparse.list_size,), "int32", -7)
        self._keep("counts", (2 * KERNELS,), "int32", 99)

    def _keep(self, name: str, shape: tuple[int, ...], dtype: str, fill: int) -> None:
        self.kept[name] = tvm.runtime.tensor(np.full(shape, fill, dtype))

    def view(self, name: str) -> Array:
        """Return what is kept under a name, to be read or changed in place."""
        array: Array = np.from_dlpack(self.kept[name])
        return array

    @property
    def flags(self) -> Array:
        """The flags of the tiles."""
        return self.view("tiles")[: len(self.tiles)]

    def pixels(self, chosen: Array) -> NDArray[np.bool_]:
        """Return the pixels of the tiles that are chosen, (h, w)."""
        mask = np.zeros((self.kernel.h, self.kernel.w), bool)
        for tile, flag in zip(self.tiles, chosen, strict=True):
            if flag:
                mask |= tile
        return mask

    def keyframe(self, rest: dict[str, Array]) -> None:
        """Start anew: inputs as they are where nothing changes, (h, w, c) each, codes signed."""
        self.rest = rest
        if self.full:
            self.view("tiles")[:] = REFRESH

    def frame(self, inputs: dict[str, Array], maps: dict[str, Array]) -> Work:
        """Run the kernel once and check all that it keeps.

        Parameters
        ----------
        inputs : dict
            What differs from `keyframe`'s; only where the input's map says so.
        maps : dict
            Map → (h, w), 0 where nothing changed.
        """
        inputs = {**self.rest, **inputs}
        used = self.flags != 0
        sound = self._poison(self.pixels(~used) & ~self.pixels(used) & self.own)
        self._launch(inputs, maps)
        flags = self.flags
        assert np.isin(flags, (0, 1)).all()
        work = Work(flags == 1, used & (flags == 0))
        self._check_counts(work)
        self._check_poison(sound, ~self.pixels(work.active | work.reset) & self.own)
        self._check_outputs(inputs, work)
        return work

    def _launch(self, inputs: dict[str, Array], maps: dict[str, Array]) -> None:
        kernel, sparse = self.kernel, self.sparse
        given = [meaning.to_physical(s, inputs[s.name], self.zero) for s in kernel.inputs]
        given += [maps[m.name].astype(np.uint8)[None, :, :, None] for m in input_maps(sparse)]
        given.append(self.thresholds)
        names = [s.name for s in (*kernel.outputs, *output_maps(sparse))]
        use_threads(self.threads)
        self.built["main"](
            *(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in given),
            *self.constants,
            *(self.kept[n] for n in (*names, "tiles", "list", "counts")),
        )

    def _check_counts(self, work: Work) -> None:
        counts = self.view("counts").reshape(KERNELS, 2)
        assert counts[INDEX].tolist() == [work.active.sum(), work.reset.sum()], "its counts"
        assert (np.delete(counts, INDEX, axis=0) == 99).all(), "counts of other kernels"

    # What is left alone -----------------------------------------------------------------------

    def _kept(self) -> list[tuple[str, Array]]:
        """Return what tiles write: the insides of outputs and the maps, but not a gate's map."""
        found = []
        for spec in (*self.kernel.outputs, *output_maps(self.sparse)):
            if spec != self.sparse.gate_map:
                found.append((spec.name, self._inside(spec)))
        return found

    def _inside(self, spec: TensorSpec) -> Array:
        top, left, _, _ = spec.halo
        return self.view(spec.name)[0, top : top + spec.h, left : left + spec.w, : spec.c]

    def _poison(self, mask: Array) -> dict[str, Array]:
        """Change what unused tiles hold; return what it was."""
        sound = {}
        for name, inside in self._kept():
            sound[name] = inside.copy()
            inside[mask] += inside.dtype.type(_POISON)
        return sound

    def _check_poison(self, sound: dict[str, Array], mask: Array) -> None:
        """Pixels that no tile had to write must still be poisoned; then put them right."""
        for name, inside in self._kept():
            before = sound[name][mask]
            poisoned = before + inside.dtype.type(_POISON)
            np.testing.assert_array_equal(inside[mask], poisoned, err_msg=f"{name} was written")
            inside[mask] = before

    # What is written --------------------------------------------------------------------------

    def _check_outputs(self, inputs: dict[str, Array], work: Work) -> None:
        kernel = self.kernel
        changed = None if kernel.gate is None else self._check_gate(inputs)
        expected = meaning.run(kernel, inputs, changed)
        rest = meaning.run(kernel, self.rest, None if changed is None else changed & False)
        for store in kernel.stores:
            spec, value = kernel.tensor(store.name), expected[store.name]
            seen = self.view(self.sparse.out_maps[store.name].name)[0, :, :, 0]
            if store.choice is not None:
                codes, bits = choose_bits(
                    torch.from_numpy(value.astype(np.int8)),
                    list(store.choice.pool),
                    list(store.choice.shifts),
                    float(self.thresholds[store.choice.threshold]),
                )
                value = codes.numpy().astype(np.int32)
                np.testing.assert_array_equal(seen, bits.numpy(), err_msg=f"bits of {spec.name}")
            elif changed is None:
                assert np.isin(seen, (0, 1)).all()
                assert not (seen > self.pixels(work.active)).any(), "marked, but not computed"
            differs = (value != rest[store.name]).any(-1)
            assert not (differs & (seen == 0)).any(), f"{spec.name} changed unmarked"
            whole = self.view(spec.name)
            actual = meaning.to_logical(spec, whole, self.zero)
            np.testing.assert_array_equal(actual, value, err_msg=spec.name)
            halo = np.ones(spec.shape, bool)
            top, left, _, _ = spec.halo
            halo[:, top : top + spec.h, left : left + spec.w] = False
            assert (whole[halo] == self.zero).all(), "halo"

    def _check_gate(self, inputs: dict[str, Array]) -> Array:
        """Compare the gate's map with the reference; return it as bool (h, w, 1)."""
        gate, seen = self.kernel.gate, self.sparse.gate_map
        assert gate is not None and seen is not None
        threshold = float(self.thresholds[gate.threshold])
        meant = policy.Gate(gate.reciprocal, threshold, gate.block, gate.reach)
        x, key = (torch.from_numpy(inputs[n][None].astype(np.float32)) for n in ("x", "key"))
        expected = changed_pixels(x, key, meant).numpy()
        np.testing.assert_array_equal(self.view(seen.name), expected, err_msg="gate")
        inner: Array = expected[0]
        return inner

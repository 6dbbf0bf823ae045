"""Reduction order of a convolution whose lanes are input channels: runs of contiguous bytes.

In NHWC, neighbouring taps of a kernel row are neighbours in memory. A row of an undilated kernel is
therefore one *run* of ``kw · channels`` bytes, and 16 bytes of it, a *chunk*, may span two pixels:
few channels waste few lanes. The weights of channels that only pad a pixel are zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.packing import Segment, segments_of
from resq_tvm.schedules.spec import Conv, FusedKernel, Phase

CHUNK = 16  # bytes of a vector register


@dataclass(frozen=True)
class Run:
    """``rows × columns`` runs on a regular grid over one input.

    Run (a, b) begins at the input pixel ``(dy + a·step_y, dx + b·step_x)``, at the group's first
    channel, and has ``chunks`` chunks of 16 bytes, then one for each of ``tails`` (8 or 4 bytes).
    ``first`` is the number of the first chunk in the packed weights.

    Runs of whole chunks that lie one below the other are joined into one (``rows`` is 1): after
    every ``stretch`` chunks it goes on ``step_y`` rows below.
    """

    input: str
    first: int
    rows: int
    columns: int
    dy: int
    dx: int
    step_y: int
    step_x: int
    chunks: int
    tails: tuple[int, ...]
    stretch: int

    @property
    def units(self) -> int:
        """Chunks of one run, short ones included."""
        return self.chunks + len(self.tails)

    @property
    def size(self) -> int:
        """Chunks of all runs."""
        return self.rows * self.columns * self.units


@dataclass(frozen=True, eq=False)
class Reduction:
    """The runs of a phase, and their weights in the order in which they are read.

    ``weights[i]`` belongs to ``runs[i]``: int8 ``(outputs, rows, columns, units, 16)``; short
    chunks are padded with zero.
    """

    runs: tuple[Run, ...]
    weights: tuple[NDArray[np.int8], ...]

    @property
    def chunks(self) -> int:
        """Chunks of the whole reduction."""
        return sum(run.size for run in self.runs)

    def chunked(self) -> NDArray[np.int8]:
        """Return all weights as ``(outputs, chunks, 16)``."""
        outputs = self.weights[0].shape[0] if self.weights else 0
        parts = [w.reshape(outputs, -1, CHUNK) for w in self.weights]
        return np.concatenate(parts, axis=1) if parts else np.zeros((0, 0, CHUNK), np.int8)


def reduction_of(kernel: FusedKernel, phase: Phase) -> Reduction:
    """Cut a phase's reduction into runs.

    Parameters
    ----------
    kernel : FusedKernel
        Its anchor is a dense `Conv`, or a grouped one whose groups have whole chunks.
    phase : Phase
    """
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    runs, weights, first = [], [], 0
    for segment in segments_of(kernel, phase, 1):
        run, weight = _run(kernel, segment, anchor, first)
        runs.append(run)
        weights.append(weight)
        first += run.size
    return Reduction(tuple(runs), tuple(weights))


def _run(
    kernel: FusedKernel, segment: Segment, anchor: Conv, first: int
) -> tuple[Run, NDArray[np.int8]]:
    channels = segment.channels.stop - segment.channels.start
    physical = kernel.tensor(segment.input).c_phys if anchor.groups == 1 else channels
    joined = anchor.groups == 1 and (segment.columns == 1 or segment.step_x == 1)
    pixels = segment.columns if joined else 1
    # (outputs, rows, columns, channels), padded to whole pixels
    taps = np.stack([anchor.weight[:, ky, kx, segment.channels] for ky, kx in segment.taps], axis=1)
    taps = np.pad(taps, ((0, 0), (0, 0), (0, physical - channels)))
    taps = taps.reshape(taps.shape[0], segment.rows, segment.columns // pixels, pixels * physical)
    chunks, rest = divmod(taps.shape[3], CHUNK)
    tails = tuple(size for size in (8, 4) if rest & size)
    parts = [taps[..., : chunks * CHUNK].reshape(*taps.shape[:3], chunks, CHUNK)]
    start = chunks * CHUNK
    for size in tails:
        short = taps[..., None, start : start + size]
        parts.append(np.pad(short, ((0, 0), (0, 0), (0, 0), (0, 0), (0, CHUNK - size))))
        start += size
    run = Run(
        segment.input, first, segment.rows, segment.columns // pixels, segment.dy, segment.dx,
        segment.step_y, segment.step_x, chunks, tails, chunks,
    )  # fmt: skip
    packed = np.concatenate(parts, axis=3).astype(np.int8)
    if run.rows > 1 and run.columns == 1 and not tails:
        packed = packed.reshape(packed.shape[0], 1, 1, -1, CHUNK)
        run = replace(run, rows=1, chunks=run.rows * chunks)
    return run, packed

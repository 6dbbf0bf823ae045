"""Kernels that take turns band by band of rows: which rows a band reads, when each one runs.

In a cascade a kernel begins as soon as the rows that it reads are there. What passes between two
kernels then never exists as a whole: a circular buffer holds the rows that are still to be read.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.resample import axis_table
from resq_tvm.schedules.spec import Conv, FusedKernel, Pool, Resize, Walk, Window

Rows = tuple[int, int]  # first row, and the one behind the last
Turn = tuple[int, int]  # stage, its band


@dataclass(frozen=True)
class Stage:
    """A kernel of a cascade.

    Attributes
    ----------
    kernel : FusedKernel
    rows : int
        Of a band.
    reads, writes : tuple of hashable
        The tensors that its inputs and outputs are, by position.
    """

    kernel: FusedKernel
    rows: int
    reads: tuple[Hashable, ...]
    writes: tuple[Hashable, ...]

    @property
    def bands(self) -> int:
        """How many bands there are."""
        return ceil_div(self.kernel.h, self.rows)

    def written(self, band: int) -> Rows:
        """Return the rows of every output that a band writes."""
        return band * self.rows, min((band + 1) * self.rows, self.kernel.h)

    def read(self, band: int) -> tuple[tuple[Hashable, Rows], ...]:
        """Return tensor and rows of all that a band reads; rows may be none."""
        return self._read[band]

    @cached_property
    def _read(self) -> tuple[tuple[tuple[Hashable, Rows], ...], ...]:
        kernel = self.kernel
        loaded = {n.name for n in kernel.nodes if n.op == "load"}
        found: list[tuple[tuple[Hashable, Rows], ...]] = []
        for first, end in map(self.written, range(self.bands)):
            rows: list[tuple[Hashable, Rows]] = []
            for spec, key in zip(kernel.inputs, self.reads, strict=True):
                if spec.name in loaded:
                    rows.append((key, (first, end) if spec.h == kernel.h else (0, spec.h)))
                rows += [(key, r) for r in _anchor_rows(kernel, spec.name, first, end)]
            found.append(tuple(rows))
        return tuple(found)


def can_run_by_bands(kernel: FusedKernel) -> bool:
    """Return whether a kernel's rows depend on few rows of its inputs, in order."""
    if kernel.sparse is not None or kernel.gate is not None:
        return False
    if any(s.choice is not None for s in kernel.stores):
        return False
    anchor = kernel.anchor
    if isinstance(anchor, Conv):
        return len(anchor.phases) == 1 and anchor.out_stride == (1, 1)
    return isinstance(anchor, Pool | Resize | Walk | Window)


def _anchor_rows(kernel: FusedKernel, name: str, first: int, end: int) -> Iterator[Rows]:
    """Yield the rows of an input that the anchor reads for output rows ``first`` to ``end``."""
    anchor = kernel.anchor
    size = kernel.tensor(name).h
    match anchor:
        case Conv() if name in anchor.inputs:
            offsets = [dy for _, _, dy, _ in anchor.phases[0].taps] or [0]
            stride, before, reach = anchor.in_stride[0], min(offsets), max(offsets) - min(offsets)
        case Pool() if name == anchor.input:
            stride, before = anchor.stride[0], -anchor.padding[0]
            reach = (anchor.window[0] - 1) * anchor.dilation[0]
        case Window() if name == anchor.input:
            stride, before, reach = anchor.stride[0], anchor.offset[0], 0
        case Resize() if name == anchor.input:
            table = axis_table(anchor, size, kernel.h)
            yield int(table.low[first:end].min()), int(table.high[first:end].max()) + 1
            return
        case _:
            return
    begin = min(max(first * stride + before, 0), size)
    yield begin, max(begin, min((end - 1) * stride + before + reach + 1, size))


def order_of_bands(stages: Sequence[Stage], ahead: int) -> list[Turn]:
    """Return the turns of all bands: each as late as those that read it allow.

    Parameters
    ----------
    stages : sequence of Stage
        In an order in which they could run whole.
    ahead : int
        How many bands more than it reads a band finds written: engines then need not wait for each
        other, and circular buffers are larger.
    """
    makers = {key: n for n, stage in enumerate(stages) for key in stage.writes}
    last = set(range(len(stages))) - {
        makers[key] for stage in stages for key in stage.reads if key in makers
    }
    done = [0] * len(stages)
    turns: list[Turn] = []

    def advance(number: int, bands: int) -> None:
        stage = stages[number]
        for band in range(done[number], min(bands, stage.bands)):
            # Not the last of these alone: it may read nothing, such as padding.
            for reader in range(band, min(band + ahead + 1, stage.bands)):
                for key, (first, end) in stage.read(reader):
                    maker = makers.get(key)
                    if maker is not None and first < end:
                        advance(maker, ceil_div(end, stages[maker].rows))
            turns.append((number, band))
            done[number] = band + 1

    steps = max(stages[n].bands for n in last)
    for step in range(1, steps + 1):
        for number in sorted(last):
            advance(number, ceil_div(step * stages[number].bands, steps))
    for number, stage in enumerate(stages):  # rows that nobody reads
        advance(number, stage.bands)
    return turns


def rows_between(stages: Sequence[Stage], turns: Sequence[Turn]) -> dict[Hashable, int]:
    """Return how many rows of every tensor have to be there at once: its circular buffer's rows.

    Parameters
    ----------
    stages : sequence of Stage
    turns : sequence of (int, int)
        As of `order_of_bands`.
    """
    heights = {key: stage.kernel.h for stage in stages for key in stage.writes}
    needed = dict(heights)  # the first row that is still to be read; backwards in time
    rows = dict.fromkeys(heights, 1)
    for number, band in reversed(turns):
        stage = stages[number]
        first, end = stage.written(band)
        for key in stage.writes:
            rows[key] = max(rows[key], end - min(needed[key], first))
        for key, (begin, past) in stage.read(band):
            if key in needed and begin < past:
                needed[key] = min(needed[key], begin)
    return rows

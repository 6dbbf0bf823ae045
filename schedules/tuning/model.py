"""The cost model: gradient-boosted trees that rank the candidates of all tasks.

It learns by how much a candidate is faster or slower than the heuristic's decision of its task,
so that what one layer taught helps with the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules.context import LANES, ceil_div
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.spec import Conv, phase_plane
from resq_tvm.schedules.tuning.tasks import Task

_LEAST_ROWS = 48  # below, a model is worse than chance
_TREES = 80


class CostModel:
    """Predicts the logarithm of a candidate's time over the heuristic's."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.float32]] = []
        self._labels: list[float] = []
        self._trained = 0
        self._booster: object | None = None

    def learn(self, task: Task, decision: Decision, ratio: float) -> None:
        """Add one measurement: time over the time of the heuristic's decision."""
        self._rows.append(features(task, [decision])[0])
        self._labels.append(math.log(ratio))

    @property
    def ready(self) -> bool:
        """Whether there is enough to learn from."""
        return len(self._rows) >= _LEAST_ROWS

    def predict(self, task: Task, decisions: Sequence[Decision]) -> NDArray[np.float32]:
        """Return the predicted log ratio of each decision."""
        import xgboost

        if self._booster is None or len(self._rows) > 1.1 * self._trained:
            self._booster = xgboost.train(
                {"max_depth": 6, "eta": 0.15, "subsample": 0.9, "nthread": 1, "seed": 0},
                xgboost.DMatrix(np.stack(self._rows), np.array(self._labels, np.float32)),
                _TREES,
            )
            self._trained = len(self._rows)
        assert isinstance(self._booster, xgboost.Booster)
        predicted: NDArray[np.float32] = self._booster.predict(
            xgboost.DMatrix(features(task, decisions))
        )
        return predicted


def features(task: Task, decisions: Sequence[Decision]) -> NDArray[np.float32]:
    """Return (decisions, features): the kernel's shape, the tile, and what follows from both."""
    kernel = task.kernel
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    rows, columns = phase_plane(kernel, anchor)
    vectors = ceil_div(kernel.c, LANES)
    moved = [
        math.prod(s.shape) * np.dtype(s.dtype).itemsize
        for s in (*kernel.inputs, *kernel.outputs)
        if s.name not in anchor.reads
    ]
    taps = max((len(p.taps) for p in anchor.phases), default=1)
    shape = [
        math.log2(rows),
        math.log2(columns),
        math.log2(kernel.c),
        math.log2(anchor.weight.shape[3]),
        float(taps),
        float(anchor.in_stride[0]),
        float(anchor.out_stride[0]),
        float(anchor.depthwise),
        math.log2(1 + anchor.weight.size),
        math.log2(1 + sum(moved)),
        float(len(kernel.inputs)),
        float(len(kernel.nodes)),
        float(kernel.c % LANES),
        float(sum(s.dtype == "float16" for s in kernel.outputs)),
    ]
    table = []
    for d in decisions:
        pixels = d.tile_y * d.tile_x
        full = ceil_div(rows, d.tile_y) * d.tile_y * ceil_div(columns, d.tile_x) * d.tile_x
        table.append(
            [
                *shape,
                d.tile_y,
                d.tile_x,
                d.tile_o,
                pixels * d.tile_o,
                d.inner_o,
                d.prefetch,
                d.parallel,
                full / (rows * columns),
                ceil_div(vectors, d.tile_o) * d.tile_o / vectors,
                (pixels + d.tile_o) / (pixels * d.tile_o),
                math.log2(ceil_div(rows, d.tile_y)),
                vectors / d.tile_o,
            ]
        )
    return np.array(table, np.float32)

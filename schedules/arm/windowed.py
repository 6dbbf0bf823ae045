"""Schemes with narrow accumulators that are flushed into wider ones after a window of chunks."""

from __future__ import annotations

from typing import Any, ClassVar

from resq_tvm.schedules.arm.scheme import Scheme, store_quads, value, widen_pairs, zeros
from resq_tvm.schedules.code import Code, Expr, constant


class Windowed(Scheme):
    """Two levels of accumulators; the wide ones live in the first cache level.

    Attributes
    ----------
    narrow, wide : str
        Dtypes: ``"int8"`` and ``"int16"``, or ``"int16"`` and ``"int32"``.
    """

    narrow: ClassVar[str]
    wide: ClassVar[str]

    @property
    def lanes(self) -> int:
        """Lanes of a narrow accumulator; a wide one has half as many."""
        return 16 if self.narrow == "int8" else 8

    def start(self, code: Code, pixels: int) -> Any:
        """One narrow vector per pixel and output; wide ones where there are several windows."""
        narrow = [zeros(code, self.outputs, self.lanes, self.narrow) for _ in range(pixels)]
        if self.window.level == "all":
            return narrow, None
        return narrow, [zeros(code, self.outputs, self.lanes // 2, self.wide) for _ in narrow]

    def accumulators(self, state: Any) -> list[Any]:
        """Return the narrow ones."""
        return [acc for row in state[0] for acc in row]

    def flush(self, code: Code, state: Any) -> None:
        """Add the narrow sums to the wide ones (``sadalp``)."""
        half = self.lanes // 2
        for narrow, wide in zip(*state, strict=True):
            for a, b in zip(narrow, wide, strict=True):
                sums = widen_pairs(self.wide, value(a, self.lanes))
                code.store(b, [0], value(b, half) + sums, half)
                code.store(a, [0], constant(0, self.narrow, self.lanes), self.lanes)

    def finish(self, code: Code, state: Any, spill: Any, first: Expr) -> None:
        """Sum the lanes of every accumulator."""
        narrow, wide = state
        if wide is None:
            sums = [[widen_pairs(self.wide, value(a, self.lanes)) for a in row] for row in narrow]
        else:
            sums = [[value(a, self.lanes // 2) for a in row] for row in wide]
        if self.wide == "int16":
            sums = [[widen_pairs("int32", s) for s in row] for row in sums]
        store_quads(code, sums, spill, first)

"""The measurements of a decision, and which decision of a task wins."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.space import as_sample

# By how much a candidate must beat the heuristic: in the search, where each was measured at another
# moment, and in a contest, where they took turns.
UNPROVEN_MARGIN = 0.03
PROVEN_MARGIN = 0.01


@dataclass
class Measured:
    """All measurements of one decision.

    Attributes
    ----------
    decision : Decision
    runs : dict of int to list of float
        Seconds per run: 0 is the search; 1, 2, … are contests, in which the best candidates and
        the heuristic's decision took turns.
    code : str
        Digest of the program, where it is known.
    """

    decision: Decision
    runs: dict[int, list[float]] = field(default_factory=dict)
    code: str = ""

    @property
    def latest(self) -> int:
        """The latest contest that it took part in; 0: none."""
        return max(self.runs)

    def seconds(self, contest: int | None = None) -> float:
        """Return the median of a contest (0: of the search); of the latest by default."""
        return statistics.median(self.runs[self.latest if contest is None else contest])


def winner(measured: Sequence[Measured]) -> Measured:
    """Return the best decision of a task; the heuristic's comes first in ``measured``.

    After a contest, those count that took part in the latest one.
    """
    heuristic = measured[0]
    contest = heuristic.latest
    rivals = [m for m in measured if contest in m.runs]
    # Of equal times the same one wins, in whatever order the records come.
    best = min(rivals, key=lambda m: (m.seconds(contest), as_sample(m.decision)))
    gain = 1 - best.seconds(contest) / heuristic.seconds(contest)
    return best if gain > (PROVEN_MARGIN if contest else UNPROVEN_MARGIN) else heuristic

"""Who decides about a kernel: the heuristic rules, or what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.targets.preset import Target

HEURISTIC = "heuristic"

# Methods that do without a dot product, where the instruction set has one for that kind of layer.
_PLAIN = {"avx512-vnni": frozenset({"taps"})}


@dataclass(frozen=True)
class Chosen:
    """A decision and where it is from.

    Attributes
    ----------
    decision : Decision
    origin : str
        ``"heuristic"``, ``"record TASK"`` (a measurement), or ``"only"`` (there is no other).
    """

    decision: Decision
    origin: str


Decider = Callable[[FusedKernel], Chosen]


def by_rules(target: Target) -> Decider:
    """Return the heuristic rules of a target as a decider."""
    return lambda kernel: Chosen(decide(kernel, target), HEURISTIC)


def fallbacks(kernels: Iterable[Mapping[str, str | None]], isa: str) -> list[str]:
    """Return what runs otherwise than tuned and tensorized, one text per kernel.

    Parameters
    ----------
    kernels : iterable of mapping
        The manifest's kernels: ``name``, ``shape``, ``method``, ``origin``.
    isa : str
        The target's.
    """
    found = []
    for kernel in kernels:
        if kernel["origin"] == HEURISTIC:
            found.append(f"{kernel['name']} ({kernel['shape']}) runs a heuristic schedule")
        elif kernel["method"] in _PLAIN.get(isa, ()):
            found.append(f"{kernel['name']} ({kernel['shape']}) runs without a dot product")
    return found

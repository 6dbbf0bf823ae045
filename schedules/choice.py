"""Who decides about a kernel: the heuristic rules, or what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from resq_tvm.errors import CompileError
from resq_tvm.schedules.arm.schemes import AVAILABLE, choose
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.targets.preset import Target

HEURISTIC = "heuristic"
CASCADE = "cascade"
NETWORK = "network"

# Methods that do without a dot product, where the instruction set has one for that kind of layer.
_PLAIN = {"avx512-vnni": frozenset({"taps"})}


@dataclass(frozen=True)
class Chosen:
    """A decision and where it is from.

    Attributes
    ----------
    decision : Decision
    origin : str
        ``"heuristic"``, ``"record TASK"`` (a measurement), ``"only"`` (there is no other), and on
        an NPU ``"cascade"`` (bands of rows: `resq_tvm.passes.npu.cascade`) or ``"network"`` (tuned
        in the network: `resq_tvm.passes.npu.search`).
    """

    decision: Decision
    origin: str


Decider = Callable[[FusedKernel], Chosen]


def by_rules(target: Target) -> Decider:
    """Return the heuristic rules of a target as a decider."""
    return lambda kernel: Chosen(decide(kernel, target), HEURISTIC)


def preferring(decide: Decider, target: Target, wanted: str) -> Decider:
    """Return a decider that takes a scheme wherever it applies.

    Parameters
    ----------
    decide : callable
        Takes all other decisions.
    target : Target
    wanted : str
        The scheme's name.

    Raises
    ------
    CompileError
        If the target has no such scheme.
    """
    names = AVAILABLE.get(target.isa, ())
    if wanted not in names:
        known = ", ".join(names) or "none: it is no ARM core"
        raise CompileError(f"target {target.name} has no kernel scheme {wanted!r}; it has {known}")

    def decided(kernel: FusedKernel) -> Chosen:
        chosen = decide(kernel)
        if chosen.decision.method not in names:
            return chosen
        method, rule = choose(kernel, target, wanted)
        if method == chosen.decision.method:
            return chosen
        return Chosen(replace(chosen.decision, method=method, rule=rule), HEURISTIC)

    return decided


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

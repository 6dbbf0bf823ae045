"""The schemes by name, and which one pays on which core."""

from __future__ import annotations

from dataclasses import replace

from resq_tvm.schedules.arm.deep import Deep
from resq_tvm.schedules.arm.depth import Window, limits_of
from resq_tvm.schedules.arm.nibble import Nibble
from resq_tvm.schedules.arm.pairs import Pairs
from resq_tvm.schedules.arm.runs import reduction_of
from resq_tvm.schedules.arm.scheme import Scheme
from resq_tvm.schedules.arm.sdot import Sdot
from resq_tvm.schedules.arm.smlal import Smlal
from resq_tvm.schedules.arm.smmla import Smmla
from resq_tvm.schedules.arm.smull import Smull
from resq_tvm.schedules.arm.ternary import TERNARY, fits, pays
from resq_tvm.schedules.packing import densify
from resq_tvm.schedules.spec import Conv, FusedKernel
from resq_tvm.targets.preset import Target

SCHEMES: dict[str, type[Scheme]] = {
    s.name: s for s in (Smmla, Sdot, Nibble, Deep, Pairs, Smlal, Smull)
}

# What each core can run at all.
AVAILABLE = {
    "neon": (TERNARY, "nibble", "deep", "pairs", "smlal", "smull"),
    "neon-dot": ("sdot", TERNARY, "nibble", "deep", "pairs", "smlal", "smull"),
    "neon-i8mm": ("smmla", "sdot", TERNARY, "nibble", "deep", "pairs", "smlal", "smull"),
}

# What pays there, the best first (docs/arm.md has the figures); the first that applies is used.
# A multiplication of 16 bytes takes two cycles of one pipe of a Cortex-A72, half of what the
# widening multiplications reach, so that of the narrow schemes only `Nibble` pays there.
PREFERRED = {
    "cortex-a53": (TERNARY, "deep", "pairs", "smlal", "smull"),
    "cortex-a72": (TERNARY, "nibble", "smull"),
    "cortex-a55": ("sdot",),
    "cortex-a76": ("sdot",),
    "cortex-a710": ("smmla",),
}

_PLAIN = ("smlal", "smull")  # take half a chunk in half the time
_LANES = 16
_FEW_OUTPUTS = 4  # to look at a tile's bits takes longer than so few outputs win by them


def proofs(kernel: FusedKernel, name: str) -> list[Window] | None:
    """Return when a scheme's accumulators are flushed, per phase; None if it does not apply."""
    kernel = densify(kernel, _LANES, _LANES)
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    windows = []
    for phase in anchor.phases:
        window = SCHEMES[name].prove(reduction_of(kernel, phase), limits_of(anchor))
        if window is None:
            return None
        windows.append(window)
    return windows


def _holds(kernel: FusedKernel, name: str) -> bool:
    """Return whether a scheme applies to a kernel."""
    if name == TERNARY:
        assert isinstance(kernel.anchor, Conv)
        return fits(kernel, limits_of(kernel.anchor))
    return proofs(kernel, name) is not None


def applicable(kernel: FusedKernel, target: Target) -> list[str]:
    """Return the schemes that a target can run and that hold the kernel's sums."""
    return [name for name in AVAILABLE[target.isa] if _holds(kernel, name)]


def _short(kernel: FusedKernel) -> bool:
    """Return whether no run has a whole chunk: few channels, far apart."""
    kernel = densify(kernel, _LANES, _LANES)
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    return all(r.chunks == 0 for phase in anchor.phases for r in reduction_of(kernel, phase).runs)


def choose(kernel: FusedKernel, target: Target, wanted: str | None = None) -> tuple[str, str]:
    """Return the scheme that pays for a kernel, and the rule's name.

    Parameters
    ----------
    kernel : FusedKernel
        With a dense or grouped `Conv`.
    target : Target
    wanted : str, optional
        A scheme to be used wherever it applies.

    Returns
    -------
    scheme : str
    rule : str
        ``"dot"``; where a narrower scheme that is made for these bits was passed over, because its
        accumulators could overflow, that is said.
    """
    assert isinstance(kernel.anchor, Conv)
    limits = limits_of(kernel.anchor)
    overflowing: list[str] = []
    order = PREFERRED[target.core]
    if target.in_order and _short(kernel):
        order = tuple(name for name in order if name in _PLAIN) or order
    if wanted is not None:
        order = (wanted, *(name for name in order if name != wanted))
    for name in order:
        if name == TERNARY and name != wanted and not pays(kernel):
            continue
        if _holds(kernel, name):
            rule = f"dot ({', '.join(overflowing)} could overflow)" if overflowing else "dot"
            return name, rule
        if name in SCHEMES and all(a <= b for a, b in zip(limits, SCHEMES[name].bits, strict=True)):
            overflowing.append(name)
    raise AssertionError("the last scheme of every core applies to every kernel")


def coarse(kernel: FusedKernel, target: Target, usual: str) -> str:
    """Return the scheme that pays for tiles whose pixels have few bits; empty if ``usual`` does.

    Parameters
    ----------
    kernel : FusedKernel
        With a dense or grouped `Conv`.
    target : Target
    usual : str
        The scheme of all other tiles.
    """
    anchor = kernel.anchor
    assert isinstance(anchor, Conv)
    if kernel.sparse is None or anchor.coarse is None or usual not in SCHEMES:
        return ""
    if kernel.c <= _FEW_OUTPUTS:
        return ""
    limits = anchor.coarse.limit, limits_of(anchor)[1]
    found, _ = choose(replace(kernel, anchor=replace(anchor, limits=limits)), target)
    return found if found in SCHEMES and found != usual else ""

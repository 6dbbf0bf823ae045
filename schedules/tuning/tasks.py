"""What is to be tuned: a network's kernels, each structure once, weighted by how often it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.signature import digest, signature
from resq_tvm.schedules.space import Knobs, candidates, knobs, tunable
from resq_tvm.schedules.spec import Conv, FusedKernel
from resq_tvm.targets.preset import Target


@dataclass(frozen=True, eq=False)
class Task:
    """Kernels that are alike but for their numbers.

    Attributes
    ----------
    key : str
        Short name of their signature.
    kernel : FusedKernel
        One of them.
    names : tuple of str
        All of them.
    weight : float
        Runs per period of keyframes.
    space : dict
        What may be decided.
    decisions : list of Decision
        The space, the heuristic's decision first.
    """

    key: str
    kernel: FusedKernel
    names: tuple[str, ...]
    weight: float
    space: Knobs
    decisions: list[Decision]

    @property
    def heuristic(self) -> Decision:
        """The decision without a search."""
        return self.decisions[0]

    @property
    def macs(self) -> int:
        """Multiplications of one run, without those by padding."""
        return macs(self.kernel)

    def describe(self) -> str:
        """Return kind and shape in a few characters."""
        return describe(self.kernel)


def macs(kernel: FusedKernel) -> int:
    """Return the multiply-accumulates of a convolution, 0 of other kernels."""
    anchor = kernel.anchor
    if not isinstance(anchor, Conv):
        return 0
    products = 2 if anchor.rest else 1
    per_pixel = anchor.weight.shape[0] * anchor.weight.shape[3] * products
    sy, sx = anchor.out_stride
    return sum(
        -(-(kernel.h - p.oy) // sy) * -(-(kernel.w - p.ox) // sx) * len(p.taps) * per_pixel
        for p in anchor.phases
    )


def describe(kernel: FusedKernel) -> str:
    """Return kind and shape of a kernel in a few characters."""
    plane = f"{kernel.h}x{kernel.w}x{kernel.c}"
    anchor = kernel.anchor
    if not isinstance(anchor, Conv):
        return f"{type(anchor).__name__.lower()} {plane}"
    _, kh, kw, c = anchor.weight.shape
    kind = "depthwise" if anchor.depthwise else "conv"
    source = "" if anchor.depthwise else f" {c * anchor.groups}"
    stride = f" /{anchor.in_stride[0]}" if anchor.in_stride != (1, 1) else ""
    up = f" x{anchor.out_stride[0]}" if anchor.out_stride != (1, 1) else ""
    return f"{kind} {kh}x{kw}{source} > {plane}{stride}{up}"


def extract(
    kernels: Iterable[tuple[FusedKernel, float]], target: Target, threads: int = 1
) -> list[Task]:
    """Return the tasks of kernels, those first that take the most multiplications.

    Parameters
    ----------
    kernels : iterable of (FusedKernel, float)
        Each with how often it runs in a period.
    target : Target
    threads : int
        Threads per kernel.
    """
    groups: dict[str, list[tuple[FusedKernel, float]]] = {}
    for kernel, weight in kernels:
        if tunable(kernel, target):
            groups.setdefault(signature(kernel), []).append((kernel, weight))
    tasks = [
        Task(
            digest(text),
            group[0][0],
            tuple(k.name for k, _ in group),
            sum(w for _, w in group),
            knobs(group[0][0], target, threads),
            candidates(group[0][0], target, threads),
        )
        for text, group in groups.items()
    ]
    return sorted(tasks, key=lambda t: -t.macs * t.weight)

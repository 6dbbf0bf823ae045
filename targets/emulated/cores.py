"""The cores that the emulated board knows: pipelines, caches, clocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from resq_tvm.errors import TargetError
from resq_tvm.targets.emulated.timings import PORTS, TIMINGS, Timing

MODEL_VERSION = 1  # of tables and pipeline: another one gives other cycles


@dataclass(frozen=True)
class Core:
    """A core's pipeline, caches and clock.

    Attributes
    ----------
    name : str
        As LLVM spells it.
    in_order : bool
    width : int
        Instructions that issue (in order) or enter the window (out of order) per cycle.
    window : int
        Instructions in flight; 0 in order.
    ports : tuple of str
    timings : dict of str to Timing
    taken_branch, mispredict : int
        Cycles lost behind a taken branch, and behind one that was not foretold.
    l1, l2 : tuple of int
        Bytes and ways of the data caches.
    misses : tuple of int
        Further cycles of a load that level 2 answers, and that memory answers.
    clock_hz : float
        Of the board named in `board`.
    board : str
        A board with this core.
    qemu : str
        What qemu calls it, or a core with the same instructions.
    """

    name: str
    in_order: bool
    width: int
    window: int
    ports: tuple[str, ...]
    timings: dict[str, Timing]
    taken_branch: int
    mispredict: int
    l1: tuple[int, int]
    l2: tuple[int, int]
    misses: tuple[int, int]
    clock_hz: float
    board: str
    qemu: str


def _in_order(name: str, **options: object) -> Core:
    return Core(
        name=name,
        in_order=True,
        width=2,
        window=0,
        ports=PORTS[name],
        timings=TIMINGS[name],
        taken_branch=0,
        mispredict=7,
        **options,  # type: ignore[arg-type]
    )


CORES = {
    core.name: core
    for core in (
        _in_order(
            "cortex-a53",
            l1=(32 << 10, 4),
            l2=(512 << 10, 16),
            misses=(12, 140),
            clock_hz=1.4e9,
            board="Raspberry Pi 3 Model B+",
            qemu="cortex-a53",
        ),
        _in_order(
            "cortex-a55",
            l1=(32 << 10, 4),
            l2=(128 << 10, 4),
            misses=(10, 160),
            clock_hz=1.8e9,
            board="a board with RK3588, little cores",
            qemu="cortex-a76",
        ),
        Core(
            name="cortex-a72",
            in_order=False,
            width=3,
            window=128,
            ports=PORTS["cortex-a72"],
            timings=TIMINGS["cortex-a72"],
            taken_branch=0,
            mispredict=15,
            l1=(32 << 10, 2),
            l2=(1 << 20, 16),
            misses=(15, 150),
            clock_hz=1.5e9,
            board="Raspberry Pi 4 Model B",
            qemu="cortex-a72",
        ),
        Core(
            name="cortex-a76",
            in_order=False,
            width=4,
            window=128,
            ports=PORTS["cortex-a76"],
            timings=TIMINGS["cortex-a76"],
            taken_branch=0,
            mispredict=11,
            l1=(64 << 10, 4),
            l2=(512 << 10, 8),
            misses=(7, 220),
            clock_hz=2.4e9,
            board="Raspberry Pi 5",
            qemu="cortex-a76",
        ),
        Core(
            name="cortex-a710",
            in_order=False,
            width=5,
            window=160,
            ports=PORTS["cortex-a710"],
            timings=TIMINGS["cortex-a710"],
            taken_branch=0,
            mispredict=11,
            l1=(64 << 10, 4),
            l2=(512 << 10, 8),
            misses=(9, 230),
            clock_hz=2.5e9,
            board="a phone with Snapdragon 8 Gen 1, middle cores",
            qemu="max,sve=off,sme=off",
        ),
    )
}


# Other readings of what is known of a core; docs/arm-emulation.md compares them.
VARIANTS = {
    name: replace(
        CORES[name.removesuffix("-cautious")],
        name=name,
        ports=PORTS[name],
        timings=TIMINGS[name],
    )
    for name in ("cortex-a53-cautious", "cortex-a55-cautious")
}


def get_core(name: str) -> Core:
    """Return a core of `CORES` or `VARIANTS`.

    Raises
    ------
    TargetError
        If the emulated board does not know it.
    """
    known = CORES | VARIANTS
    if name not in known:
        raise TargetError(f"core {name!r} cannot be emulated; use one of {', '.join(known)}")
    return known[name]

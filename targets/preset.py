"""Target presets: everything that the compiler and the schedules need to know of a machine.

A preset names a feature *level*, not the host's exact CPU: an artifact that was built on one
machine of a level runs on every other one. `get_target("auto")` picks the best level of this CPU.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_tvm.errors import TargetError

if TYPE_CHECKING:
    from resq_tvm.targets.npu.description import Npu


@dataclass(frozen=True)
class CodeFormat:
    """How a target stores quantized activations: stored value = code + zero_point."""

    dtype: str  # "uint8" (VNNI, zero_point 128) or "int8" (zero_point 0)
    zero_point: int


@dataclass(frozen=True)
class Target:
    """A machine that kernels are written for.

    Attributes
    ----------
    name : str
        The preset's name.
    isa : str
        ``"avx512-vnni"``, ``"avx2"``, ``"generic"``, ``"neon"`` (ARMv8.0), ``"neon-dot"`` (with
        dot products), ``"neon-i8mm"`` (and matrix products) or ``"npu"``: which kernel rules apply.
    mcpu : str
        LLVM's name of the feature level.
    mattr : tuple of str
        LLVM features that are added to or (with ``-``) taken from the level.
    features : tuple of str
        Features, as ``/proc/cpuinfo`` spells them, without which the code does not run.
    registers : int
        Vector registers.
    register_lanes : int
        32-bit lanes of one vector register.
    code : CodeFormat
        How quantized activations are stored.
    triple : str
        LLVM's name of the platform; empty: this machine's.
    core : str
        The core whose timing the rules and the emulated board know; empty: none.
    npu : Npu or None
        The machine, if it is one; what else is said is then about the code beside it, for this
        CPU: operators that the machine has not.
    """

    name: str
    isa: str
    mcpu: str
    mattr: tuple[str, ...]
    features: tuple[str, ...]
    registers: int
    register_lanes: int
    code: CodeFormat
    triple: str = ""
    core: str = ""
    npu: Npu | None = None

    @property
    def arm(self) -> bool:
        """Whether this is a 64-bit ARM core: its kernels depend on how large codes may be."""
        return self.isa.startswith("neon")

    @property
    def in_order(self) -> bool:
        """Whether the core waits for a load that comes too late."""
        return self.core in ("cortex-a53", "cortex-a55")

    @property
    def architecture(self) -> str:
        """Return the machine's architecture as ``uname -m`` spells it."""
        return "aarch64" if self.arm else "x86_64"

    @property
    def llvm(self) -> dict[str, Any]:
        """The dictionary that ``tvm.target.Target`` takes."""
        target: dict[str, Any] = {"kind": "llvm", "mcpu": self.mcpu}
        if self.triple:
            target["mtriple"] = self.triple
        if self.mattr:
            target["mattr"] = list(self.mattr)
        return target


def _arm(
    core: str, isa: str, features: tuple[str, ...] = (), mattr: tuple[str, ...] = ()
) -> Target:
    """Return the preset of a 64-bit ARM core under Linux."""
    return Target(
        name=core,
        isa=isa,
        mcpu=core,
        mattr=mattr,
        features=("fp", "asimd", *features),
        registers=32,
        register_lanes=4,
        code=CodeFormat("int8", 0),
        triple="aarch64-linux-gnu",
        core=core,
    )


# prefer-256-bit is Intel's default below Sapphire Rapids; the 512-bit dot products are written out
# in the kernels, and 512-bit epilogues are faster on every VNNI machine than splitting them.
PRESETS = {
    preset.name: preset
    for preset in (
        Target(
            name="x86-avx512-vnni",
            isa="avx512-vnni",
            mcpu="icelake-server",
            mattr=("-prefer-256-bit",),
            features=(
                "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512vbmi",
                "avx512_vbmi2", "avx512_bitalg", "avx512_vpopcntdq", "avx512ifma", "gfni",
                "vaes", "vpclmulqdq", "fma", "f16c", "bmi2", "sha_ni",
            ),
            registers=32,
            register_lanes=16,
            code=CodeFormat("uint8", 128),
        ),
        Target(
            name="x86-avx2",
            isa="avx2",
            mcpu="x86-64-v3",
            mattr=(),
            features=("avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"),
            registers=16,
            register_lanes=8,
            code=CodeFormat("int8", 0),
        ),
        Target(
            name="x86-generic",
            isa="generic",
            mcpu="x86-64",
            mattr=(),
            features=("sse2",),
            registers=16,
            register_lanes=4,
            code=CodeFormat("int8", 0),
        ),
        # The best first: "auto" takes the first that fits. LLVM knows a core's other features by
        # its name; those that it may use by itself are listed.
        _arm("cortex-a710", "neon-i8mm", ("asimddp", "asimdhp", "i8mm"), ("-sve", "-sve2")),
        _arm("cortex-a76", "neon-dot", ("asimddp", "asimdhp", "atomics")),
        _arm("cortex-a55", "neon-dot", ("asimddp", "asimdhp", "atomics")),
        _arm("cortex-a72", "neon"),
        # LLVM's latency heuristic for in-order cores hoists more products than there are registers.
        _arm("cortex-a53", "neon", mattr=("+disable-latency-sched-heuristic",)),
    )
}  # fmt: skip


_NPU_SUFFIX = ".json"


def npu_target(npu: Npu) -> Target:
    """Return an NPU as a target; what runs beside it is for every CPU of this architecture."""
    if platform.machine() == "x86_64":
        host = PRESETS["x86-generic"]
    else:
        host = Target("generic", "generic", "generic", (), (), 32, 4, CodeFormat("int8", 0))
    return replace(host, name=npu.name, isa="npu", code=CodeFormat("int8", 0), npu=npu)


@cache
def cpu_features() -> frozenset[str]:
    """Return this CPU's feature flags as the Linux kernel spells them; empty where unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


# Of the CPUs that Arm Ltd. (implementer 0x41) designed, as the Linux kernel spells them.
_PARTS = {
    "0xd03": "cortex-a53", "0xd05": "cortex-a55", "0xd08": "cortex-a72", "0xd0b": "cortex-a76",
    "0xd47": "cortex-a710",
}  # fmt: skip


@cache
def cpu_cores() -> tuple[str, ...]:
    """Return the ARM cores of this CPU that presets are named for, the most capable last."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    parts = {
        line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("CPU part")
    }
    return tuple(core for part, core in _PARTS.items() if part in parts)


def missing_features(target: Target) -> tuple[str, ...]:
    """Return the features that ``target`` requires and this CPU lacks, in the preset's order."""
    return tuple(f for f in target.features if f not in cpu_features())


def get_target(name: str = "auto") -> Target:
    """Return a preset, or the NPU of a parameter file.

    Parameters
    ----------
    name : str
        A preset's name, ``"auto"`` for the best preset that this CPU can run, or the path of a file
        that describes an NPU (it ends with ``.json``; docs/npu.md).

    Raises
    ------
    TargetError
        If there is no such preset, ``"auto"`` finds none that runs here, or the file is wrong.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name != "auto":
        return _npu(name)
    fitting = [preset for preset in PRESETS.values() if not missing_features(preset)]
    own = [preset for preset in fitting if preset.core and preset.core in cpu_cores()]
    for preset in (*own, *fitting):
        return preset
    raise TargetError(
        f"target 'auto': this CPU fits no preset; name one of {', '.join(PRESETS)} to cross-compile"
    )


def _npu(name: str) -> Target:
    from resq_tvm.targets.npu.description import preset_npus, read_npu

    if name.endswith(_NPU_SUFFIX):
        return npu_target(read_npu(name))
    npus = preset_npus()
    if name not in npus:
        known = ", ".join((*PRESETS, *npus))
        raise TargetError(
            f"target {name!r} is unknown; use auto, {known}, or the .json file of an NPU"
        )
    return npu_target(npus[name])

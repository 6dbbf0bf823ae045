"""What programs on an emulated core can find out about it.

qemu's user mode gives a program the feature bits of its CPU model, but the ``/proc/cpuinfo`` and
``/sys`` of this machine. Libraries that choose kernels by the core read both, so an emulated core
comes with files of its own, which qemu shows first when they lie in its ``-L`` folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from resq_tvm.targets.emulated.cores import get_core

_ARMV8_0 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_ARMV8_2 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp"
)
_ARMV9_0 = f"{_ARMV8_2} i8mm bf16"


@dataclass(frozen=True)
class Identity:
    """How a core introduces itself.

    Attributes
    ----------
    name : str
        As LLVM spells it.
    midr : int
        The main ID register: implementer (0x41 is ARM), variant, architecture, part, revision.
    features : str
        As ``/proc/cpuinfo`` spells them.
    """

    name: str
    midr: int
    features: str

    def files(self) -> dict[str, str]:
        """Return the files of a machine with one such core, by path without the leading slash."""
        cpu = "sys/devices/system/cpu"
        return {
            "proc/cpuinfo": (
                "processor\t: 0\n"
                "BogoMIPS\t: 108.00\n"
                f"Features\t: {self.features}\n"
                f"CPU implementer\t: 0x{self.midr >> 24:02x}\n"
                "CPU architecture: 8\n"
                f"CPU variant\t: 0x{self.midr >> 20 & 0xF:x}\n"
                f"CPU part\t: 0x{self.midr >> 4 & 0xFFF:03x}\n"
                f"CPU revision\t: {self.midr & 0xF}\n\n"
            ),
            **{f"{cpu}/{name}": "0\n" for name in ("possible", "present", "online")},
            f"{cpu}/kernel_max": "0\n",
            f"{cpu}/cpu0/regs/identification/midr_el1": f"0x{self.midr:016x}\n",
        }


# Parts and features: the cores' technical reference manuals; of the features those that libraries
# choose kernels by. Cortex-A710's SVE is left out, as it is on its emulated board.
_IDENTITIES = {
    core.name: core
    for core in (
        Identity("cortex-a53", 0x410FD034, _ARMV8_0),
        Identity("cortex-a72", 0x410FD083, _ARMV8_0),
        Identity("cortex-a55", 0x412FD050, _ARMV8_2),
        Identity("cortex-a76", 0x414FD0B1, _ARMV8_2),
        Identity("cortex-a710", 0x412FD471, _ARMV9_0),
    )
}


def identities() -> tuple[Identity, ...]:
    """Return every core that can be emulated."""
    return tuple(_IDENTITIES.values())


def identity_of(core: str) -> Identity:
    """Return a core's identity.

    Raises
    ------
    TargetError
        If the emulated board does not know the core.
    """
    return _IDENTITIES[get_core(core).name]

"""For which machine a measurement holds: records of one fingerprint say nothing about another."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from resq_tvm.errors import ConfigError
from resq_tvm.files import atomic_file
from resq_tvm.schedules.signature import SCHEDULE_VERSION
from resq_tvm.schedules.typed import read_fields

FINGERPRINT_NAME = "fingerprint.json"


@dataclass(frozen=True)
class Fingerprint:
    """A target on a device, with so many threads, and the version of the emitted code.

    Attributes
    ----------
    target : str
        The preset's name.
    device : str
        The processor's name, or what a remote device calls itself.
    threads : int
        Threads per kernel.
    schedules : int
        `SCHEDULE_VERSION` of the kernels that were measured.
    simulated : bool
        Whether times are simulated.
    """

    target: str
    device: str
    threads: int = 1
    schedules: int = SCHEDULE_VERSION
    simulated: bool = False

    @property
    def folder(self) -> str:
        """A file name that tells fingerprints apart."""
        device = re.sub(r"[^A-Za-z0-9]+", "-", self.device).strip("-") or "unknown"
        kind = "-simulated" if self.simulated else ""
        return f"{self.target}@{device}-t{self.threads}-v{self.schedules}{kind}"

    def __str__(self) -> str:
        return self.folder

    def write(self, folder: Path) -> None:
        """Write ``fingerprint.json`` into a folder of records."""
        with atomic_file(folder / FINGERPRINT_NAME) as path:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Fingerprint:
        """Read what `write` wrote.

        Raises
        ------
        ConfigError
            If the file is missing or broken.
        """
        path = folder / FINGERPRINT_NAME
        try:
            return read_fields(cls, path.read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"records {str(folder)!r}: {FINGERPRINT_NAME} cannot be read ({error}); "
                "name a work directory that 'resq-tvm tune' wrote"
            ) from None

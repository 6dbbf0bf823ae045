"""Assemble a few instructions for the tests."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tests.tools import need


def words_of(text: str) -> list[int]:
    """Return the instruction words of assembly text; skip the test without an assembler."""
    need("aarch64-linux-gnu-as", "aarch64-linux-gnu-objcopy")
    with tempfile.TemporaryDirectory() as name:
        source, code, raw = (Path(name) / f"code.{end}" for end in ("s", "o", "bin"))
        source.write_text(text + "\n")
        for command in (
            ["aarch64-linux-gnu-as", "-march=armv8.6-a", "-o", str(code), str(source)],
            ["aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", str(code), str(raw)],
        ):
            subprocess.run(command, check=True, timeout=60)
        return [int(word) for word in np.fromfile(raw, "<u4")]


def loop(*lines: str) -> list[int]:
    """Return the words of a loop with the given body."""
    return words_of("\n".join(["1:", *lines, "b 1b"]))

"""Programs outside of Python that some tests need."""

from __future__ import annotations

import os
import shutil

import pytest

from resq_tvm.errors import AssetError
from resq_tvm.targets.boardkit import board_kit


def need(*programs: str) -> None:
    """Skip the calling test if a program is not installed; fail it where CI should have it."""
    missing = [name for name in programs if shutil.which(name) is None]
    if not missing:
        return
    message = f"{', '.join(missing)} not installed"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def board_tools() -> None:
    """Skip the calling test where kernels cannot be built for boards and emulated."""
    need("qemu-aarch64", "aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump", "cc")
    try:
        board_kit()
    except AssetError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))

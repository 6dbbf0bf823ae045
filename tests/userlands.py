"""The emulated system that some tests need."""

from __future__ import annotations

import os

import pytest

from resq_tvm.errors import AssetError
from resq_tvm.targets.emulated.userland import Userland, userland
from tests.tools import need


def userland_or_skip(kind: str, core: str = "cortex-a72") -> Userland:
    """Return an emulated system; skip the test without qemu or network, fail it there in CI."""
    need("qemu-aarch64", "apt-get", "dpkg")
    try:
        return userland(kind, core)
    except AssetError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))

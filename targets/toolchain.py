"""Linking libraries: with this machine's C++ compiler, or with a cross compiler for a board."""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

from resq_tvm.errors import TargetError
from resq_tvm.targets.preset import PRESETS, Target

_PACKAGES = {"aarch64": "g++-aarch64-linux-gnu"}


def is_foreign(target: Target | str) -> bool:
    """Return whether a target's code runs on another architecture than this machine's.

    Parameters
    ----------
    target : Target or str
        A name that no preset has counts as this machine's.
    """
    preset = PRESETS.get(target) if isinstance(target, str) else target
    return preset is not None and bool(preset.triple) and platform.machine() != preset.architecture


def cross_compiler(architecture: str) -> str | None:
    """Return the path of a C++ cross compiler, None if there is none.

    Parameters
    ----------
    architecture : str
        As ``uname -m`` spells it. The environment variable ``RESQ_TVM_CXX_AARCH64`` (and so on)
        names another compiler than ``aarch64-linux-gnu-g++``.
    """
    named = os.environ.get(f"RESQ_TVM_CXX_{architecture.upper()}")
    return shutil.which(named or f"{architecture}-linux-gnu-g++")


def require_cross_compiler(architecture: str) -> str:
    """Return the path of a C++ cross compiler.

    Raises
    ------
    TargetError
        If there is none.
    """
    found = cross_compiler(architecture)
    if found is None:
        raise TargetError(
            f"no C++ cross compiler for {architecture}; install the package "
            f"{_PACKAGES.get(architecture, 'of one')} or name one in "
            f"RESQ_TVM_CXX_{architecture.upper()}"
        )
    return found


def export_options(target: Target) -> dict[str, Any]:
    """Return the keyword arguments of ``export_library`` that link for a target.

    Raises
    ------
    TargetError
        If the target is another architecture's and its cross compiler is absent.
    """
    if not is_foreign(target):
        return {}
    from tvm.support import cc

    return {"fcompile": cc.cross_compiler(require_cross_compiler(target.architecture))}

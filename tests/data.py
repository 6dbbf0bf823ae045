"""Where the tests find clips, pretrained models and labelled video (not part of the project)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    """Return the data folder: ``RESQ_TVM_DATA``, or ``../shared/data`` beside the repository."""
    override = os.environ.get("RESQ_TVM_DATA")
    return Path(override) if override else _ROOT.parent / "shared" / "data"


def data_path(relative: str) -> Path:
    """Return a file or folder of the test data, or skip the calling test where it is absent.

    Parameters
    ----------
    relative : str
        Path inside the data folder, for example ``"models/espnet_camvid.onnx"``.
    """
    path = data_root() / relative
    if not path.exists():
        pytest.skip(f"test data {relative} is absent; set RESQ_TVM_DATA to the folder that has it")
    return path

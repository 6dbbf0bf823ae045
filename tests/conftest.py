"""What every test shares: a seeded random generator and a quiet environment."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The suite shares its machine with other work: deadlines would measure that, not the code.
settings.register_profile("resq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("resq")

# Threads of PyTorch that spin at barriers starve each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# TVM's thread pool pins the calling thread to one CPU, and with it every test that follows.
os.environ.setdefault("TVM_BIND_THREADS", "0")

# Rich colours its output when a terminal is asked for; tests compare plain text.
os.environ.setdefault("NO_COLOR", "1")
os.environ.setdefault("COLUMNS", "160")


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a random generator with a fixed seed."""
    return np.random.default_rng(20260731)

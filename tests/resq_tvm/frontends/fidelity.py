"""Running a canonical network on arrays in the source model's layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from resq_tvm.network import Network
from resq_tvm.reference.executor import Executor


def run(network: Network, *inputs: np.ndarray) -> list[np.ndarray]:
    """Return the outputs in the source's layout."""
    canonical = [
        torch.from_numpy(np.ascontiguousarray(network.to_canonical(x, i)))
        for i, x in enumerate(inputs)
    ]
    outputs = Executor(network.module["main"])(*canonical)
    return [network.from_canonical(y.numpy(), i) for i, y in enumerate(outputs)]


def close(got: Any, want: Any, tolerance: float = 2e-5) -> None:
    """Compare within ``tolerance`` of the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert np.isfinite(want).all()
    assert np.abs(got - want).max() <= tolerance * max(1.0, float(np.abs(want).max()))

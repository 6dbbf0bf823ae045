"""Large pages: asked for block by block, once, and never needed."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from resq_tvm import pages
from resq_tvm.pages import BLOCK, LargePages


@pytest.fixture
def big() -> tvm.runtime.Tensor:
    return tvm.runtime.tensor(np.arange(3 * BLOCK, dtype=np.uint8))


def answering(monkeypatch: pytest.MonkeyPatch, *answers: bool) -> list[int]:
    """Let the kernel answer like that, the last answer for ever; return where it is asked."""
    asked: list[int] = []

    def collapse(address: int) -> bool:
        asked.append(address)
        return answers[min(len(asked), len(answers)) - 1]

    monkeypatch.setattr(pages, "_collapse", collapse)
    return asked


def test_blocks_with_enough_of_a_tensor_are_moved_once(
    monkeypatch: pytest.MonkeyPatch, big: tvm.runtime.Tensor
) -> None:
    asked, own = answering(monkeypatch, True), LargePages()
    small = tvm.runtime.tensor(np.zeros(100, np.float32))
    assert own.gather([big, small]) == len(asked)
    start = big.data_ptr()
    inner = range(-(-start // BLOCK) * BLOCK, (start + 3 * BLOCK) // BLOCK * BLOCK, BLOCK)
    assert set(inner) <= set(asked) and all(a % BLOCK == 0 for a in asked)
    assert own.gather([big]) == 0 and len(asked) == len(set(asked))


def test_blocks_that_cannot_be_moved_stay(
    monkeypatch: pytest.MonkeyPatch, big: tvm.runtime.Tensor
) -> None:
    asked = answering(monkeypatch, False, True)
    assert LargePages().gather([big]) == len(asked) - 1 > 0


def test_contents_stay(big: tvm.runtime.Tensor) -> None:
    LargePages().gather([big])
    np.testing.assert_array_equal(big.numpy(), np.arange(3 * BLOCK, dtype=np.uint8))

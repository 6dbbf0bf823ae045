"""Large pages for the memory that a stream walks through on every frame.

Weights, state and workspace are tens of megabytes. In pages of 4 KiB their addresses do not fit
into the processor's tables; on a virtual machine, where an address is looked up twice, that takes a
quarter of a frame's time. Linux (6.1 or later) moves a block of memory to one page of 2 MiB on
request (madvise(2), ``MADV_COLLAPSE``); where it does not, all stays as it was.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

BLOCK = 2 << 20  # bytes of a large page
_WORTH = BLOCK // 8  # bytes of ours that a block must hold
_COLLAPSE = 25  # MADV_COLLAPSE


class LargePages:
    """Moves tensors to large pages, every block of memory once."""

    def __init__(self) -> None:
        self._done: set[int] = set()
        self._works = sys.platform == "linux"

    def gather(self, tensors: Iterable[Any]) -> int:
        """Move the memory of tensors; takes some milliseconds per block.

        Parameters
        ----------
        tensors : iterable of tvm.runtime.Tensor

        Returns
        -------
        int
            Blocks that are large pages now and were not asked for before.
        """
        if not self._works:
            return 0
        new = _blocks(tensors) - self._done
        self._done |= new
        return sum(_collapse(block * BLOCK) for block in new)


def _blocks(tensors: Iterable[Any]) -> set[int]:
    """Return the numbers of the blocks that tensors lie in with enough of their bytes."""
    own: Counter[int] = Counter()
    for tensor in tensors:
        start = tensor.data_ptr()
        end = start + np.from_dlpack(tensor).nbytes
        for block in range(start // BLOCK, -(-end // BLOCK)):
            own[block] += min(end, (block + 1) * BLOCK) - max(start, block * BLOCK)
    return {block for block, count in own.items() if count >= _WORTH}


def _collapse(address: int) -> bool:
    """Ask for one page in the place of a block; return whether there is one now.

    There is none where memory ends within the block, where no page is free, and on other kernels.
    """
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return bool(advise(address, BLOCK, _COLLAPSE) == 0)

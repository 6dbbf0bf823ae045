"""What a candidate is run on, and what has to come out.

Time is taken as in a network: the codes that a convolution reads were just written, but state and
weights were last touched a frame ago, and all that the network touched since may have pushed them
out of the caches. So a device holds as many copies of the tensors as make up the network's
footprint, goes from copy to copy, and writes the codes anew before a run.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.schedules import meaning
from resq_tvm.schedules.spec import Conv, FusedKernel

Array = NDArray[Any]

MOST_COPIES = 128
_INEXACT_CODES = 1e-3  # share of codes that may be one off where functions are approximated


class Scene:
    """Inputs of a kernel, and the outputs that the reference gives for them.

    Parameters
    ----------
    kernel : FusedKernel
    """

    def __init__(self, kernel: FusedKernel) -> None:
        self.kernel = kernel
        zero = kernel.code.zero_point
        rng = np.random.default_rng(zlib.crc32(kernel.name.encode()))
        logical = meaning.random_inputs(kernel, rng)
        self.inputs = [meaning.to_physical(s, logical[s.name], zero) for s in kernel.inputs]
        self._expected = meaning.run(kernel, logical)
        self._exact = meaning.is_exact(kernel)
        anchor = kernel.anchor
        names = anchor.reads if isinstance(anchor, Conv) else ()
        self.fresh = [i for i, s in enumerate(kernel.inputs) if s.name in names]

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs and outputs."""
        outputs = (int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in self.kernel.outputs)
        return sum(a.nbytes for a in self.inputs) + sum(outputs)

    def blank(self) -> list[Array]:
        """Return outputs that hold nothing that could be right."""
        return [np.full(s.shape, 99, s.dtype) for s in self.kernel.outputs]

    def complaint(self, outputs: list[Array]) -> str:
        """Return what is wrong with a candidate's outputs; empty if nothing is."""
        zero = self.kernel.code.zero_point
        for spec, array in zip(self.kernel.outputs, outputs, strict=True):
            if not meaning.halo_is_zero(spec, array, zero):
                return f"{spec.name}: the halo is not the code of zero"
            got = meaning.to_logical(spec, array, zero)
            if wrong := self._wrong(got, self._expected[spec.name]):
                return f"{spec.name}: {wrong} of {got.size} values differ from the reference"
        return ""

    def _wrong(self, got: Array, expected: Array) -> int:
        if self._exact:
            return int(np.count_nonzero(got != expected))
        if "int" in str(got.dtype):
            gap = np.abs(got.astype(np.int64) - expected)
            off = int(np.count_nonzero(gap))
            return off if gap.max(initial=0) > 1 or off > _INEXACT_CODES * got.size + 1 else 0
        near = np.isclose(got, expected, rtol=1e-2 if got.dtype == np.float16 else 1e-4, atol=1e-3)
        return int(np.count_nonzero(~near))

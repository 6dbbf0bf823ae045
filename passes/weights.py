"""Weight quantization: symmetric min-max, per output channel or per tensor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resq_tvm.scheme import code_limit


def output_axis(op_name: str, rank: int) -> int:
    """Return the output-channel axis of a canonical weight (OHWI, or (K, N) of a matmul)."""
    return rank - 1 if op_name == "relax.matmul" else 0


def quantize_weight(
    weight: NDArray[np.float32], op_name: str, bits: int, granularity: str = "channel"
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a layer's weight symmetrically over its min-max range.

    Parameters
    ----------
    weight : ndarray, float32
        ``(O, kh, kw, I)`` of a convolution, ``(K, N)`` of a matmul.
    op_name : str
        The Relax operator, which says where the output channels are.
    bits : int
        2 to 8; codes are within ``±(2**(bits-1) - 1)``.
    granularity : str
        ``"channel"`` or ``"tensor"``. Depthwise weights are always per channel: one scale for all
        filters destroys them even at 8 bits.

    Returns
    -------
    codes : ndarray, int8, shape of ``weight``
    scales : ndarray, float32, ``(O,)``
    """
    axis = output_axis(op_name, weight.ndim)
    others = tuple(d for d in range(weight.ndim) if d != axis)
    extent = np.abs(weight).max(axis=others)
    depthwise = weight.ndim == 4 and weight.shape[3] == 1
    if granularity == "tensor" and not depthwise:
        extent = np.full_like(extent, extent.max())
    limit = code_limit(bits)
    scales = (extent / np.float32(limit)).astype(np.float32)
    # A channel of zeros, or of values so small that their scale has no reciprocal, becomes zeros.
    scales[scales < np.finfo(np.float32).tiny] = 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    codes = np.clip(np.rint(weight / scales.reshape(shape)), -limit, limit)
    return codes.astype(np.int8), scales

"""Weight quantization: symmetric min-max, per output channel or per tensor.

The function attribute ``resq.codes`` holds codes that calibration did not round to the nearest
(`resq_tvm.quantize.rounding`): `codes_name` → int8. Scales follow from the weights alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.passes.graph import const_value
from resq_tvm.passes.graph import op_name as name_of
from resq_tvm.scheme import code_limit

CODES = "resq.codes"


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
    scales = weight_scales(weight, op_name, bits, granularity)
    limit = code_limit(bits)
    codes = np.clip(np.rint(weight / scales), -limit, limit)
    return codes.astype(np.int8), scales.reshape(-1)


def weight_scales(
    weight: NDArray[np.float32], op_name: str, bits: int, granularity: str = "channel"
) -> NDArray[np.float32]:
    """Return the scales of `quantize_weight` in a shape that goes with the weight's.

    Parameters are those of `quantize_weight`.
    """
    axis = output_axis(op_name, weight.ndim)
    others = tuple(d for d in range(weight.ndim) if d != axis)
    extent = np.abs(weight).max(axis=others)
    depthwise = weight.ndim == 4 and weight.shape[3] == 1
    if granularity == "tensor" and not depthwise:
        extent = np.full_like(extent, extent.max())
    scales = (extent / np.float32(code_limit(bits))).astype(np.float32)
    # A channel of zeros, or of values so small that their scale has no reciprocal, becomes zeros.
    scales[scales < np.finfo(np.float32).tiny] = 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    return scales.reshape(shape)


def codes_name(layer: str, bits: int) -> str:
    """Return the name of a layer's weight codes of some bits."""
    return f"{layer}:{bits}"


def layer_codes(
    main: Any, layer: str, call: Any, bits: int, granularity: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the codes of a layer's weight, as calibration rounded them, and their scales.

    Parameters
    ----------
    main : relax.Function
        Canonical ``main``.
    layer : str
    call : relax.Call
        The layer, of this or of an equal function.
    bits, granularity
        As of `quantize_weight`, whose results these are where nothing else was found.
    """
    weight, operator = const_value(call.args[1]), name_of(call)
    rounded = main.attrs[CODES] if main.attrs is not None and CODES in main.attrs else {}
    name = codes_name(layer, bits)
    if name not in rounded:
        return quantize_weight(weight, operator, bits, granularity)
    scales = weight_scales(weight, operator, bits, granularity)
    return np.asarray(rounded[name].numpy()), scales.reshape(-1)

"""Building fused kernels for tests on NPUs: tensors, convolutions, epilogues, drawn tiles."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.spec import (
    CodeFormat,
    Conv,
    FusedKernel,
    Node,
    Phase,
    Store,
    TensorSpec,
)
from resq_tvm.targets.npu.description import STORAGE_WIDTHS
from tests.schedules.harness import conv_phase

CODE = CodeFormat("int8", 0)


def codes(name: str, h: int, w: int, c: int, bits: int = 8, memory: str = "") -> TensorSpec:
    """Describe codes of so many bits as they lie in memory."""
    width = next(width for width in STORAGE_WIDTHS if width >= bits)
    return TensorSpec(name, h, w, c, "int8", c, bits=width, memory=memory)


def floats(
    name: str, h: int, w: int, c: int, dtype: str = "float32", memory: str = ""
) -> TensorSpec:
    """Describe a float tensor."""
    return TensorSpec(name, h, w, c, dtype, c, memory=memory)


def limit(bits: int) -> int:
    """Return the largest code of so many bits."""
    return (1 << (bits - 1)) - 1


def conv_anchor(
    rng: np.random.Generator,
    channels: tuple[int, ...],
    out: int,
    *,
    taps: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    origin: tuple[int, int] = (-1, -1),
    groups: int = 1,
    bits: tuple[int, int] = (8, 8),
) -> Conv:
    """Return a convolution of inputs ``x0``, ``x1``, … with weights over their whole range.

    ``origin`` is the pixel that the first tap of the first output reads; ``bits`` are those of
    weights and codes.
    """
    weights, most = limit(bits[0]), limit(bits[1])
    weight = rng.integers(-weights, weights + 1, (out, *taps, sum(channels) // groups))
    phase = conv_phase(taps, dilation, (-origin[0], -origin[1]))
    names = tuple(f"x{i}" for i in range(len(channels)))
    return Conv(
        names, weight.astype(np.int8), (phase,), stride, (1, 1), groups, limits=(most, weights)
    )


def transposed_anchor(
    rng: np.random.Generator,
    channels: int,
    out: int,
    *,
    taps: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
    bits: tuple[int, int] = (8, 8),
) -> Conv:
    """Return a transposed convolution of ``x0``: one phase per output pixel of a stride."""
    weights, most = limit(bits[0]), limit(bits[1])
    weight = rng.integers(-weights, weights + 1, (out, *taps, channels))

    def along(axis: int, first: int) -> list[tuple[int, int]]:
        found = []
        for k in range(taps[axis]):
            step, rest = divmod(first + pad[axis] - k, stride[axis])
            if rest == 0:
                found.append((k, step))
        return found

    phases = tuple(
        Phase(oy, ox, tuple((ky, kx, dy, dx) for ky, dy in along(0, oy) for kx, dx in along(1, ox)))
        for oy in range(stride[0])
        for ox in range(stride[1])
    )
    return Conv(("x0",), weight.astype(np.int8), phases, (1, 1), stride, limits=(most, weights))


def sums_kernel(
    anchor: Conv, inputs: tuple[TensorSpec, ...], h: int, w: int, memory: str = ""
) -> FusedKernel:
    """Return a convolution that stores its sums as float32."""
    c = anchor.weight.shape[0]
    nodes = (Node("anchor"), Node("scalar", value=1.0), Node("dequantize", (0, 1)))
    out = floats("y", h, w, c, memory=memory)
    return FusedKernel("sums", anchor, h, w, c, inputs, (out,), nodes, (Store(2, "y"),), CODE)


def residual_kernel(
    rng: np.random.Generator,
    anchor: Conv,
    inputs: tuple[TensorSpec, ...],
    h: int,
    w: int,
    *,
    bits: int = 4,
    shortcut: TensorSpec | None = None,
    memories: tuple[str, str] = ("", ""),
) -> FusedKernel:
    """Return a residual step: add state, rectify, subtract what the state gives, quantize.

    It writes codes ``q`` of ``bits`` bits and floats ``z``; ``memories`` say where these stay.
    ``shortcut`` is the state, named ``u``; by default float16 at every pixel.
    """
    c = anchor.weight.shape[0]
    state = shortcut or floats("u", h, w, c, "float16")
    nodes = (
        Node("anchor"),
        Node("vector", name="scale"),
        Node("dequantize", (0, 1)),
        Node("load", name="u"),
        Node("add", (2, 3)),
        Node("scalar", value=0.0),
        Node("max", (4, 5)),
        Node("max", (3, 5)),
        Node("sub", (6, 7)),
        Node("quantize", (8,), value=float(np.float32(0.37 * limit(bits))), limit=limit(bits)),
    )
    codes_most, weights_most = anchor.limits or (127, 127)
    size = codes_most * weights_most * np.sqrt(max(1, anchor.weight[0].size))
    scale = (rng.uniform(0.5, 8, c) / size).astype(np.float32)
    return FusedKernel(
        "residual", anchor, h, w, c, (*inputs, state),
        (codes("q", h, w, c, bits, memories[0]), floats("z", h, w, c, memory=memories[1])),
        nodes, (Store(9, "q"), Store(4, "z")), CODE, {"scale": scale},
    )  # fmt: skip


def decisions(draw: st.DrawFn, h: int, w: int, blocks: int) -> Decision:
    """Draw tiles up to the whole plane; not more than a few along each side."""
    return Decision(
        "drawn",
        "any",
        draw(st.integers(-(-h // 5), h + 1)),
        draw(st.integers(-(-w // 4), w + 1)),
        draw(st.integers(1, blocks + 1)),
        inner_o=draw(st.booleans()),
        parallel=False,
    )

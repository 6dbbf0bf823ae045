"""What a fused kernel computes: the contract between `resq_tvm.passes.lower` and the schedules.

A `FusedKernel` is one *anchor* (integer convolution, depthwise convolution, pooling, resize, a
plain walk over the output, …) and an *epilogue*: a list of elementwise nodes in single-assignment
form that is evaluated in registers on every 1 × 1 × 16 vector of the anchor's output, ending in
stores. It carries the meaning only; tiles, unrolling and packing are the schedule's `Decision`.

Physical tensors
----------------
All activations are ``(1, top + h + bottom, left + w + right, c_phys)``, row-major, batch 1.

* *Codes* (quantized activations) have a halo that already holds the code of zero, so that
  convolutions never test for borders: the kernel that produces a code tensor writes the halo.
  ``c_phys`` is ``round_up(c, 8)`` (4 when c ≤ 4). Lanes beyond ``c`` hold anything: weights
  there are zero. The dtype and the code of zero are the target's `CodeFormat`.
* *Float tensors* (float32, or float16 for state) have no halo. Internal ones have
  ``c_phys = round_up(c, 8)`` with anything in the lanes beyond ``c``; external ones (network
  inputs and outputs) have ``c_phys = c``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from resq_tvm.targets.preset import CodeFormat

__all__ = [
    "ANYTHING",
    "BUDGET_BLOCK",
    "Anchor",
    "Choice",
    "Coarse",
    "CodeFormat",
    "Conv",
    "FloatConv",
    "FusedKernel",
    "Gate",
    "GlobalMean",
    "Node",
    "Phase",
    "Pool",
    "Resize",
    "Sparse",
    "Store",
    "TensorSpec",
    "Walk",
    "Window",
    "phase_plane",
]


ANYTHING = "*"  # in a kernel's maps, on NPUs: one byte, whether anything in the frame changed
BUDGET_BLOCK = 8  # pixels: side of the blocks that a budget counts


@dataclass(frozen=True)
class TensorSpec:
    """A physical activation tensor (batch 1, NHWC)."""

    name: str
    h: int
    w: int
    c: int
    dtype: str  # "float32", "float16", or the CodeFormat's dtype
    c_phys: int
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    bits: int = 0  # of a code in memory, on NPUs; 0: the dtype's
    memory: str = ""  # "sram": it stays there, on NPUs
    ring: int = 0  # rows of the circular buffer that it goes through there; 0: all of it is there

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Physical shape, halo and padding lanes included."""
        top, left, bottom, right = self.halo
        return (1, top + self.h + bottom, left + self.w + right, self.c_phys)


@dataclass(frozen=True)
class Phase:
    """Output pixels ``(oy + i·out_stride, ox + j·out_stride)`` and the taps that they sum.

    ``taps[t] = (ky, kx, dy, dx)``: kernel position ``(ky, kx)`` multiplies the input pixel
    ``(i·in_stride + dy, j·in_stride + dx)`` in logical coordinates (the halo makes negative or
    too large ones valid). An ordinary convolution has one phase; a transposed convolution of
    stride s has s × s.
    """

    oy: int
    ox: int
    taps: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Coarse:
    """What the codes of pixels are that got fewer bits than the most of their pool.

    Where no byte of the inputs' maps has a bit of ``mask``, all codes are multiples of
    ``2**shift``, at most ``limit`` times that.
    """

    mask: int
    shift: int
    limit: int


@dataclass(frozen=True, eq=False)
class Conv:
    """Integer convolution of codes, accumulated in int32.

    Several ``inputs`` mean their concatenation along channels (never materialised): the weight's
    input channels are those of the inputs in order.

    ``rest`` are the second codes of the inputs, of what rounding to the first ones leaves
    (`resq_tvm.scheme.split`), in the same order and with the same channels: the same weights
    multiply them, into sums of their own. It is empty where inputs have one code.

    ``weight`` is int8 ``(O, kh, kw, I)`` (for depthwise: ``(C, kh, kw, 1)``, ``groups == C``; for
    grouped convolutions I is per group).

    ``limits`` are the largest magnitudes that a code and a weight of this precision can have, where
    the target's kernels depend on them; None elsewhere. ``coarse`` likewise says what pixels of few
    bits are.
    """

    inputs: tuple[str, ...]
    weight: NDArray[np.int8]
    phases: tuple[Phase, ...]
    in_stride: tuple[int, int]
    out_stride: tuple[int, int]
    groups: int = 1
    limits: tuple[int, int] | None = None
    coarse: Coarse | None = None
    rest: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """All codes that it reads."""
        return (*self.inputs, *self.rest)

    @property
    def depthwise(self) -> bool:
        """One filter per channel."""
        return self.groups > 1 and self.groups == self.weight.shape[0] and self.weight.shape[3] == 1


@dataclass(frozen=True, eq=False)
class FloatConv:
    """Float32 convolution for layers that stay in float; input has no halo (borders are tested)."""

    inputs: tuple[str, ...]
    weight: NDArray[np.float32]
    phases: tuple[Phase, ...]
    in_stride: tuple[int, int]
    out_stride: tuple[int, int]
    groups: int = 1


@dataclass(frozen=True)
class Pool:
    """Max or average pooling of a float tensor. ``padding`` is top, left, bottom, right."""

    input: str
    kind: str  # "max" | "avg"
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)
    count_include_pad: bool = True


@dataclass(frozen=True)
class GlobalMean:
    """Mean over height and width of a float tensor; the output is 1 × 1 × C."""

    input: str


@dataclass(frozen=True)
class Resize:
    """Bilinear or nearest resize of a float tensor (attributes as of relax.image.resize2d)."""

    input: str
    method: str  # "linear" | "nearest_neighbor"
    coordinate: str  # "half_pixel" | "align_corners" | "asymmetric" | "pytorch_half_pixel"
    rounding: str = "round"


@dataclass(frozen=True)
class Window:
    """Affine copy of a float tensor: slice, zero padding, or both.

    ``out[y, x, c] = in[y·stride + oy, x·stride + ox, c + oc]``, or ``fill`` outside the input.
    """

    input: str
    offset: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    fill: float = 0.0


@dataclass(frozen=True)
class Walk:
    """No anchor: the epilogue's loads are all there is."""


Anchor = Conv | FloatConv | Pool | GlobalMean | Resize | Window | Walk


@dataclass(frozen=True)
class Node:
    """One elementwise operation of the epilogue on 16-lane vectors; ids are list positions.

    ====================  =====================================================================
    op                    value
    ====================  =====================================================================
    ``anchor``            the anchor's output: int32 for Conv, float32 otherwise
    ``rest``              int32: the anchor's sums over ``Conv.rest``
    ``load``              ``name``: an input tensor at this pixel and these channels, as float32
                          (float16 is widened; codes are converted to their signed value);
                          tensors of 1 × 1 × C or 1 × 1 × 1 broadcast
    ``vector``            ``name``: per-channel float32 constant (in ``FusedKernel.vectors``)
    ``scalar``            ``value``: float32 constant
    ``dequantize``        float32(args[0]) · args[1]  (args[1]: vector or scalar; product fenced)
    ``add sub mul div``   IEEE float32; a product feeding an add is fenced against contraction
    ``max min``
    ``neg abs exp sigmoid tanh sqrt erf``
    ``prelu``             args[0] > 0 ? args[0] : args[0]·args[1]
    ``round16``           float32 → float16 → float32
    ``quantize``          clamp(round_half_even(args[0] · value), −limit, limit) as a signed
                          code; ``value`` is the float32 reciprocal of the scale
    ``gate``              args[0] where the gate's map is not 0, else args[1]
    ====================  =====================================================================
    """

    op: str
    args: tuple[int, ...] = ()
    name: str = ""
    value: float = 0.0
    limit: int = 0


@dataclass(frozen=True)
class Choice:
    """Codes get the fewest bits that do, pixel by pixel (`resq_tvm.reference.ops_policy`).

    ``threshold`` is an index into the program's thresholds. ``keep`` is how many blocks of the
    plane may hold codes at most; 0: all.
    """

    pool: tuple[int, ...]
    shifts: tuple[int, ...]
    threshold: int
    keep: int = 0


@dataclass(frozen=True)
class Gate:
    """Which blocks of a frame count as changed; node ``gate`` selects by it.

    ``threshold`` is an index into the program's thresholds.
    """

    reciprocal: float
    threshold: int
    block: int
    reach: int


@dataclass(frozen=True)
class Store:
    """Store node ``node`` to output tensor ``name`` (converted to that tensor's dtype)."""

    node: int
    name: str
    choice: Choice | None = None


@dataclass(frozen=True)
class Sparse:
    """Execution by tiles: a tile is computed if something in its receptive field changed.

    A *map* is uint8 ``(1, h, w, 1)`` beside a tensor: 0 where a pixel is as on the keyframe.
    Outputs are kept from frame to frame. A tile that did not change, but had when it was last
    computed, is *reset*: it gets the value of a zero difference (zero, or the epilogue on
    accumulators of zero); any other unchanged tile still holds that value and is left alone.

    The PrimFunc's parameters are: inputs, maps of inputs, thresholds, packed constants, outputs,
    maps of outputs, the kernel's tiles (uint8: 1 computed, 2 without content, else 0), the list of
    tiles (int32 scratch), the counts (int32: computed and reset tiles of every kernel).

    Attributes
    ----------
    maps : dict
        Input tensor → its map; inputs without one never change (state).
    everywhere : bool
        Some input has no map and may change anywhere.
    out_maps : dict
        Output tensor → its map: bits per pixel of codes with a choice; else the kernel's one map
        of computed tiles.
    gate_map : TensorSpec or None
        Map of the kernel's gate, an output.
    differences : frozenset of str
        Inputs that are zero where their map is.
    thresholds, counts : int
        Lengths of these parameters.
    index : int
        The kernel's row of the counts.
    """

    maps: dict[str, TensorSpec]
    everywhere: bool
    out_maps: dict[str, TensorSpec]
    thresholds: int
    counts: int
    index: int
    list_size: int
    gate_map: TensorSpec | None = None
    differences: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class FusedKernel:
    """One kernel: anchor, epilogue and the tensors it touches.

    The PrimFunc's parameters are, in this order: ``inputs``, the packed constants in the order
    in which the schedule returns them, ``outputs``.
    """

    name: str
    anchor: Anchor
    h: int  # logical output height, width, channels
    w: int
    c: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]
    stores: tuple[Store, ...]
    code: CodeFormat
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # name → (c,)
    gate: Gate | None = None
    sparse: Sparse | None = None

    def tensor(self, name: str) -> TensorSpec:
        """Return the input or output tensor of that name."""
        for spec in (*self.inputs, *self.outputs):
            if spec.name == name:
                return spec
        raise KeyError(name)


def phase_plane(kernel: FusedKernel, anchor: Conv) -> tuple[int, int]:
    """Return rows and columns of the largest phase."""
    return -(-kernel.h // anchor.out_stride[0]), -(-kernel.w // anchor.out_stride[1])

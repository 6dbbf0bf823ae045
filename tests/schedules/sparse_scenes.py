"""Kernels with sparse execution, and sequences of frames for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.listing import MARGIN
from resq_tvm.schedules.spec import (
    Anchor,
    Choice,
    Conv,
    FusedKernel,
    Node,
    Sparse,
    Store,
    TensorSpec,
)
from resq_tvm.targets.preset import Target
from tests.schedules.harness import code_tensor, conv_phase, float_tensor, halo_for
from tests.schedules.sparse_harness import INDEX, KERNELS, Stream

SHIFTS = {(0, 8): (7, 0), (0, 4, 8): (7, 4, 0), (4, 8): (3, 0), (0, 3, 4): (3, 1, 0)}
KINDS = ("all", "pixel", "few", "block", "row", "column", "corners")
SEEDS = st.integers(0, 2**32)
SIZES = st.tuples(st.integers(1, 11), st.integers(1, 37))
MODES = st.sampled_from(["codes", "both", "full"])
# Every example compiles a kernel.
drawn = settings(max_examples=3, derandomize=True, database=None)


def with_maps(
    kernel: FusedKernel,
    mapped: dict[str, str],
    pools: dict[str, tuple[int, ...]] | None = None,
    everywhere: bool = False,
) -> FusedKernel:
    """Give a kernel sparse execution.

    Parameters
    ----------
    mapped : dict
        Input → the name of its map; inputs without one are state.
    pools : dict, optional
        Output of codes → its pool; the n-th has threshold n, and a gate the last one.
    """
    pools = pools or {}
    plane = (kernel.h, kernel.w, 1, "uint8", 1)
    stores = tuple(
        replace(s, choice=Choice(pools[s.name], SHIFTS[pools[s.name]], list(pools).index(s.name)))
        if s.name in pools
        else s
        for s in kernel.stores
    )
    gate = kernel.gate
    resting = {n for n in mapped if pools or kernel.tensor(n).dtype == kernel.code.dtype}
    sparse = Sparse(
        maps={
            name: TensorSpec(seen, kernel.tensor(name).h, kernel.tensor(name).w, 1, "uint8", 1)
            for name, seen in mapped.items()
        },
        everywhere=everywhere,
        out_maps={
            s.name: TensorSpec(f"{s.name}_bits" if s.name in pools else "changed", *plane)
            for s in kernel.outputs
        },
        thresholds=len(pools) + (gate is not None),
        counts=KERNELS,
        index=INDEX,
        list_size=kernel.h * kernel.w + MARGIN,
        gate_map=None if gate is None else TensorSpec("changed", *plane),
        differences=frozenset(resting),
    )
    return replace(kernel, stores=stores, sparse=sparse)


def pattern(rng: np.random.Generator, kind: str, h: int, w: int) -> Any:
    """Draw a map: where something changed, and with how many bits."""
    mask = np.zeros((h, w), bool)
    y, x = rng.integers(h), rng.integers(w)
    match kind:
        case "all":
            mask[:] = True
        case "pixel":
            mask[y, x] = True
        case "few":
            mask = rng.random((h, w)) < 0.08
        case "block":
            mask[y : y + rng.integers(1, 5), x : x + rng.integers(1, 9)] = True
        case "row":
            mask[rng.choice([0, h - 1])] = True
        case "column":
            mask[:, rng.choice([0, w - 1])] = True
        case "corners":
            mask[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    return mask * rng.choice([1, 4, 8], (h, w)).astype(np.uint8)


class Scene:
    """Draws a stream's inputs: whole numbers, so that sums are exact in any order."""

    def __init__(self, stream: Stream, rng: np.random.Generator) -> None:
        self.stream, self.rng, self.sparse = stream, rng, stream.sparse

    def keyframe(self) -> None:
        """Draw state and what the inputs are at rest: codes and differences are zero."""
        rest = {}
        for spec in self.stream.kernel.inputs:
            shape = (spec.h, spec.w, spec.c)
            state = spec.name not in self.sparse.maps
            if "int" in spec.dtype:
                rest[spec.name] = np.zeros(shape, np.int32)
            elif state or all(s.choice is None for s in self.stream.kernel.stores):
                rest[spec.name] = self.rng.integers(-30, 31, shape).astype(spec.dtype)
            else:
                rest[spec.name] = np.zeros(shape, spec.dtype)
        self.stream.keyframe(rest)

    def frame(self, kinds: Sequence[str]) -> Any:
        """Run a frame in which the n-th map is of the n-th kind."""
        specs = {m.name: m for m in self.sparse.maps.values()}
        kind = dict(zip(specs, np.resize(kinds, len(specs)), strict=True))
        maps = {name: pattern(self.rng, kind[name], m.h, m.w) for name, m in specs.items()}
        inputs = {}
        for name, seen in self.sparse.maps.items():
            rest = self.stream.rest[name]
            most = self.rng.choice([1, 6, 30, 127])
            noise = self.rng.integers(-most, most + 1, rest.shape)
            inputs[name] = (rest + noise * (maps[seen.name] > 0)[..., None]).astype(rest.dtype)
        return self.stream.frame(inputs, maps)


def play(
    kernel: FusedKernel,
    target: Target,
    data: Any,
    rng: np.random.Generator,
    pool: tuple[int, ...] | None,
    shared: bool = False,
    decision: Decision | None = None,
) -> None:
    """Run frames with changes of all kinds, a new keyframe among them, then two without any."""
    mapped = {s.name: "seen" if shared else f"{s.name}_seen" for s in kernel.inputs}
    mapped = {name: seen for name, seen in mapped.items() if not name.startswith("state")}
    sparse = with_maps(kernel, mapped, None if pool is None else {"q": pool})
    threshold = data.draw(st.sampled_from([0.0, 1.5, 8.0, 1e9]))
    full = any(s.name == "full" for s in kernel.outputs)
    stream = Stream(sparse, target, full, [threshold], decision)
    scene = Scene(stream, rng)
    scene.keyframe()
    order = list(rng.permutation(KINDS))
    for n in range(len(order)):
        if n == 4:
            scene.keyframe()
        scene.frame(order[n:] + order[:n])
    for n in range(2):
        work = scene.frame(["none"])
        assert not work.active.any()
        assert n == 0 or not work.reset.any()


def residual(
    target: Target,
    anchor: Anchor,
    inputs: tuple[TensorSpec, ...],
    plane: tuple[int, int, int],
    rng: np.random.Generator,
    mode: str,
    skip: bool = False,
) -> tuple[FusedKernel, tuple[int, ...] | None]:
    """Return a kernel that adds an anchor's output, a difference, to state; and its pool.

    ``mode`` "codes" stores the difference as it is, and as codes after the activation; "both"
    stores the sum and the codes; "full" stores the sum alone. With ``skip`` another difference is
    added.
    """
    h, w, c = plane
    scale = rng.uniform(0.5, 1.5, c)
    if isinstance(anchor, Conv):
        scale /= 64 * np.sqrt(anchor.weight[0].size)
    pool = list(SHIFTS)[rng.integers(len(SHIFTS))]
    nodes = (
        Node("anchor"),
        Node("vector", name="scale"),
        Node("dequantize" if isinstance(anchor, Conv) else "mul", (0, 1)),
        Node("load", name="skip") if skip else Node("scalar", value=0.0),
        Node("add", (2, 3)),
        Node("load", name="state"),
        Node("add", (4, 5)),
        Node("scalar", value=0.0),
        Node("max", (6, 7)),
        Node("max", (5, 7)),
        Node("sub", (8, 9)),
        Node("quantize", (10,), value=float(rng.choice([0.4, 3.0])), limit=2 ** (pool[-1] - 1) - 1),
    )
    external = bool(rng.integers(2))
    float_name, node = ("delta", 4) if mode == "codes" else ("full", 6)
    outputs = (float_tensor(float_name, h, w, c, external),)
    stores = (Store(node, float_name),)
    if mode != "full":
        outputs += (code_tensor(target, "q", h, w, c, (1, 2, 1, 3)),)
        stores += (Store(11, "q"),)
    if skip:
        inputs += (float_tensor("skip", h, w, c),)
    state = float_tensor("state", h, w, c, dtype=str(rng.choice(["float32", "float16"])))
    kernel = FusedKernel(
        "k", anchor, h, w, c, (*inputs, state), outputs, nodes, stores, target.code,
        {"scale": scale.astype(np.float32)},
    )  # fmt: skip
    return kernel, None if mode == "full" else pool


def square(target: Target, hw: tuple[int, int], c: int, rng: np.random.Generator) -> Any:
    """Return a 3 x 3 convolution of a plane onto itself, with its inputs."""
    weight = rng.integers(-127, 128, (c, 3, 3, c)).astype(np.int8)
    anchor = Conv(("x",), weight, (conv_phase((3, 3), (1, 1), (1, 1)),), (1, 1), (1, 1))
    return anchor, (code_tensor(target, "x", *hw, c, halo_for(anchor, *hw, *hw)),)

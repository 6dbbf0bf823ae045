"""A budget of tiles: kernels keep what the reference keeps, and never more than the share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from resq_tvm import compiler
from resq_tvm.bitmaps import BitSession
from resq_tvm.errors import ConfigError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.programs import Programs
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.reference.ops_policy import strongest_blocks
from resq_tvm.reference.session import Frame, ReferenceSession
from resq_tvm.session import Session
from tests.dynamic import SIDE, dynamic, qnet, small_network
from tests.graphs import annotated, frames
from tests.resq_tvm.test_dynamic_compiled import ExactNetwork

BLOCK = 8


def kept_by_loops(codes: NDArray[np.int64], keep: int) -> NDArray[np.bool_]:
    """Return the pixels of the strongest blocks: ``(H, W)`` of ``(H, W, C)``."""
    height, width, _ = codes.shape
    ranked = []
    for y in range(0, height, BLOCK):
        for x in range(0, width, BLOCK):
            energy = sum(int(c) ** 2 for c in codes[y : y + BLOCK, x : x + BLOCK].ravel())
            ranked.append((-energy.bit_length(), y, x))
    out = np.zeros((height, width), bool)
    for _, y, x in sorted(ranked)[:keep]:
        out[y : y + BLOCK, x : x + BLOCK] = True
    return out


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    channels=st.integers(1, 4),
    keep=st.integers(1, 20),
    spread=st.sampled_from([1, 3, 127]),
)
def test_strongest_blocks_follow_a_plain_loop(
    seed: int, height: int, width: int, channels: int, keep: int, spread: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-spread, spread + 1, (height, width, channels))
    codes[rng.random((height, width)) < rng.choice([0.0, 0.9, 0.99])] = 0
    got = strongest_blocks(torch.from_numpy(codes).float().unsqueeze(0), keep)
    np.testing.assert_array_equal(got.numpy()[0, :, :, 0] > 0, kept_by_loops(codes, keep))


def test_equal_blocks_are_kept_from_the_top_left() -> None:
    codes = torch.zeros((1, 16, 24, 1))
    codes[0, ::BLOCK, ::BLOCK] = 8  # 64: seven bits in every block
    codes[0, 3, 3] = 7  # still seven
    codes[0, 8, 8] = 12  # eight
    kept = strongest_blocks(codes, 3)[0, ::BLOCK, ::BLOCK, 0]
    assert kept.tolist() == [[1, 1, 0], [0, 1, 0]]


def blocks_of(bits: NDArray[np.uint8]) -> tuple[int, int]:
    """Return how many blocks of a map ``(H, W)`` there are, and how many hold something."""
    starts = [(y, x) for y in range(0, len(bits), BLOCK) for x in range(0, bits.shape[1], BLOCK)]
    return len(starts), sum(bits[y : y + BLOCK, x : x + BLOCK].any() for y, x in starts)


def scene(count: int, seed: int) -> list[Frame]:
    """A picture, then noise of changing strength all over and in a corner of it."""
    rng = np.random.default_rng(seed)
    key = rng.standard_normal((1, SIDE, SIDE, 3)).astype(np.float32)
    clip = [key]
    for n in range(count - 1):
        strength = np.float32([0.05, 1.0, 0.0, 0.3][n % 4])
        frame = key + strength * rng.standard_normal(key.shape).astype(np.float32)
        frame[:, 20:30, 5:20] += np.float32(0.7)
        clip.append(frame)
    return clip


CASES = [
    ((0, 4, 8), 0.3, 0.02, "float16"),
    ((0, 8), 0.01, 0.0, "float32"),  # one block at least
    ((4, 8), 0.5, 0.3, "float16"),
    ((0, 4, 8), 1.0, 0.02, "float32"),  # all: no bound
]


@pytest.mark.parametrize(("pool", "share", "tau", "state"), CASES)
def test_kernels_keep_what_the_reference_keeps(
    pool: tuple[int, ...], share: float, tau: float, state: str, tmp_path: Path
) -> None:
    network = dynamic(small_network(), pool, tau=tau, period=9).with_tile_budget(share)
    artifact = compiler.compile(
        network, output=tmp_path / "n.resq", state_dtype=state, frame_program=False
    )
    session = Session(artifact, keyframes=KeyframePolicy(guard=False), threads=1)
    reference = ReferenceSession(network, state_dtype=state)
    watch = BitSession(network, state_dtype=state)
    raw = Programs(artifact)
    maps = [e.name for e in artifact.manifest.workspace if e.name.endswith("_bits")]
    assert len(maps) == 2
    full = 0
    for n, frame in enumerate(scene(9, 1)):
        np.testing.assert_array_equal(session(frame), reference(frame), err_msg=f"frame {n}")
        raw.run("residual" if n else "keyframe", [tvm.runtime.tensor(frame)])
        chosen = watch(frame)
        if n == 0:
            continue
        assert session.last is not None and session.last.kind == "residual"
        assert chosen is not None
        planes = [raw.tensor(name)[0, :, :, 0] for name in maps]
        for plane in planes:
            count, held = blocks_of(plane)
            assert held <= max(1, int(share * count))
            full += held == int(share * count)
        for plane, wanted in zip(planes, chosen.maps.values(), strict=True):
            np.testing.assert_array_equal(plane, wanted)
    assert full or share < 1 / 16  # the bound was met, not just far away


def agree_on_a_random_network(seed: int, operators: int, folder: Path) -> None:
    module = ExactNetwork(seed).build(operators)
    network = dynamic(module, tau=[0.02, 0.0][seed % 2], period=99)
    network = network.with_tile_budget([0.3, 0.6][seed // 2 % 2])
    artifact = compiler.compile(
        network, output=folder / "n.resq", state_dtype="float32", frame_program=False
    )
    session = Session(artifact, keyframes=KeyframePolicy(guard=False), threads=1)
    reference = ReferenceSession(network, state_dtype="float32")
    key, *others = frames(module, 4, seed)
    corner = key.copy()
    corner[:, :2, :3] += np.float32(0.5)
    for n, frame in enumerate([key, *others, corner, key, others[0]]):
        outputs = session(frame), reference(frame)
        pairs = zip(*(y if isinstance(y, tuple) else (y,) for y in outputs), strict=True)
        for got, wanted in pairs:
            np.testing.assert_array_equal(got, wanted, err_msg=f"frame {n}")


@pytest.mark.parametrize("seed", range(2))
def test_random_networks_agree(seed: int, tmp_path: Path) -> None:
    agree_on_a_random_network(seed, 8, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_more_random_networks_agree(seed: int, tmp_path: Path) -> None:
    agree_on_a_random_network(seed, 12, tmp_path)


def test_a_budget_of_all_blocks_changes_nothing() -> None:
    network = dynamic(small_network(), period=9)
    bounded, free = (
        ReferenceSession(net, state_dtype="float32")
        for net in (network.with_tile_budget(1.0), network)
    )
    for frame in scene(4, 2):
        np.testing.assert_array_equal(bounded(frame), free(frame))


def test_a_small_budget_changes_the_outputs() -> None:
    network = dynamic(small_network(), period=9)
    bounded, free = (
        ReferenceSession(net, state_dtype="float32")
        for net in (network.with_tile_budget(0.1), network)
    )
    clip = scene(3, 2)
    outputs = [[np.asarray(session(frame)) for frame in clip] for session in (bounded, free)]
    assert np.array_equal(outputs[0][0], outputs[1][0])
    assert not np.array_equal(outputs[0][2], outputs[1][2])


def test_a_budget_is_kept_in_the_folder(tmp_path: Path) -> None:
    saved = dynamic(small_network()).with_tile_budget(0.25).save(tmp_path / "n.qnet")
    loaded = QuantizedNetwork.load(saved)
    assert loaded.dynamic is not None and loaded.dynamic["budget"] == 0.25


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_out_of_range(share: float) -> None:
    with pytest.raises(ConfigError, match=f"tile budget {share} is out of range"):
        dynamic(small_network()).with_tile_budget(share)


def test_a_scheme_without_a_pool_is_refused() -> None:
    static = qnet(annotated(small_network(), "W8A8->W8A4"), "W8A8->W8A4")
    with pytest.raises(ConfigError, match=r"needs a scheme with a pool .* 'W8A8->W8A4'"):
        static.with_tile_budget(0.25)

"""Artifacts that choose bits against the reference executor on random networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

from resq_tvm import compiler
from resq_tvm.device import use_threads
from resq_tvm.errors import CompileError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.reference.session import ReferenceSession
from resq_tvm.session import Session
from resq_tvm.targets.preset import PRESETS, missing_features
from resq_tvm.verify import verify
from tests.dynamic import dynamic, small_network
from tests.graphs import NetworkBuilder, frames, op, random_network

Frame = NDArray[np.float32]

POOLS = [(0, 4, 8), (0, 8), (4, 8), (0, 3, 4)]
PERIOD = 9


class ExactNetwork(NetworkBuilder):
    """Draws only operators of which every backend computes the same bits."""

    def activation(self) -> Any:
        x = self.pick()
        kind = self.random.choice(["relu", "relu6", "prelu"])
        weight = self.constant(self.shape(x)[3])
        made = {
            "relu": op.nn.relu(x),
            "relu6": op.clip(x, 0, 6),
            "prelu": op.nn.prelu(x, weight, axis=3),
        }
        return self.emit(made[kind], kind)

    def pool2d(self) -> Any:
        x = self.pick(lambda v: min(self.shape(v)[1:3]) >= 2)
        made = op.nn.max_pool2d(x, [2, 2], [2, 2], [0, 0, 1, 1], layout="NHWC")
        return self.emit(made, "maxpool")

    def mean(self) -> Any:
        return self.slice()

    def resize(self) -> Any:
        return self.layers_then()


def target_of(seed: int) -> str:
    name = list(PRESETS)[seed % 3]
    if missing := missing_features(PRESETS[name]):
        pytest.skip(f"this CPU lacks {', '.join(missing)} of {name}")
    return name


def state_of(seed: int) -> str:
    # The generic target rounds to float16 in software, which takes seconds to compile: not early.
    return ["float16", "float32"][seed // 2 % 2]


def network(mod: tvm.IRModule, seed: int) -> QuantizedNetwork:
    return dynamic(
        mod,
        POOLS[seed % 4],
        tau=[0.3, 0.02, 0.0, 3.0][seed // 2 % 4],
        threshold=[0.0, 50.0][seed // 3 % 2],
        scale=[0.01, 0.05][seed // 4 % 2],
        period=PERIOD,
        key="W8A16" if seed % 5 == 1 else "W8A8",
    )


def clip(mod: tvm.IRModule, seed: int) -> list[Frame]:
    """Local and global changes, nothing, and back to the keyframe; then the same anew."""
    first, second, third = frames(mod, 3, seed)
    sequence = []
    for key, other in ((first, second), (third, first)):
        corner, end, middle = key.copy(), key.copy(), key.copy()
        corner[:, :2, :3] += np.float32(0.5)
        end[:, -2:, -3:] -= np.float32(0.7)
        middle[:, 2:4, 3:5] *= np.float32(1.01)
        sequence += [key, corner, other, key, key, end, middle, corner, key]
    return sequence


def agree(mod: tvm.IRModule, seed: int, folder: Path, exact: bool) -> None:
    """Run an artifact's session beside the reference."""
    qnet = network(mod, seed)
    options = {"state_dtype": state_of(seed), "frame_program": False}
    artifact = compiler.compile(qnet, target_of(seed), output=folder / "n.resq", **options)
    session = Session(artifact, keyframes=KeyframePolicy(guard=False), threads=1)
    reference = ReferenceSession(qnet, state_dtype=state_of(seed))
    kinds = ""
    for n, frame in enumerate(clip(mod, seed)):
        got, want = session(frame), reference(frame)
        assert session.last is not None
        kinds += session.last.kind[0]
        pairs = zip(*(y if isinstance(y, tuple) else (y,) for y in (got, want)), strict=True)
        for y, expected in pairs:
            if exact:
                np.testing.assert_array_equal(y, expected, err_msg=f"frame {n}")
            # A code that falls on the other side of a rounding edge moves a sum by one step.
            scale = float(np.abs(expected).max()) + 1e-6
            assert np.abs(y - expected).mean() < 0.01 * scale, n
    assert kinds == ("k" + (PERIOD - 1) * "r") * 2


@pytest.mark.parametrize("seed", range(4))
def test_exact_networks_agree_bit_for_bit(seed: int, tmp_path: Path) -> None:
    agree(ExactNetwork(seed).build(8), seed, tmp_path, exact=True)


def test_equal_kernels_keep_outputs_of_their_own() -> None:
    # The slice of the frame and that of the keyframe are the same function.
    compiled = compiler.build(network(ExactNetwork(4).build(12), 4), frame_program=False)
    assert {"residual_slice_2", "residual_k_slice_2"} <= set(compiled.lowered.kernels)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 10))
def test_more_exact_networks_agree_bit_for_bit(seed: int, tmp_path: Path) -> None:
    agree(ExactNetwork(seed).build(12), seed, tmp_path, exact=True)


@pytest.mark.parametrize("seed", range(3))
def test_networks_agree(seed: int, tmp_path: Path) -> None:
    agree(random_network(seed), seed, tmp_path, exact=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 9))
def test_more_networks_agree(seed: int, tmp_path: Path) -> None:
    agree(random_network(seed, 12), seed, tmp_path, exact=False)


def kernels_agree(seed: int, operators: int) -> None:
    """Compare what every kernel keeps, at every pixel."""
    mod = random_network(seed, operators)
    compiled = compiler.build(
        network(mod, seed), target_of(seed), state_dtype=state_of(seed), frame_program=False
    )
    use_threads(1)
    report = verify(compiled, clip(mod, seed), PERIOD)
    assert report.kernels
    assert report.failures == []
    if not any(compiled.lowered.opaque.values()):
        assert report.outputs_differing == 0
    assert report.differing_share < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_kernels_keep_what_the_reference_computes(seed: int) -> None:
    kernels_agree(seed, 8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 12))
def test_more_kernels_keep_what_the_reference_computes(seed: int) -> None:
    kernels_agree(seed, 12)


def test_recurrent_residuals_are_refused() -> None:
    qnet = dynamic(small_network())
    options = {**qnet.options, "residual": "recurrent"}
    main = qnet.module["main"].with_attr("resq.options", json.dumps(options))
    changed = replace(qnet.network, module=tvm.IRModule({"main": main}))
    with pytest.raises(
        CompileError, match=r"W8A8->W8A\{0,4,8\} chooses bits .* residual='pairwise'"
    ):
        compiler.build(QuantizedNetwork(changed, qnet.scheme))

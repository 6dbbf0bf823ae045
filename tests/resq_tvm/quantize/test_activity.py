"""Shares of active tiles against a count by hand, for every kind of layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tvm import relax

from resq_tvm.quantize.activity import TILE, Reach, mac_share
from tests.resq_tvm.quantize.networks import small_network

op = relax.op


def called(make, *shape: int):
    """Return the call that ``make`` builds on an input of that shape, with its type inferred."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            y = bb.emit(make(x))
            out = bb.emit_output(y)
        bb.emit_func_output(out)
    main = bb.finalize()["main"]
    return main.body.blocks[0].bindings[0].value


def by_hand(values: torch.Tensor, tile: tuple[int, int] = TILE) -> float:
    """Count tiles of a (H, W) map of reached outputs."""
    rows, columns = tile
    height, width = values.shape
    tiles = [
        bool(values[i : i + rows, j : j + columns].any())
        for i in range(0, height, rows)
        for j in range(0, width, columns)
    ]
    return float(np.mean(tiles))


@pytest.mark.parametrize("seed", range(6))
def test_convolution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stride, dilation, kernel = rng.integers(1, 3), rng.integers(1, 3), rng.integers(1, 4)
    pads = [int(p) for p in rng.integers(0, 3, 4)]
    height, width = (int(n) for n in rng.integers(9, 14, 2))
    weight = relax.const(np.ones((1, kernel, kernel, 1), "float32"))
    call = called(
        lambda x: op.nn.conv2d(
            x, weight, [stride] * 2, pads, [dilation] * 2, 1, "NHWC", "OHWI"
        ),
        1, height, width, 1,
    )  # fmt: skip
    moved = rng.random((1, height, width)) < 0.04
    top, left, bottom, right = pads
    padded = F.pad(torch.from_numpy(moved[0]).float(), (left, right, top, bottom))
    reached = torch.tensor(
        [
            [
                padded[
                    i * stride : i * stride + (kernel - 1) * dilation + 1 : dilation,
                    j * stride : j * stride + (kernel - 1) * dilation + 1 : dilation,
                ].sum() > 0
                for j in range(int(call.ty.shape[2]))
            ]
            for i in range(int(call.ty.shape[1]))
        ]
    )  # fmt: skip
    tile = (1, 1) if kernel == stride == 1 else TILE
    assert Reach.of(call).active_share(moved) == pytest.approx(by_hand(reached, tile))


def test_pixels_of_a_pointwise_convolution_are_its_tiles() -> None:
    weight = relax.const(np.ones((5, 1, 1, 2), "float32"))
    call = called(
        lambda x: op.nn.conv2d(x, weight, [1, 1], 0, [1, 1], 1, "NHWC", "OHWI"), 1, 4, 8, 2
    )
    moved = np.zeros((1, 4, 8), bool)
    moved[0, 1, 3] = moved[0, 1, 4] = moved[0, 3, 7] = True
    assert Reach.of(call).active_share(moved) == pytest.approx(3 / 32)


def test_transposed_convolution_and_dense() -> None:
    weight = relax.const(np.ones((1, 2, 2, 1), "float32"))
    call = called(
        lambda x: op.nn.conv2d_transpose(
            x, weight, strides=[2, 2], data_layout="NHWC", kernel_layout="OHWI"
        ),
        1, 4, 8, 1,
    )  # fmt: skip
    moved = np.zeros((1, 4, 8), bool)
    moved[0, 1, 3] = True  # reaches rows 2 and 3, columns 6 and 7: one tile of 4 x 8
    assert Reach.of(call).active_share(moved) == pytest.approx(1 / 32)
    dense = called(lambda x: op.matmul(x, relax.const(np.ones((3, 2), "float32"))), 1, 3)
    assert Reach.of(dense).active_share(np.array([True])) == 1.0
    assert Reach.of(dense).active_share(np.array([False])) == 0.0


def test_mac_share_weighs_layers_by_their_work() -> None:
    cost = mac_share(small_network().module["main"])
    pixels = 12 * 10
    macs = {"stem": pixels * 27 * 8, "depth": pixels * 9 * 8, "point": pixels * 32,
            "head": 10 * 8 * 12 * 9 * 5}  # fmt: skip
    assert cost(dict.fromkeys(macs, 1.0)) == pytest.approx(1.0)
    assert cost({**dict.fromkeys(macs, 0.0), "head": 0.5}) == pytest.approx(
        0.5 * macs["head"] / sum(macs.values())
    )

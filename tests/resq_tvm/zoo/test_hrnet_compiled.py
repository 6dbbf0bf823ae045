"""HRNet-W32 from `load` to compiled programs, at a small size."""

import numpy as np
import pytest
import torch

import resq_tvm as resq
from resq_tvm.compiler import build as compile_programs
from resq_tvm.passes.graph import Graph
from resq_tvm.verify import verify
from resq_tvm.zoo import build
from resq_tvm.zoo.initialize import smooth_images
from tests.resq_tvm.frontends.fidelity import close, run

SHAPE = (1, 3, 64, 64)
LAYERS = 293


@pytest.mark.slow
def test_hrnet_is_itself_behind_load_and_agrees_with_the_reference() -> None:
    module, example = build("hrnet_w32", SHAPE)
    network = resq.load("zoo:hrnet_w32", input_shape=SHAPE)
    with torch.no_grad():
        close(run(network, example.numpy())[0], module(example).numpy())
    assert len(Graph.of(network.module["main"]).layers()) == LAYERS

    # The keyframe alone: a residual program has as many kernels again, and takes as long to build.
    frames = [
        np.asarray(f, np.float32) for f in smooth_images(2, *SHAPE[2:], seed=3).numpy()[:, None]
    ]
    quantized = resq.calibrate(network, [frames], "W8A8", period=1)
    report = verify(compile_programs(quantized), [network.to_canonical(f) for f in frames])
    assert len(report.kernels) > LAYERS
    assert report.failures == []
    assert report.outputs_differing == 0
    assert report.differing_share < 0.01

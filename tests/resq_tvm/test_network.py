import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from resq_tvm.errors import FrameError, ModelError
from resq_tvm.network import load
from resq_tvm.passes.graph import Graph
from resq_tvm.zoo import build
from tests.resq_tvm.frontends.fidelity import close, run


@pytest.mark.parametrize(
    ("name", "shape", "layers"),
    [("tiny_seg", (1, 3, 24, 40), 8), ("ddrnet23_slim", (1, 3, 128, 256), 55)],
)
def test_canonical_main_is_the_network(name: str, shape: tuple[int, ...], layers: int) -> None:
    module, example = build(name, shape)
    network = load(f"zoo:{name}", input_shape=shape)
    with torch.no_grad():
        want = module(example).numpy()
    close(run(network, example.numpy())[0], want)
    assert len(Graph.of(network.module["main"]).layers()) == layers
    assert network.name == name
    assert network.source == f"zoo:{name}"


def test_views_between_layouts() -> None:
    network = load("zoo:tiny_seg")
    x = np.zeros((1, 3, 32, 48), np.float32)
    view = network.to_canonical(x)
    assert view.shape == network.input_shapes[0] == (1, 32, 48, 3)
    assert np.shares_memory(view, x)
    y = np.zeros((1, 32, 48, 4), np.float32)
    assert network.from_canonical(y, 0).shape == network.outputs[0].shape == (1, 4, 32, 48)
    with pytest.raises(FrameError, match=r"takes \(1, 3, 32, 48\)"):
        network.to_canonical(y)
    with pytest.raises(FrameError, match="canonical shape"):
        network.from_canonical(x, 0)


def test_dump_writes_both_ends(tmp_path: Path) -> None:
    load("zoo:tiny_seg", dump=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00_imported.py", "01_canonical.py"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("missing.onnx", "no such model file"),
        ("missing.tflite", "no such model file"),
        ("net.caffemodel", "unknown kind of model '.caffemodel'"),
        ("net", "unknown kind of model 'without suffix'"),
        ("zoo:resnet", "it has ddrnet23_slim, hrnet_w32, tiny_seg"),
        (7, "cannot load a int"),
    ],
)
def test_what_cannot_be_loaded(model: object, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 3, 30, 40), (2, 3, 32, 40), (1, 1, 32, 40), (3, 32, 40)])
def test_zoo_refuses_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="zoo:tiny_seg takes"):
        load("zoo:tiny_seg", input_shape=shape)


def test_importing_the_front_door_stays_light() -> None:
    code = (
        "import sys, resq_tvm.zoo, resq_tvm.errors; "
        "sys.exit(any(m in sys.modules for m in ('tvm', 'torch', 'onnx', 'tflite')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Every operator of the canonical list, from PyTorch, against PyTorch."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resq_tvm.errors import ModelError, UnsupportedOperatorError
from resq_tvm.network import load
from resq_tvm.passes.graph import Graph, op_name
from tests.resq_tvm.frontends.fidelity import close, run

SHAPE = (1, 6, 9, 11)


class Function(nn.Module):
    """A module of one function and its layers."""

    def __init__(self, function: Callable[..., torch.Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.layers)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    for tensor in (layer.weight, layer.bias, layer.running_mean):
        nn.init.uniform_(tensor, -1, 1)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


MODULES: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(6, 8, 3, 2, 1),
    "conv_dilated_asymmetric": lambda: nn.Conv2d(6, 8, (3, 5), (1, 2), (2, 0), (2, 1)),
    "conv_grouped": lambda: nn.Conv2d(6, 8, 3, groups=2),
    "conv_depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "conv_norm_relu": lambda: nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), norm(8), nn.ReLU()),
    "norm_conv": lambda: nn.Sequential(norm(6), nn.ReLU(), nn.Conv2d(6, 8, 3)),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, 1),
    "transposed_norm": lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 2, 2), norm(4)),
    "dense": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    "flatten_dense": lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(594, 5), nn.ReLU()),
    "flatten_scaled_dense": lambda: Function(
        lambda x, s, d: d(torch.flatten(x, 1) * s.weight), nn.Linear(594, 1), nn.Linear(594, 5)
    ),
    "flatten": lambda: nn.Sequential(nn.ReLU(), nn.Flatten()),
    "max_pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max_pool_ceil": lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    "avg_pool": lambda: nn.AvgPool2d(3, 2, 1),
    "avg_pool_inside": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive_pool": lambda: nn.AdaptiveAvgPool2d((3, 11)),
    "mean": lambda: Function(lambda x: x.mean((2, 3), keepdim=True) * x),
    "mean_flat": lambda: Function(lambda x, d: d(x.mean((2, 3))), nn.Linear(6, 3)),
    "bilinear": lambda: nn.Upsample((20, 17), mode="bilinear"),
    "bilinear_corners": lambda: nn.Upsample((5, 30), mode="bilinear", align_corners=True),
    "nearest": lambda: nn.Upsample(scale_factor=2, mode="nearest"),
    "relu6": lambda: nn.ReLU6(),
    "hard_swish": lambda: nn.Hardswish(),
    "hard_sigmoid": lambda: nn.Hardsigmoid(),
    "silu": lambda: nn.SiLU(),
    "gelu": lambda: nn.GELU(),
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "sigmoid": lambda: nn.Sigmoid(),
    "tanh": lambda: nn.Tanh(),
    "softmax": lambda: nn.Softmax(1),
    "softmax_flat": lambda: nn.Sequential(nn.Flatten(), nn.Softmax(1)),
    "prelu": lambda: nn.PReLU(6, 0.3),
    "prelu_single": lambda: nn.PReLU(),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "elementwise": lambda: Function(
        lambda x: (3 - x) * x.abs() - torch.exp(-x) / (x.square() + 1) + x.clamp(-0.5, 0.7)
    ),
    "extrema": lambda: Function(
        lambda x: torch.maximum(x, -x) + torch.minimum(x, x * 2) + x.clamp(min=0.1)
    ),
    "squeeze_excite": lambda: Function(
        lambda x, a, b: x * torch.sigmoid(b(F.relu(a(x.mean((2, 3), keepdim=True))))),
        nn.Conv2d(6, 2, 1),
        nn.Conv2d(2, 6, 1),
    ),
    "concat": lambda: Function(
        lambda x, a, b: F.relu(torch.cat([a(x), x, b(x)], 1)), nn.Conv2d(6, 3, 1), norm(6)
    ),
    "concat_rows": lambda: Function(lambda x: torch.cat([x, x * 2], 2)),
    "split": lambda: Function(lambda x: (lambda a, b: a * b)(*torch.split(x, 3, 1))),
    "chunk_uneven": lambda: Function(
        lambda x: torch.cat([c * (i + 1) for i, c in enumerate(torch.split(x, 4, 1))], 1)
    ),
    "slice": lambda: Function(lambda x: x[:, 1:5:2, -6:, 2:9]),
    "pad": lambda: Function(lambda x: F.pad(x, (1, 2, 0, 3), value=0.5)),
    "pad_conv": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(6, 4, 3, 2)),
    "pad_max_pool": lambda: nn.Sequential(nn.ReLU(), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)),
    "channels_last": lambda: Function(
        lambda x, d: d(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + 1, nn.Softmax(3)
    ),
    "channel_shuffle": lambda: Function(
        lambda x, c: c(x.view(1, 2, 3, 9, 11).transpose(1, 2).reshape(1, 6, 9, 11)),
        nn.Conv2d(6, 4, 1),
    ),
    "pixel_shuffle": lambda: nn.Sequential(nn.Conv2d(6, 8, 1), nn.PixelShuffle(2)),
    "spatial_transpose": lambda: Function(lambda x: x.transpose(2, 3) * 2),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Conv2d(6, 2, 1)),
}


class Together(nn.Module):
    """All modules on one input: one export instead of one per module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.modules_by_name = nn.ModuleDict({f"m_{n}": make() for n, make in MODULES.items()})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(m(x) for m in self.modules_by_name.values())


@pytest.fixture(scope="module")
def together() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return name → (canonical main's output, the module's output)."""
    module = Together().eval()
    x = torch.randn(SHAPE)
    with torch.no_grad():
        want = [y.numpy() for y in module(x)]
    return dict(zip(MODULES, zip(run(load(module, x), x.numpy()), want, strict=True), strict=True))


@pytest.mark.parametrize("name", MODULES)
def test_canonical_main_is_the_module(
    name: str, together: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    close(*together[name])


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("conv_norm_relu", ["nn.conv2d", "add", "nn.relu"]),
        ("transposed_norm", ["nn.conv2d_transpose", "add"]),
        ("flatten_dense", ["nn.relu", "reshape", "matmul", "add", "nn.relu"]),
        ("hard_swish", ["add", "clip", "multiply", "multiply"]),
        ("pad_conv", ["nn.conv2d", "add"]),
        ("pad_max_pool", ["nn.relu", "nn.max_pool2d"]),
        ("channels_last", ["nn.softmax", "add"]),
        ("dropout", ["nn.conv2d", "add"]),
    ],
)
def test_canonical_operators(name: str, operators: list[str]) -> None:
    main = load(MODULES[name](), torch.zeros(SHAPE)).module["main"]
    found = [op_name(e).removeprefix("relax.") for _, e in Graph.of(main).bindings[:-1]]
    assert found == operators


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b.reshape(1, 6, 1, 1), torch.softmax(b, 1)

    a, b = torch.randn(SHAPE), torch.randn(1, 6)
    network = load(Two(), (a, b))
    assert [t.layout for t in network.inputs] == ["NCHW", ""]
    first, second = run(network, a.numpy(), b.numpy())
    close(first, Two()(a, b)[0])
    close(second, Two()(a, b)[1])


def test_unsupported_operators_are_listed_with_their_places() -> None:
    module = Function(lambda x, c: torch.cumprod(c(torch.fft.fft2(x).real), 1), nn.Conv2d(6, 4, 1))
    with pytest.raises(UnsupportedOperatorError) as caught:
        load(module, torch.zeros(SHAPE))
    assert len(caught.value.operators) >= 2
    assert "fft" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_operators_without_canonical_form_are_listed() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"cos .*sin "):
        load(Function(lambda x: torch.sin(torch.cos(x))), torch.zeros(SHAPE))


def test_module_without_shape() -> None:
    with pytest.raises(ModelError, match="input_shape"):
        load(nn.ReLU())
    with pytest.raises(ModelError, match="batch 2"):
        load(nn.ReLU(), input_shape=(2, 3, 4, 4))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt2"
    program = torch.export.export(nn.Conv2d(6, 4, 1).eval(), (torch.zeros(SHAPE),))
    torch.export.save(program, path)
    return path


def test_archive_is_the_module(archive: Path) -> None:
    x = torch.randn(SHAPE)
    want = torch.export.load(archive).module()(x).detach()
    close(run(load(archive), x.numpy())[0], want)


def test_open_sizes_are_fixed_by_the_input_shape(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()).eval()
    rows = torch.export.Dim("rows", min=4, max=64)
    program = torch.export.export(
        module, (torch.zeros(1, 3, 8, 8),), dynamic_shapes=({2: 2 * rows},)
    )
    path = tmp_path / "open.pt2"
    torch.export.save(program, path)
    with pytest.raises(ModelError, match=r"open shape 1x3x\?x8.*input_shape"):
        load(path)
    with pytest.raises(ModelError, match="not 1x3x12x9"):
        load(path, input_shape=(1, 3, 12, 9))
    x = torch.randn(1, 3, 12, 8)
    close(run(load(path, x), x.numpy())[0], module(x).detach())


def _edit(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    edited = path.with_name("edited.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(edited, "w") as target:
        for member in source.namelist():
            target.writestr(member, change(member, source.read(member)))
    return edited


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_archive_that_could_run_code_is_refused(archive: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    bomb = pickle.dumps(Bomb(mark))
    edits: list[Callable[[str, bytes], bytes]] = [
        lambda m, c: bomb if "sample_inputs" in m else c,
        lambda m, c: c.replace(b'"use_pickle": false', b'"use_pickle": true'),
        lambda m, c: c.replace(b"torch.ops.aten.conv2d.default", b"torch.os.system.conv2d"),
    ]
    for edit in edits:
        with pytest.raises(ModelError, match="could run code"):
            load(_edit(archive, edit))
    assert not mark.exists()


def test_pickles_are_refused(tmp_path: Path) -> None:
    for name in ("net.pt", "net.pth"):
        with pytest.raises(ModelError, match=r"torch\.export"):
            load(tmp_path / name)
    (tmp_path / "net.pt2").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ModelError, match=r"not a \.pt2 archive"):
        load(tmp_path / "net.pt2")
    assert not (tmp_path / "ran").exists()


def test_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(6, 4, 1), norm(4)).train()
    before = [p.clone() for p in module.state_dict().values()]
    load(module, torch.randn(SHAPE))
    assert module.training
    assert all(torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True))
    assert np.all([p.requires_grad for p in module.parameters()])

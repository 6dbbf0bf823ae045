import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from resq_tvm.errors import ModelError
from resq_tvm.zoo import NAMES, build


@pytest.mark.parametrize("name", NAMES)
def test_build_is_deterministic_and_leaves_the_random_state(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, x = build(name)
    assert torch.equal(before, torch.get_rng_state())
    second, y = build(name)
    assert torch.equal(x, y)
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_well_behaved(name: str) -> None:
    module, x = build(name)
    with torch.no_grad():
        logits = module(x)
    assert 0.1 < float(logits.std()) < 20
    # An untrained network must still decide differently in different places.
    assert len(logits.argmax(1).unique()) >= 3


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "gmacs"),
    [
        ("ddrnet23_slim", (1, 3, 1024, 2048), 5_695_923, 36.28),
        # Published as 28.5 M parameters; counts of operations differ in what they count besides.
        ("hrnet_w32", (1, 3, 256, 192), 28_536_113, 7.65),
    ],
)
def test_networks_have_the_published_size(
    name: str, shape: tuple[int, ...], parameters: int, gmacs: float
) -> None:
    module, _ = build(name)
    assert sum(p.numel() for p in module.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        module.to("meta")(torch.empty(shape))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.01)


def test_hrnet_has_a_heatmap_per_key_point_and_layers_by_stage() -> None:
    module, x = build("hrnet_w32", (1, 3, 64, 96))
    with torch.no_grad():
        assert module(x).shape == (1, 17, 16, 24)
    convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    stem, layer1, transitions, head = 2, 4 * 3 + 1, 4, 1
    blocks = 2 * 4 * (1 * 2 + 4 * 3 + 3 * 4)
    # Ways between n branches: n(n-1)/2 up, and one step down for each branch that is passed.
    ways = {2: 1 + 1, 3: 3 + 4, 4: 6 + 10}
    exchanges = ways[2] + 4 * ways[3] + 2 * ways[4] + 3
    assert len(convolutions) == stem + layer1 + transitions + blocks + exchanges + head


def test_every_network_names_its_own_step() -> None:
    build("tiny_seg", (1, 3, 40, 48))
    with pytest.raises(ModelError, match="multiples of 32, not 40x64"):
        build("hrnet_w32", (1, 3, 40, 64))

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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


def test_ddrnet_has_the_published_size() -> None:
    module, _ = build("ddrnet23_slim")
    assert sum(p.numel() for p in module.parameters()) == 5_695_923
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        module.to("meta")(torch.empty(1, 3, 1024, 2048))
    assert counter.get_total_flops() / 2e9 == pytest.approx(36.28, abs=0.01)

"""Networks that come with the package: ``zoo:NAME``, deterministic, without downloads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from resq_tvm.errors import ModelError

if TYPE_CHECKING:
    import torch

PREFIX = "zoo:"

_SHAPES = {
    "ddrnet23_slim": (1, 3, 256, 512),
    "hrnet_w32": (1, 3, 256, 192),
    "tiny_seg": (1, 3, 32, 48),
}
_STEPS = {"ddrnet23_slim": 8, "hrnet_w32": 32, "tiny_seg": 8}  # heights and widths: multiples
NAMES = tuple(_SHAPES)


def build(name: str, input_shape: Sequence[int] | None = None) -> tuple[Any, torch.Tensor]:
    """Build a network with seeded weights and calibrated batch-norm statistics.

    Parameters
    ----------
    name : str
        ``"ddrnet23_slim"``, ``"hrnet_w32"`` or ``"tiny_seg"``; the prefix ``zoo:`` may stand
        before it.
    input_shape : sequence of int, optional
        NCHW with three channels; the network's usual one by default.

    Returns
    -------
    nn.Module, torch.Tensor
        The network in evaluation mode and an example input, float32 NCHW.

    Raises
    ------
    ModelError
        If there is no such network, or the shape does not fit it.
    """
    key = name.removeprefix(PREFIX)
    if key not in _SHAPES:
        raise ModelError(f"zoo has no network {key!r}; it has {', '.join(NAMES)}")
    shape = tuple(int(d) for d in input_shape) if input_shape is not None else _SHAPES[key]
    if len(shape) != 4 or shape[:2] != (1, 3) or min(shape) < 1:
        raise ModelError(f"{PREFIX}{key} takes shapes 1x3xHxW, not {'x'.join(map(str, shape))}")
    step = _STEPS[key]
    if shape[2] % step or shape[3] % step:
        raise ModelError(
            f"{PREFIX}{key} takes heights and widths that are multiples of {step}, "
            f"not {shape[2]}x{shape[3]}"
        )
    return _network(key, shape)


def _network(key: str, shape: tuple[int, ...]) -> tuple[Any, torch.Tensor]:
    import torch

    from resq_tvm.zoo.ddrnet import DdrNet23Slim
    from resq_tvm.zoo.hrnet import HrNetW32
    from resq_tvm.zoo.initialize import initialize, smooth_images
    from resq_tvm.zoo.tiny_seg import TinySeg

    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "ddrnet23_slim": DdrNet23Slim,
        "hrnet_w32": HrNetW32,
        "tiny_seg": TinySeg,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = makers[key]()
        initialize(module)
        return module, smooth_images(1, shape[2], shape[3], seed=1)

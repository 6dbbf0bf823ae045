"""Weights and statistics that keep an untrained network's activations well behaved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_CALIBRATION = (8, 128, 256)  # images, height, width: small, so that it takes a moment


def initialize(module: nn.Module) -> None:
    """Draw Kaiming weights and set batch-norm statistics from smooth random images, in place.

    Uses torch's current random state for the weights; the images have their own seed. Leaves the
    module in evaluation mode with gradients off.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, std=0.2)
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over the calibration batch
    module.requires_grad_(False)
    module.train()
    with torch.no_grad():
        module(smooth_images(*_CALIBRATION, seed=0))
    for norm in norms:
        norm.momentum = 0.1
        # Behind a global pool eight values make a variance; a chance zero would explode.
        norm.running_var.clamp_(min=float(norm.running_var.mean()) / 4)
    module.eval()


def smooth_images(count: int, height: int, width: int, *, seed: int) -> torch.Tensor:
    """Return images of soft blobs, float32 ``(count, 3, height, width)``, about unit variance."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(count, 3, height, width)
    for cells in (4, 8, 16):
        noise = torch.randn(count, 3, cells, 2 * cells, generator=generator)
        image += F.interpolate(noise, (height, width), mode="bilinear")
    return image / 1.2

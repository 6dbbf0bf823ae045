"""Temporal noise of a clip, from its own residuals.

Where nothing moves, the difference of a frame to its keyframe is noise of the camera and the codec.
The quietest quarter of all blocks is taken for that; where everything moves the estimate is too
high, never too low.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from resq_tvm.passes.policy import BLOCK
from resq_tvm.quantize.samples import FrameGroups

_QUIET = 0.25


def residual_noise(frames: FrameGroups, index: int = 0) -> tuple[float, float]:
    """Return the noise of residuals at a network input, and the input's largest magnitude.

    Parameters
    ----------
    frames : FrameGroups
        Keyframes and their residual frames.
    index : int
        Which input.

    Returns
    -------
    noise : float
        Root mean square of the residual in quiet blocks, in the input's units.
    extent : float
    """
    energies = []
    extent = 0.0
    for group in frames.groups:
        key = group[0][index]
        extent = max(extent, float(key.abs().max()))
        for inputs in group[1:]:
            delta = inputs[index] - key
            if delta.dim() != 4 or min(delta.shape[1:3]) < BLOCK:
                energies.append(delta.square().mean().reshape(1))
                continue
            blocks = F.avg_pool2d(delta.square().mean(-1, keepdim=False), BLOCK)
            energies.append(blocks.reshape(-1))
    joined = torch.cat(energies) if energies else torch.zeros(1)
    return float(np.sqrt(np.quantile(joined.numpy(), _QUIET))), extent

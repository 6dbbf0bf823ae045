"""A very small segmentation network: every kind of kernel, a moment of computing.

For tests and the offline demo.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_CLASSES = 4


class TinySeg(nn.Module):
    """Convolution, depthwise, residual sum, pooled context, concat and bilinear upsampling.

    ``(N, 3, H, W)`` → logits ``(N, 4, H, W)``; H and W are multiples of 8.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = self._unit(3, 16, 3, stride=2)
        self.depthwise = self._unit(16, 16, 3, groups=16)
        self.pointwise = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.down = self._unit(16, 32, 3, stride=2)
        self.dilated = self._unit(32, 32, 3, dilation=2)
        self.squeeze = nn.Conv2d(32, 16, 1)
        self.fuse = self._unit(32, 16, 3)
        self.classify = nn.Conv2d(16, _CLASSES, 1)

    @staticmethod
    def _unit(
        inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> nn.Sequential:
        padding = dilation * (kernel // 2)
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6() if groups > 1 else nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of the input's height and width."""
        fine = self.stem(x)
        fine = F.relu(fine + self.pointwise(self.depthwise(fine)))
        coarse = self.dilated(self.down(fine))
        coarse = coarse + F.adaptive_avg_pool2d(coarse, 1)
        size = (fine.shape[-2], fine.shape[-1])
        coarse = F.interpolate(self.squeeze(coarse), size, mode="bilinear", align_corners=False)
        logits = self.classify(self.fuse(torch.cat([fine, coarse], 1)))
        return F.interpolate(
            logits, (x.shape[-2], x.shape[-1]), mode="bilinear", align_corners=False
        )

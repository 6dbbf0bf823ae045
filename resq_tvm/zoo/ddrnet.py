"""DDRNet-23-slim for segmentation (Hong et al. 2021, arXiv:2101.06085).

Two branches: one stays at 1/8 of the input's size, one goes down to 1/64; they exchange features
twice and meet after a pyramid of pooled contexts (DAPPM). 5.696 M parameters, 36.28 GMACs at
1024 x 2048; the output has 1/8 of the input's height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_PLANES = 32
_CONTEXT = 128
_HEAD = 64
_CLASSES = 19


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return _conv_norm(inputs, outputs, kernel, stride).append(nn.ReLU())


def _norm_relu_conv(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=False),
    )


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the final ReLU is optional."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, final_relu: bool = True) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(inputs, outputs, 3, stride)
        self.conv2 = _conv_norm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)
        self.final_relu = final_relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H/stride, W/stride)``."""
        y = self.conv2(self.conv1(x)) + self.shortcut(x)
        return F.relu(y) if self.final_relu else y


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to twice the channels, around a projected shortcut, without a final ReLU."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.reduce = _conv_norm_relu(inputs, width, 1)
        self.conv = _conv_norm_relu(width, width, 3, stride)
        self.expand = _conv_norm(width, 2 * width, 1)
        self.shortcut = _conv_norm(inputs, 2 * width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, 2·width, H/stride, W/stride)``."""
        return self.expand(self.conv(self.reduce(x))) + self.shortcut(x)


class ContextPyramid(nn.Module):
    """Deep aggregation pyramid pooling (DAPPM): contexts of growing size, added up in turn."""

    _WINDOWS = ((5, 2), (9, 4), (17, 8))

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.local = _norm_relu_conv(inputs, width)
        self.scales = nn.ModuleList(_norm_relu_conv(inputs, width) for _ in range(4))
        self.process = nn.ModuleList(_norm_relu_conv(width, width, 3) for _ in range(4))
        self.compress = _norm_relu_conv(5 * width, outputs)
        self.shortcut = _norm_relu_conv(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H, W)``."""
        contexts = [self.local(x)]
        pooled = [F.avg_pool2d(x, k, s, k // 2) for k, s in self._WINDOWS]
        pooled.append(F.adaptive_avg_pool2d(x, 1))
        for scale, process, region in zip(self.scales, self.process, pooled, strict=True):
            contexts.append(process(_resize(scale(region), x) + contexts[-1]))
        return self.compress(torch.cat(contexts, 1)) + self.shortcut(x)


def _blocks(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, final_relu=False)
    )


class DdrNet23Slim(nn.Module):
    """The network: ``(N, 3, H, W)`` → logits ``(N, 19, H/8, W/8)``, H and W multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        p, high = _PLANES, 2 * _PLANES
        self.stem = nn.Sequential(_conv_norm_relu(3, p, 3, 2), _conv_norm_relu(p, p, 3, 2))
        self.layer1 = _blocks(p, p)
        self.layer2 = _blocks(p, 2 * p, 2)
        self.layer3 = _blocks(2 * p, 4 * p, 2)
        self.layer4 = _blocks(4 * p, 8 * p, 2)
        self.layer5 = Bottleneck(8 * p, 8 * p, 2)
        self.high3 = _blocks(2 * p, high)
        self.high4 = _blocks(high, high)
        self.high5 = Bottleneck(high, high)
        self.up3 = _conv_norm(4 * p, high, 1)
        self.up4 = _conv_norm(8 * p, high, 1)
        self.down3 = _conv_norm(high, 4 * p, 3, 2)
        self.down4 = nn.Sequential(
            _conv_norm_relu(high, 4 * p, 3, 2), _conv_norm(4 * p, 8 * p, 3, 2)
        )
        self.context = ContextPyramid(16 * p, _CONTEXT, 4 * p)
        self.head = _norm_relu_conv(4 * p, _HEAD, 3)
        self.classify = nn.Sequential(
            nn.BatchNorm2d(_HEAD), nn.ReLU(), nn.Conv2d(_HEAD, _CLASSES, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits at 1/8 of the input's height and width."""
        x = self.layer2(F.relu(self.layer1(self.stem(x))))
        low3 = self.layer3(F.relu(x))
        high = self.high3(F.relu(x))
        low = low3 + self.down3(F.relu(high))
        high = high + _resize(self.up3(F.relu(low3)), high)
        low4 = self.layer4(F.relu(low))
        high = self.high4(F.relu(high))
        low = low4 + self.down4(F.relu(high))
        high = high + _resize(self.up4(F.relu(low4)), high)
        high = self.high5(F.relu(high))
        low = self.context(self.layer5(F.relu(low)))
        return self.classify(self.head(_resize(low, high) + high))

"""HRNet-W32 for poses (Sun et al. 2019, arXiv:1902.09212).

Branches at 1/4, 1/8, 1/16 and 1/32 of the input's size, one more from stage to stage, run side by
side and exchange features after every four blocks: coarser ones come up by nearest upsampling,
finer ones go down by strided convolutions. 28.536 M parameters, 7.645 GMACs at 256 x 192; the
output, a heatmap for each of 17 key points, has 1/4 of the input's height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_STEM = 64
_WIDTH = 32  # channels of the finest branch; every coarser one has twice as many
_BLOCKS = 4
_EXCHANGES = {2: 1, 3: 4, 4: 3}  # branches: how often they exchange features
_KEY_POINTS = 17


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return _conv_norm(inputs, outputs, kernel, stride).append(nn.ReLU())


def _channels(branch: int) -> int:
    return _WIDTH << branch


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(channels, channels, 3)
        self.conv2 = _conv_norm(channels, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, channels, H, W)`` to the same shape."""
        return F.relu(self.conv2(self.conv1(x)) + x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the width, around a shortcut."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.reduce = _conv_norm_relu(inputs, width, 1)
        self.conv = _conv_norm_relu(width, width, 3)
        self.expand = _conv_norm(width, outputs, 1)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, 4·width, H, W)``."""
        return F.relu(self.expand(self.conv(self.reduce(x))) + self.shortcut(x))


def _to_finer(source: int, target: int) -> nn.Module:
    """Return the way from a coarser branch to a finer one, but for the upsampling."""
    return _conv_norm(_channels(source), _channels(target), 1)


def _to_coarser(source: int, target: int) -> nn.Module:
    """Return the way from a finer branch to a coarser one: a strided convolution per step."""
    halved = [
        _conv_norm_relu(_channels(source), _channels(source), 3, 2)
        for _ in range(target - source - 1)
    ]
    return nn.Sequential(*halved, _conv_norm(_channels(source), _channels(target), 3, 2))


class Exchange(nn.Module):
    """Every kept branch becomes the sum of all branches, brought to its size.

    Parameters
    ----------
    branches, kept : int
        Branches that come in, and those that go out (the finest ones).
    """

    def __init__(self, branches: int, kept: int) -> None:
        super().__init__()
        self.ways = nn.ModuleList(
            nn.ModuleList(self._way(source, target) for source in range(branches))
            for target in range(kept)
        )

    @staticmethod
    def _way(source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        return _to_finer(source, target) if source > target else _to_coarser(source, target)

    def forward(self, xs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map one tensor per branch to one per kept branch."""
        sums = []
        for target, ways in enumerate(self.ways):
            assert isinstance(ways, nn.ModuleList)
            total = None
            for source, (way, x) in enumerate(zip(ways, xs, strict=True)):
                y = way(x)
                if source > target:
                    y = F.interpolate(y, xs[target].shape[-2:], mode="nearest")
                total = y if total is None else total + y
            assert total is not None
            sums.append(F.relu(total))
        return sums


class Module(nn.Module):
    """Four blocks on every branch, then an exchange."""

    def __init__(self, branches: int, kept: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(_channels(branch)) for _ in range(_BLOCKS)))
            for branch in range(branches)
        )
        self.exchange = Exchange(branches, kept)

    def forward(self, xs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map one tensor per branch to one per kept branch."""
        blocks = zip(self.branches, xs, strict=True)
        return self.exchange([branch(x) for branch, x in blocks])


class HrNetW32(nn.Module):
    """The network: ``(N, 3, H, W)`` → heatmaps ``(N, 17, H/4, W/4)``, H and W multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv_norm_relu(3, _STEM, 3, 2), _conv_norm_relu(_STEM, _STEM, 3, 2)
        )
        wide = 4 * _STEM
        self.layer1 = nn.Sequential(
            Bottleneck(_STEM, _STEM), *(Bottleneck(wide, _STEM) for _ in range(_BLOCKS - 1))
        )
        self.finest = _conv_norm_relu(wide, _channels(0), 3)
        # The new branch of every stage comes from the coarsest tensor before it.
        self.coarsest = nn.ModuleList(
            _conv_norm_relu(wide if n == 2 else _channels(n - 2), _channels(n - 1), 3, 2)
            for n in _EXCHANGES
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(
                # Behind the last exchange the heatmaps need the finest branch alone.
                Module(n, 1 if n == max(_EXCHANGES) and i == times - 1 else n)
                for i in range(times)
            )
            for n, times in _EXCHANGES.items()
        )
        self.heatmaps = nn.Conv2d(_channels(0), _KEY_POINTS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return heatmaps at 1/4 of the input's height and width."""
        x = self.layer1(self.stem(x))
        xs = [self.finest(x)]
        for down, stage in zip(self.coarsest, self.stages, strict=True):
            assert isinstance(stage, nn.ModuleList)
            xs.append(down(x))
            for module in stage:
                xs = module(xs)
            x = xs[-1]
        return self.heatmaps(xs[0])

"""LALIC's blocks: linear attention over all pixels, and a gated perceptron."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.models.convolutions import conv, depthwise
from bench.lic.models.wkv import bidirectional_wkv

KERNELS = (1, 3, 5)


class OmniShift(nn.Module):
    """A mixture of each pixel's neighbourhoods: a_0 x + sum_j a_j depthwise_j(x), of 1, 3 and 5.

    In evaluation the four terms are one 5x5 kernel, `merged`, which is computed anew at every
    forward, so that it cannot be stale. It is a parameter without a gradient, as in the published
    model; x is [B, H, W, C].

    Source: Yang et al. 2024, Restore-RWKV (arXiv 2407.11087).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixture = nn.Parameter(torch.randn(1 + len(KERNELS)))
        self.shifts = nn.ModuleList(depthwise(channels, size, bias=False) for size in KERNELS)
        start = depthwise(channels, KERNELS[-1], bias=False).weight.detach()
        self.merged = nn.Parameter(start, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1)
        if self.training:
            mixed = self.mixture[0] * x
            for weight, shift in zip(self.mixture[1:], self.shifts, strict=True):
                mixed = mixed + weight * shift(x)
        else:
            kernel = self._merge()
            with torch.no_grad():
                self.merged.copy_(kernel)
            mixed = F.conv2d(x, kernel, padding=KERNELS[-1] // 2, groups=x.shape[1])
        return mixed.movedim(1, -1)

    def _merge(self) -> Tensor:
        """The kernel of all terms  # [C, 1, 5, 5]."""
        middle = KERNELS[-1] // 2
        kernel = F.pad(self.mixture[0].view(1, 1, 1, 1), [middle] * 4)
        for weight, shift in zip(self.mixture[1:], self.shifts, strict=True):
            kernel = kernel + weight * F.pad(shift.weight, [middle - shift.padding[0]] * 4)
        return kernel


class ChannelMix(nn.Module):
    """sigmoid(R x) * V(ReLU(K x)²), pixel by pixel; x is [..., channels]."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.key = nn.Linear(channels, hidden, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.receptance(x)) * self.value(F.relu(self.key(x)).square())


class SpatialMix(nn.Module):
    """O(sigmoid(R x) * wkv(K x, V x)) over all pixels in raster order; x is [B, H, W, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.decay, self.boost = (nn.Parameter(torch.randn(channels)) for _ in range(2))
        self.key, self.value, self.receptance, self.out = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        key, value = (
            project(x).flatten(1, 2).transpose(1, 2).contiguous()  # [B, C, H * W]
            for project in (self.key, self.value)
        )
        attended = bidirectional_wkv(self.decay, self.boost, key, value)
        attended = attended.transpose(1, 2).view(x.shape)
        return self.out(torch.sigmoid(self.receptance(x)) * attended)


class RWKV(nn.Module):
    """x + gain * spatial_mix(x), then the same with a channel mix; maps are [B, C, H, W].

    Source: Feng et al. 2025, LALIC (arXiv 2502.05741).
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.spatial = nn.Sequential(
            nn.LayerNorm(channels),
            OmniShift(channels),
            SpatialMix(channels),
        )
        self.channel = nn.Sequential(
            nn.LayerNorm(channels),
            OmniShift(channels),
            ChannelMix(channels, expansion * channels),
        )
        self.gains = nn.ParameterList(torch.ones(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        x = x + self.gains[0] * self.spatial(x)
        x = x + self.gains[1] * self.channel(x)
        return x.movedim(-1, 1)


class ParameterBlock(nn.Module):
    """1x1 convolution, then x + channel_mix(norm x); maps are [B, inputs or outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.into = conv(inputs, outputs, 1)
        self.mix = nn.Sequential(nn.LayerNorm(outputs), ChannelMix(outputs, 2 * outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return x + self.mix(x.movedim(1, -1)).movedim(-1, 1)

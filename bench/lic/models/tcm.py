"""TCM: convolutions and window attention side by side, and a channel context with attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.lic.models.convolutions import conv, sub_pixel
from bench.lic.models.entropy_bottleneck import EntropyBottleneck
from bench.lic.models.model import Model
from bench.lic.models.slices import CHANNELS, HIDDEN, SLICES, SliceContext
from bench.lic.models.tcm_blocks import Down, SwinGate, Up, mixtures
from bench.lic.models.widths import scaled

HEAD_CHANNELS = (8, 16, 32)  # of attention at 1/2, 1/4 and 1/8 of the image's sides
HYPER_CHANNELS = 192  # of z
GATED_CHANNELS, GATED_HEADS = 128, 8


class TCM(Model):
    """2n channels of features, M = 320 of y, 192 of z, at factor 1.

    Sides are multiples of 128: windows of 4 at 1/32 and of 8 at 1/16 must fit. The public code pads
    smaller maps, wrongly; here they are refused, and a map of one window works.

    Source: Liu et al. 2023 (arXiv 2303.14978).
    """

    stride = 128

    def __init__(self, n: int, factor: float = 1.0) -> None:
        super().__init__()
        heads = [scaled(n // channels, factor) for channels in HEAD_CHANNELS]
        n = scaled(n, factor, math.lcm(*heads))
        channels, z_channels = scaled(CHANNELS, factor), scaled(HYPER_CHANNELS, factor)
        m, wide = SLICES * channels, 2 * n
        self.analysis = nn.Sequential(
            *(Down(3, wide), *mixtures(n, heads[0], 8)),
            *(Down(wide, wide), *mixtures(n, heads[1], 8)),
            *(Down(wide, wide), *mixtures(n, heads[2], 8)),
            conv(wide, m, 3, stride=2),
        )
        self.synthesis = nn.Sequential(
            *(Up(m, wide), *mixtures(n, heads[2], 8)),
            *(Up(wide, wide), *mixtures(n, heads[1], 8)),
            *(Up(wide, wide), *mixtures(n, heads[0], 8)),
            sub_pixel(wide, 3),
        )
        self.hyper_analysis = nn.Sequential(
            *(Down(m, wide), *mixtures(n, heads[2], 4)),
            conv(wide, z_channels, 3, stride=2),
        )
        self.hyper_scale, self.hyper_mean = (
            nn.Sequential(
                *(Up(z_channels, wide), *mixtures(n, heads[2], 4)),
                sub_pixel(wide, m),
            )
            for _ in range(2)
        )
        self.entropy_bottleneck = EntropyBottleneck(z_channels)
        self.context = _GatedContext(m, channels, factor)

    def code(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.context(y, self.hyper_scale(z), self.hyper_mean(z))


class _GatedContext(SliceContext):
    """Scale and mean each from what z says of it and the earlier slices, through attention."""

    def __init__(self, m: int, channels: int, factor: float) -> None:
        supports = [m + channels * index for index in range(SLICES)]
        hidden = scaled(HIDDEN[0], factor), scaled(HIDDEN[1], factor)
        super().__init__(channels, supports, hidden)
        heads = scaled(GATED_HEADS, factor)
        inner = scaled(GATED_CHANNELS, factor, heads)
        self.scale_support, self.mean_support = (
            nn.ModuleList(SwinGate(inputs, inner, heads) for inputs in supports) for _ in range(2)
        )

    def support(
        self, index: int, scale: Tensor, mean: Tensor, earlier: Tensor
    ) -> tuple[Tensor, Tensor]:
        return (
            self.scale_support[index](torch.cat([scale, earlier], 1)),
            self.mean_support[index](torch.cat([mean, earlier], 1)),
        )

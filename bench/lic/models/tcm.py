"""TCM: convolutions and window attention side by side, and a channel context with attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.lic.models.attention import GatedAttention, WindowAttention
from bench.lic.models.context import CHANNELS, HIDDEN, SLICES, SliceContext
from bench.lic.models.convolutions import GDN, conv, sub_pixel
from bench.lic.models.entropy import EntropyBottleneck
from bench.lic.models.model import Model, scaled

WINDOW = 8  # of attention in SwinGate


class Residual(nn.Module):
    """x + body(x), the activation of body's end standing before the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(conv(channels, channels, 3), nn.LeakyReLU()),
            *(conv(channels, channels, 3), nn.LeakyReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, channels, H, W]
        return x + self.body(x)


class Down(nn.Module):
    """Halves the sides, with a strided 1x1 convolution beside two of 3x3 and GDN."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(conv(inputs, outputs, 3, stride=2), nn.LeakyReLU()),
            *(conv(outputs, outputs, 3), GDN(outputs)),
        )
        self.skip = conv(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H/2, W/2]
        return self.skip(x) + self.body(x)


class Up(nn.Module):
    """Doubles the sides, by two sub-pixel convolutions, one followed by another and inverse GDN."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(sub_pixel(inputs, outputs), nn.LeakyReLU()),
            *(conv(outputs, outputs, 3), GDN(outputs, inverse=True)),
        )
        self.skip = sub_pixel(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, 2H, 2W]
        return self.skip(x) + self.body(x)


class SwinBlock(nn.Module):
    """x + attention(norm x), then x + perceptron(norm x); maps are [B, H, W, C]."""

    def __init__(self, channels: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.LayerNorm(channels),
            WindowAttention(channels, heads, window, shifted=shifted),
        )
        self.perceptron = nn.Sequential(
            nn.LayerNorm(channels),
            *(nn.Linear(channels, 4 * channels), nn.GELU()),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.perceptron(x)


class Mixture(nn.Module):
    """Half of 2n channels go through convolutions, the other half through a SwinBlock.

    The convolutions' half is doubled: a skip around a block that has one already. It is so in the
    published model, and its weights are fitted to it.

    Source: Liu et al. 2023, TCM (arXiv 2303.14978).
    """

    def __init__(self, n: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.into, self.out = conv(2 * n, 2 * n, 1), conv(2 * n, 2 * n, 1)
        self.convolutions = Residual(n)
        self.transformer = SwinBlock(n, heads, window, shifted=shifted)

    def forward(self, x: Tensor) -> Tensor:  # [B, 2n, H, W]
        local, wide = self.into(x).chunk(2, dim=1)
        local = local + self.convolutions(local)
        wide = self.transformer(wide.movedim(1, -1)).movedim(-1, 1)
        return x + self.out(torch.cat([local, wide], 1))


def mixtures(n: int, heads: int, window: int) -> list[nn.Module]:
    """A pair, the second with shifted windows."""
    return [Mixture(n, heads, window, shifted=shifted) for shifted in (False, True)]


class SwinGate(nn.Module):
    """Gated attention over `inner` channels, whose gate is guided by two SwinBlocks.

    There is no skip around the two convolutions that lead to these channels and back.
    """

    def __init__(self, channels: int, inner: int, heads: int) -> None:
        super().__init__()
        self.into, self.out = conv(channels, inner, 1), conv(inner, channels, 1)
        self.guide = nn.Sequential(
            *(SwinBlock(inner, heads, WINDOW, shifted=shifted) for shifted in (False, True))
        )
        self.gated = GatedAttention(inner)

    def forward(self, x: Tensor) -> Tensor:  # [B, channels, H, W]
        x = self.into(x)
        guide = self.guide(x.movedim(1, -1)).movedim(-1, 1)
        return self.out(self.gated(x, guide))


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

"""TCM's own blocks: convolutions that change sides, and those beside window attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.lic.models.convolutions import conv, sub_pixel
from bench.lic.models.gated_attention import GatedAttention
from bench.lic.models.gdn import GDN
from bench.lic.models.window_attention import WindowAttention

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

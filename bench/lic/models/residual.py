"""Residual bottlenecks, of ELIC, DCAE and of the attention that ELIC and TCM share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.models.convolutions import conv


class Bottleneck(nn.Module):
    """x + three convolutions of x through half the channels; with `activated`, ReLU of the sum.

    Source: He et al. 2022, ELIC (arXiv 2203.10886).
    """

    def __init__(self, channels: int, *, activated: bool = False) -> None:
        super().__init__()
        self.activated = activated
        inner = max(1, channels // 2)
        self.body = nn.Sequential(
            *(conv(channels, inner, 1), nn.ReLU()),
            *(conv(inner, inner, 3), nn.ReLU()),
            conv(inner, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, channels, H, W], as what it returns
        sums = x + self.body(x)
        return F.relu(sums) if self.activated else sums


def bottlenecks(channels: int, *, activated: bool = False) -> list[nn.Module]:
    """Three in a row, as every model has them."""
    return [Bottleneck(channels, activated=activated) for _ in range(3)]

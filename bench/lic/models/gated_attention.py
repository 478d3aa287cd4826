"""Attention by a gate: one trunk of convolutions decides how much of another's is added."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.lic.models.convolutions import conv
from bench.lic.models.residual import bottlenecks


class GatedAttention(nn.Module):
    """x + trunk(x) * sigmoid(gate(guide)); the guide is x itself unless another is given.

    Source: Cheng et al. 2020 (arXiv 2001.01568).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*bottlenecks(channels, activated=True))
        self.gate = nn.Sequential(
            *bottlenecks(channels, activated=True),
            conv(channels, channels, 1),
        )

    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:  # [B, channels, H, W]
        gate = self.gate(x if guide is None else guide)
        return x + self.trunk(x) * torch.sigmoid(gate)

"""DCAE's own blocks: window attention with scaled skips, and attention to a dictionary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.models.convolutions import conv, depthwise
from bench.lic.models.window_attention import WindowAttention


class GatedPerceptron(nn.Module):
    """Linear(GELU(depthwise(a)) * g), [a, g] = Linear(x); maps are [B, H, W, C].

    Source: Shi 2024, TransNeXt (arXiv 2311.17132).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.into = nn.Linear(channels, 4 * channels)
        self.depthwise = depthwise(2 * channels, 3)
        self.out = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        a, gate = self.into(x).chunk(2, dim=-1)  # each [B, H, W, 2 C]
        a = self.depthwise(a.movedim(-1, 1)).movedim(1, -1)
        return self.out(F.gelu(a) * gate)


class ScaledBlock(nn.Module):
    """scale * x + attention(norm x), then the same with a perceptron; maps are [B, H, W, C]."""

    def __init__(self, channels: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.LayerNorm(channels),
            WindowAttention(channels, heads, window, shifted=shifted),
        )
        self.perceptron = nn.Sequential(nn.LayerNorm(channels), GatedPerceptron(channels))
        self.scales = nn.ParameterList(torch.ones(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scales[0] * x + self.attention(x)
        return self.scales[1] * x + self.perceptron(x)


class SwinStage(nn.Module):
    """x + convolution(blocks(x)), every second block with shifted windows; x is [B, C, H, W]."""

    def __init__(self, channels: int, heads: int, blocks: int, window: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(ScaledBlock(channels, heads, window, shifted=i % 2 == 1) for i in range(blocks))
        )
        self.out = conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.blocks(x.movedim(1, -1)).movedim(-1, 1))


class MultiScale(nn.Module):
    """Features of four growing neighbourhoods, weighted by place; maps are [B, H, W, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.into = conv(channels, channels, 1)
        self.widen = nn.ModuleList(
            nn.Sequential(
                *(nn.GELU(), conv(channels, channels, 1)),
                *(nn.GELU(), depthwise(channels, 3)),
                *(nn.GELU(), conv(channels, channels, 1)),
            )
            for _ in range(3)
        )
        self.merge = conv(4 * channels, channels, 1)
        self.weigh = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.into(x.movedim(-1, 1))]  # [B, C, H, W]
        for widen in self.widen:
            features.append(widen(features[-1]))
        merged = self.merge(torch.cat(features, 1))
        seen = torch.cat([merged.mean(1, keepdim=True), merged.amax(1, keepdim=True)], 1)
        return (merged * torch.sigmoid(self.weigh(seen))).movedim(1, -1)


class DictionaryAttention(nn.Module):
    """Every pixel attends to the entries of a dictionary, which all images share.

    The normalised dictionary is the value as it is, without a projection, and logits have a learned
    temperature per head in place of 1 / sqrt(head's channels).

    Source: Lu et al. 2025, DCAE (arXiv 2504.00496).
    """

    def __init__(self, inputs: int, channels: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.lift = nn.Linear(inputs, channels)
        self.multi_scale = nn.Sequential(nn.LayerNorm(channels), MultiScale(channels))
        self.query = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels))
        self.norm = nn.LayerNorm(channels)  # of the dictionary
        self.key = nn.Linear(channels, channels)
        self.merge = nn.Linear(channels, channels)
        self.perceptron = nn.Sequential(nn.LayerNorm(channels), GatedPerceptron(channels))
        self.out = nn.Linear(channels, outputs)
        self.scales = nn.ParameterList(torch.ones(channels) for _ in range(3))

    def forward(self, x: Tensor, dictionary: Tensor) -> Tensor:
        """x  # [B, inputs, H, W], dictionary  # [entries, channels] -> [B, outputs, H, W]."""
        x = self.lift(x.movedim(1, -1))  # [B, H, W, channels]
        x = self.multi_scale(x) + self.scales[0] * x
        x = self.merge(self._attend(self.query(x), self.norm(dictionary))) + self.scales[1] * x
        x = self.perceptron(x) + self.scales[2] * x
        return self.out(x).movedim(-1, 1)

    def _attend(self, query: Tensor, entries: Tensor) -> Tensor:  # [B, H, W, channels], as query
        split = (-1, self.heads, query.shape[-1] // self.heads)
        queries = query.reshape(split).transpose(0, 1)  # [heads, B * H * W, channels / heads]
        keys = self.key(entries).view(split).permute(1, 2, 0)  # [heads, channels / heads, entries]
        values = entries.view(split).transpose(0, 1)  # [heads, entries, channels / heads]
        weights = (queries @ keys * self.temperature).softmax(-1)
        return (weights @ values).transpose(0, 1).reshape(query.shape)

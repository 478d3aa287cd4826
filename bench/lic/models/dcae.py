"""DCAE: bottlenecks and window attention, and a channel context with a learned dictionary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.models.attention import WindowAttention
from bench.lic.models.context import CHANNELS, HIDDEN, SLICES, SliceContext
from bench.lic.models.convolutions import bottlenecks, conv, deconv, depthwise
from bench.lic.models.entropy import EntropyBottleneck
from bench.lic.models.model import Model, scaled


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


# Channels, heads and blocks of the stages at 1/2, 1/4 and 1/8 of the image's sides.
STAGES = ((96, 12, 1), (144, 9, 2), (256, 8, 12))
HYPER = (192, 6)  # channels and heads at 1/32; channels of z
DICTIONARY = (128, 640, 20)  # entries, channels, heads


class DCAE(Model):
    """M = 320 channels of y, 192 of z, at factor 1.

    Sides are multiples of 128: windows of 4 at 1/32 must fit. The public code pads smaller maps,
    wrongly; here they are refused, and a map of one window works.

    Source: Lu et al. 2025 (arXiv 2504.00496).
    """

    stride = 128

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        stages = [
            (*_attentive(channels, heads, factor), blocks, 8) for channels, heads, blocks in STAGES
        ]
        hyper_stage = (*_attentive(*HYPER, factor), 1, 4)
        (a, b, c), n = (stage[0] for stage in stages), hyper_stage[0]
        channels = scaled(CHANNELS, factor)
        m = SLICES * channels
        self.analysis = nn.Sequential(
            *(*_down(3, a), SwinStage(*stages[0])),
            *(*_down(a, b), SwinStage(*stages[1])),
            *(*_down(b, c), SwinStage(*stages[2])),
            conv(c, m, 5, stride=2),
        )
        self.synthesis = nn.Sequential(
            *(deconv(m, c, 5), SwinStage(*stages[2])),
            *(*_up(c, b), SwinStage(*stages[1])),
            *(*_up(b, a), SwinStage(*stages[0])),
            *_up(a, 3),
        )
        self.hyper_analysis = nn.Sequential(
            *(*_down(m, n), SwinStage(*hyper_stage)),
            conv(n, n, 3, stride=2),
        )
        self.hyper_scale, self.hyper_mean = (
            nn.Sequential(
                *(deconv(n, n, 3), SwinStage(*hyper_stage)),
                *_up(n, m),
            )
            for _ in range(2)
        )
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.context = _DictionaryContext(m, channels, factor)

    def code(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.context(y, self.hyper_scale(z), self.hyper_mean(z))


class _DictionaryContext(SliceContext):
    """Scale and mean both from all that is known, and from what it recalls of the dictionary."""

    def __init__(self, m: int, channels: int, factor: float) -> None:
        known = [2 * m + channels * index for index in range(SLICES)]
        hidden = scaled(HIDDEN[0], factor), scaled(HIDDEN[1], factor)
        super().__init__(channels, [inputs + m for inputs in known], hidden)
        entries = scaled(DICTIONARY[0], factor)
        width, heads = _attentive(*DICTIONARY[1:], factor)
        self.dictionary = nn.Parameter(torch.randn(entries, width))
        self.attention = nn.ModuleList(
            DictionaryAttention(inputs, width, heads, m) for inputs in known
        )

    def support(
        self, index: int, scale: Tensor, mean: Tensor, earlier: Tensor
    ) -> tuple[Tensor, Tensor]:
        known = torch.cat([scale, mean, earlier], 1)
        both = torch.cat([known, self.attention[index](known, self.dictionary)], 1)
        return both, both


def _attentive(channels: int, heads: int, factor: float) -> tuple[int, int]:
    heads = scaled(heads, factor)
    return scaled(channels, factor, heads), heads


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return [conv(inputs, outputs, 5, stride=2), *bottlenecks(outputs)]


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [*bottlenecks(inputs), deconv(inputs, outputs, 5)]

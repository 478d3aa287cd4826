"""DCAE: bottlenecks and window attention, and a channel context with a learned dictionary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.lic.models.convolutions import conv, deconv
from bench.lic.models.dcae_blocks import DictionaryAttention, SwinStage
from bench.lic.models.entropy_bottleneck import EntropyBottleneck
from bench.lic.models.model import Model
from bench.lic.models.residual import bottlenecks
from bench.lic.models.slices import CHANNELS, HIDDEN, SLICES, SliceContext
from bench.lic.models.widths import scaled

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

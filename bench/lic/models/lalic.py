"""LALIC: linear attention over whole maps, in the transforms and in the context."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.models.context import GROUPS, CheckerboardContext
from bench.lic.models.convolutions import conv, deconv, depthwise
from bench.lic.models.entropy import EntropyBottleneck, full_precision
from bench.lic.models.model import Model, ramp, scaled


@full_precision
def bidirectional_wkv(decay: Tensor, boost: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every token's weighted mean of all values, weights falling with the distance of tokens.

    y_t = sum_i weight_ti v_i / sum_i weight_ti, where with w = decay / T and u = boost / T
    weight_ti = exp(k_i - w (|t - i| - 1)) for i != t, and exp(k_t + u) for i = t.

    The sums over i < t and over i > t are cumulative: exp(-w (t - i - 1)) is a factor of t times a
    factor of i. A running maximum is not needed to keep them in range: weights of all keys reach
    all tokens, and fall by exp(|decay|) at most, since w is divided by T. So after the largest key
    of the sequence is taken from all, what underflows is nothing beside what does not. In float32
    that holds while |decay| < 60, and decay starts as N(0, 1).

    Args:
        decay, boost: of each channel  # [C], of either sign.
        key, value: T tokens  # [B, C, T].

    Returns:
        y  # [B, C, T].

    Source: Duan et al. 2024, Vision-RWKV (arXiv 2403.02308).
    """
    tokens = key.shape[-1]
    w, u = decay[:, None] / tokens, boost[:, None] / tokens  # [C, 1]
    place = torch.arange(tokens, device=key.device, dtype=key.dtype) - (tokens - 1) / 2
    rise = torch.exp(w * place)  # [C, T]; centred, so that it spans exp(|decay| / 2) either way
    weight = torch.exp(key - key.detach().amax(-1, keepdim=True))
    terms = torch.stack([weight * value, weight])  # [2, B, C, T]
    past = _sum_before(terms * rise) / rise
    future = _sum_before((terms / rise).flip(-1)).flip(-1) * rise
    weighted, total = (torch.exp(w) * (past + future) + torch.exp(u) * terms).unbind()
    return weighted / total


def _sum_before(terms: Tensor) -> Tensor:
    """Of all earlier tokens, without the token itself; as terms  # [..., T]."""
    return F.pad(terms[..., :-1].cumsum(-1), (1, 0))


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


STAGES = ((96, 2), (144, 4), (256, 6))  # channels and blocks at 1/2, 1/4, 1/8 of the sides
HYPER_CHANNELS, HYPER_DEPTH = (256, 192), 6  # at 1/32 and of z; blocks at 1/32
PARAMETER_CHANNELS = 256  # the least within the networks that give mean and scale
EXPANSION, CONTEXT_EXPANSION = 4, 8


class LALIC(Model):
    """M = 320 channels of y, 192 of z, at factor 1.

    Source: Feng et al. 2025 (arXiv 2502.05741).
    """

    stride = 64

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        groups = [scaled(group, factor) for group in GROUPS]
        m = sum(groups)
        (a, at_2), (b, at_4), (c, at_8) = ((scaled(n, factor), depth) for n, depth in STAGES)
        h, n = (scaled(channels, factor) for channels in HYPER_CHANNELS)
        self.analysis = nn.Sequential(
            *(conv(3, a, 5, stride=2), *_blocks(a, at_2)),
            *(conv(a, b, 3, stride=2), *_blocks(b, at_4)),
            *(conv(b, c, 3, stride=2), *_blocks(c, at_8)),
            conv(c, m, 3, stride=2),
        )
        self.synthesis = nn.Sequential(
            *(deconv(m, c, 3), *_blocks(c, at_8)),
            *(deconv(c, b, 3), *_blocks(b, at_4)),
            *(deconv(b, a, 3), *_blocks(a, at_2)),
            deconv(a, 3, 5),
        )
        self.hyper_analysis = nn.Sequential(
            *(conv(m, h, 5, stride=2), *_blocks(h, HYPER_DEPTH)),
            conv(h, n, 5, stride=2),
        )
        self.hyper_synthesis = nn.Sequential(
            *(deconv(n, h, 5), *_blocks(h, HYPER_DEPTH)),
            deconv(h, m, 5),
        )
        self.entropy_bottleneck = EntropyBottleneck(n)
        least = scaled(PARAMETER_CHANNELS, factor)
        self.context = CheckerboardContext(
            groups,
            m,
            lambda inputs, outputs: _channel_context(inputs, m, outputs),
            lambda inputs, outputs: _parameters(inputs, *ramp(inputs, outputs, least), outputs),
        )

    def code(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.context(y, self.hyper_synthesis(z))


def _blocks(channels: int, depth: int, expansion: int = EXPANSION) -> list[nn.Module]:
    return [RWKV(channels, expansion) for _ in range(depth)]


def _channel_context(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(conv(inputs, inner, 3), *_blocks(inner, 2, CONTEXT_EXPANSION)),
        conv(inner, outputs, 1),
    )


def _parameters(inputs: int, first: int, second: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        ParameterBlock(inputs, first),
        ParameterBlock(first, second),
        ParameterBlock(second, outputs),
    )

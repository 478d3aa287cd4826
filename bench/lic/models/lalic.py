"""LALIC: linear attention over whole maps, in the transforms and in the context."""

from __future__ import annotations

from torch import Tensor, nn

from bench.lic.models.checkerboard import GROUPS, CheckerboardContext
from bench.lic.models.convolutions import conv, deconv
from bench.lic.models.entropy_bottleneck import EntropyBottleneck
from bench.lic.models.model import Model
from bench.lic.models.rwkv import RWKV, ParameterBlock
from bench.lic.models.widths import ramp, scaled

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

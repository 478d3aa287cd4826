"""ELIC: convolutions with residual bottlenecks, and a space-channel context."""

from __future__ import annotations

from torch import Tensor, nn

from bench.lic.models.attention import GatedAttention
from bench.lic.models.context import GROUPS, CheckerboardContext
from bench.lic.models.convolutions import bottlenecks, conv, deconv
from bench.lic.models.entropy import EntropyBottleneck
from bench.lic.models.model import Model, ramp, scaled


class ELIC(Model):
    """N = 192 channels of features and of z, M = 320 of y, at factor 1.

    Source: He et al. 2022 (arXiv 2203.10886), with the widths that the authors' own model has.
    """

    stride = 64

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        n, groups = scaled(192, factor), [scaled(group, factor) for group in GROUPS]
        m, side = sum(groups), 2 * n
        self.analysis = nn.Sequential(
            *(conv(3, n, 5, stride=2), *bottlenecks(n)),
            *(conv(n, n, 5, stride=2), *bottlenecks(n), GatedAttention(n)),
            *(conv(n, n, 5, stride=2), *bottlenecks(n)),
            *(conv(n, m, 5, stride=2), GatedAttention(m)),
        )
        self.synthesis = nn.Sequential(
            *(GatedAttention(m), deconv(m, n, 5)),
            *(*bottlenecks(n), deconv(n, n, 5)),
            *(GatedAttention(n), *bottlenecks(n), deconv(n, n, 5)),
            *(*bottlenecks(n), deconv(n, 3, 5)),
        )
        self.hyper_analysis = nn.Sequential(
            *(conv(m, n, 3), nn.ReLU()),
            *(conv(n, n, 5, stride=2), nn.ReLU()),
            conv(n, n, 5, stride=2),
        )
        self.hyper_synthesis = nn.Sequential(
            *(deconv(n, n, 5), nn.ReLU()),
            *(deconv(n, 3 * n // 2, 5), nn.ReLU()),
            deconv(3 * n // 2, side, 3, stride=1),
        )
        self.entropy_bottleneck = EntropyBottleneck(n)
        hidden = scaled(224, factor), scaled(128, factor)
        self.context = CheckerboardContext(
            groups,
            side,
            lambda inputs, outputs: _chain(5, inputs, *hidden, outputs),
            lambda inputs, outputs: _chain(1, inputs, *ramp(inputs, outputs, 2 * n), outputs),
        )

    def code(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.context(y, self.hyper_synthesis(z))


def _chain(kernel: int, inputs: int, first: int, second: int, outputs: int) -> nn.Sequential:
    """Three convolutions with ReLU between them."""
    return nn.Sequential(
        *(conv(inputs, first, kernel), nn.ReLU()),
        *(conv(first, second, kernel), nn.ReLU()),
        conv(second, outputs, kernel),
    )

"""The mean-scale hyperprior: the smallest model with every part that larger ones are made of."""

from __future__ import annotations

from torch import Tensor, nn

from bench.lic.models.convolutions import GDN, conv, deconv
from bench.lic.models.entropy import EntropyBottleneck, GaussianConditional
from bench.lic.models.model import Model


class MeanScaleHyperprior(Model):
    """Image -> latent y -> hyper-latent z; z is coded first and gives mean and scale of y.

    `width` is the number of feature channels N; y has M = 3/2 N channels at 1/16 of the image's
    sides, z has N channels at 1/64.

    Source: Minnen et al. 2018 (arXiv 1809.02736), without its autoregressive context.
    """

    stride = 64

    def __init__(self, width: int) -> None:
        super().__init__()
        n, m = width, 3 * width // 2
        self.analysis = nn.Sequential(
            *(conv(3, n, 5, stride=2), GDN(n)),
            *(conv(n, n, 5, stride=2), GDN(n)),
            *(conv(n, n, 5, stride=2), GDN(n)),
            conv(n, m, 5, stride=2),
        )
        self.synthesis = nn.Sequential(
            *(deconv(m, n, 5), GDN(n, inverse=True)),
            *(deconv(n, n, 5), GDN(n, inverse=True)),
            *(deconv(n, n, 5), GDN(n, inverse=True)),
            deconv(n, 3, 5),
        )
        self.hyper_analysis = nn.Sequential(
            *(conv(m, n, 3), nn.LeakyReLU()),
            *(conv(n, n, 5, stride=2), nn.LeakyReLU()),
            conv(n, n, 5, stride=2),
        )
        self.hyper_synthesis = nn.Sequential(
            *(deconv(n, m, 5), nn.LeakyReLU()),
            *(deconv(m, m, 5), nn.LeakyReLU()),
            conv(m, 2 * m, 3),
        )
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.gaussian = GaussianConditional()

    def code(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        scale, mean = self.hyper_synthesis(z).chunk(2, dim=1)  # each [B, M, H/16, W/16]
        return self.gaussian(y, scale, mean)

"""The mean-scale hyperprior: the smallest model with every part that larger ones are made of."""

from __future__ import annotations

from torch import Tensor, nn

from bench.lic.models.compressed import Compressed
from bench.lic.models.entropy_bottleneck import EntropyBottleneck
from bench.lic.models.gaussian import GaussianConditional
from bench.lic.models.gdn import GDN


class MeanScaleHyperprior(nn.Module):
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
            *(_down(3, n), GDN(n)),
            *(_down(n, n), GDN(n)),
            *(_down(n, n), GDN(n)),
            _down(n, m),
        )
        self.synthesis = nn.Sequential(
            *(_up(m, n), GDN(n, inverse=True)),
            *(_up(n, n), GDN(n, inverse=True)),
            *(_up(n, n), GDN(n, inverse=True)),
            _up(n, 3),
        )
        self.hyper_analysis = nn.Sequential(
            *(nn.Conv2d(m, n, 3, padding=1), nn.LeakyReLU()),
            *(_down(n, n), nn.LeakyReLU()),
            _down(n, n),
        )
        self.hyper_synthesis = nn.Sequential(
            *(_up(n, m), nn.LeakyReLU()),
            *(_up(m, m), nn.LeakyReLU()),
            nn.Conv2d(m, 2 * m, 3, padding=1),
        )
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.gaussian = GaussianConditional()

    def forward(self, images: Tensor) -> Compressed:
        y = self.analysis(images)  # [B, M, H/16, W/16]
        z = self.hyper_analysis(y)  # [B, N, H/64, W/64]
        z, z_likelihood = self.entropy_bottleneck(z)
        scale, mean = self.hyper_synthesis(z).chunk(2, dim=1)  # each [B, M, H/16, W/16]
        y, y_likelihood = self.gaussian(y, scale, mean)
        return Compressed(self.synthesis(y), (y_likelihood, z_likelihood))

    def aux_loss(self) -> Tensor:
        return self.entropy_bottleneck.aux_loss()


def _down(inputs: int, outputs: int) -> nn.Module:
    """Convolution that halves the sides."""
    return nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)


def _up(inputs: int, outputs: int) -> nn.Module:
    """Transposed convolution that doubles the sides."""
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)

"""GDN, the hyperprior as a whole, and the loss."""

from __future__ import annotations

import math

import pytest
import tolerances
import torch

from bench.lic.models import Compressed, MeanScaleHyperprior
from bench.lic.models.convolutions import GDN
from bench.lic.models.model import psnr, rate_distortion


@pytest.fixture
def model() -> MeanScaleHyperprior:
    torch.manual_seed(0)
    return MeanScaleHyperprior(8)


def test_gdn_starts_as_published_and_the_inverse_multiplies() -> None:
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    norm = (1 + 0.1 * x.square()).sqrt()
    assert torch.allclose(GDN(4)(x), x / norm, **tolerances.GDN)
    assert torch.allclose(GDN(4, inverse=True)(x), x * norm, **tolerances.GDN)


def test_gdn_mixes_channels_by_rows_of_gamma() -> None:
    gdn = GDN(2)
    with torch.no_grad():
        gdn.gamma.copy_(torch.tensor([[0.0, 0.5], [0.0, 0.0]]))
    x = torch.tensor([3.0, 2.0]).view(1, 2, 1, 1)
    expected = [3.0 / math.sqrt(1 + 0.25 * 4.0), 2.0]
    assert torch.allclose(gdn(x).flatten(), torch.tensor(expected), **tolerances.GDN)


def test_loss_formula() -> None:
    images, decoded = torch.zeros(2, 3, 64, 64), torch.full((2, 3, 64, 64), 0.1)
    likelihoods = (torch.full((2, 6, 4, 4), 0.25), torch.full((2, 4, 1, 1), 0.5))
    cost = rate_distortion(Compressed(decoded, likelihoods), images, 0.013)
    bpp = (2 * 2 * 6 * 16 + 1 * 2 * 4) / (2 * 64 * 64)
    assert cost.bpp.item() == pytest.approx(bpp)
    assert cost.mse.item() == pytest.approx(0.01)
    assert cost.loss.item() == pytest.approx(0.013 * 65025 * 0.01 + bpp)
    assert psnr(0.01) == pytest.approx(20)


def test_shapes(model: MeanScaleHyperprior) -> None:
    coded = model(torch.rand(2, 3, 64, 128))
    assert coded.images.shape == (2, 3, 64, 128)
    assert [tuple(p.shape) for p in coded.likelihoods] == [(2, 12, 4, 8), (2, 8, 1, 2)]


def test_evaluation_draws_no_noise(model: MeanScaleHyperprior) -> None:
    model.eval()
    images = torch.rand(1, 3, 64, 64)
    before = torch.get_rng_state()
    first, second = model(images), model(images)
    assert torch.equal(first.images, second.images)
    assert torch.equal(torch.get_rng_state(), before)


def test_rate_distortion_gives_quantiles_a_zero_gradient(model: MeanScaleHyperprior) -> None:
    images = torch.rand(2, 3, 64, 64)
    rate_distortion(model(images), images, 0.013).loss.backward()
    gradient = model.entropy_bottleneck.quantiles.grad
    assert gradient is not None
    assert not gradient.any()

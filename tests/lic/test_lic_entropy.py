"""Bounds, quantisers and the two entropy models, against their definitions."""

from __future__ import annotations

import math

import pytest
import tolerances
import torch

from bench.lic.models.entropy import (
    SCALE_BOUND,
    EntropyBottleneck,
    add_noise,
    gaussian_likelihood,
    lower_bound,
    round_straight_through,
)

DOUBLE = torch.float64


def bottleneck(channels: int) -> EntropyBottleneck:
    """In float64, with factors away from zero, so that the distributions are not logistic."""
    torch.manual_seed(0)
    model = EntropyBottleneck(channels).to(DOUBLE)
    for factor in model.factors:
        torch.nn.init.uniform_(factor, -1, 1)
    return model


def test_lower_bound_passes_only_the_gradient_that_raises_a_value_below_it() -> None:
    x = torch.tensor([0.5, 0.5, 2.0, 2.0, 1.0], requires_grad=True)
    y = lower_bound(x, 1.0)
    y.backward(torch.tensor([3.0, -3.0, 3.0, -3.0, 3.0]))
    assert y.tolist() == [1.0, 1.0, 2.0, 2.0, 1.0]
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, -3.0, 3.0, -3.0, 3.0]


def test_rounding_is_half_to_even_with_the_gradient_of_the_identity() -> None:
    x = torch.tensor([0.5, 1.5, -0.5, 0.2], requires_grad=True)
    y = round_straight_through(x)
    y.sum().backward()
    assert y.tolist() == [0.0, 2.0, 0.0, 0.0]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0] * 4


def test_noise_is_uniform_on_a_unit_interval() -> None:
    torch.manual_seed(0)
    noise = add_noise(torch.zeros(100_000))
    assert -0.5 <= noise.min() < -0.49
    assert 0.49 < noise.max() <= 0.5
    assert abs(noise.mean()) < tolerances.NOISE_MEAN
    assert noise.var().item() == pytest.approx(1 / 12, rel=tolerances.NOISE_VARIANCE)


def test_bottleneck_has_the_published_shapes_and_start() -> None:
    model = EntropyBottleneck(5)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "matrices.0": (5, 3, 1),
        **{f"matrices.{layer}": (5, 3, 3) for layer in (1, 2, 3)},
        "matrices.4": (5, 1, 3),
        **{f"biases.{layer}": (5, 3, 1) for layer in range(4)},
        "biases.4": (5, 1, 1),
        **{f"factors.{layer}": (5, 3, 1) for layer in range(4)},
        "quantiles": (5, 1, 3),
    }
    first, last = model.matrices[0], model.matrices[4]
    for matrix, start in ((first, 10**-0.2 / 3), (last, 10**-0.2)):
        found = torch.nn.functional.softplus(matrix)
        assert torch.allclose(found, torch.tensor(start), **tolerances.ALLCLOSE)
    assert model.quantiles[3].tolist() == [[-10.0, 0.0, 10.0]]


def test_bottleneck_cdf_rises() -> None:
    values = torch.linspace(-60, 60, 4001, dtype=DOUBLE).repeat(4, 1, 1)  # [4, 1, 4001]
    assert (bottleneck(4).logits(values).diff() > 0).all()


def test_bottleneck_likelihoods_of_all_integers_sum_to_one() -> None:
    integers = torch.arange(-400.0, 401.0, dtype=DOUBLE)
    z = (integers + 0.3).expand(1, 4, -1).unsqueeze(2)  # [1, 4, 1, 801], any lattice will do
    sums = bottleneck(4).likelihood(z).sum(dim=(0, 2, 3))  # [4]
    assert (sums - 1).abs().max() <= 801 * tolerances.LEAST_LIKELIHOOD


def test_bottleneck_likelihood_is_the_density_integrated_over_a_unit_interval() -> None:
    model, centre, n = bottleneck(3), 1.7, 4000
    middles = centre - 0.5 + (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    values = middles.repeat(3, 1, 1).requires_grad_()  # [3, 1, n]
    (density,) = torch.autograd.grad(torch.sigmoid(model.logits(values)).sum(), values)
    integral = density.mean(dim=(1, 2))  # midpoint rule
    likelihood = model.likelihood(torch.full((1, 3, 1, 1), centre, dtype=DOUBLE))
    assert torch.allclose(likelihood.flatten(), integral, rtol=tolerances.DENSITY, atol=0)


def test_bottleneck_likelihood_keeps_each_element_in_its_place() -> None:
    model = bottleneck(3)
    z = torch.randn(2, 3, 4, 5, dtype=DOUBLE)
    whole = model.likelihood(z)
    single = model.likelihood(z[1:, :, 2:3, 3:4])
    assert whole.shape == z.shape
    assert torch.allclose(whole[1:, :, 2:3, 3:4], single, **tolerances.LAYERS_64)


def test_bottleneck_tails_stay_accurate_in_float32() -> None:
    model = bottleneck(3)
    z = torch.full((1, 3, 1, 1), 140.0, dtype=DOUBLE)
    exact = model.likelihood(z)
    assert (
        (exact.log10() > -8) & (exact.log10() < -6)
    ).all()  # where 1 - p would have a digit or none
    found = model.float().likelihood(z.float()).to(DOUBLE)
    assert torch.allclose(found, exact, rtol=tolerances.TAIL, atol=0)


def test_bottleneck_rounds_about_its_median() -> None:
    model = bottleneck(2).eval()
    with torch.no_grad():
        model.quantiles[:, 0, 1] = 0.25
    z = torch.tensor([0.6, 0.8, -3.1], dtype=DOUBLE).expand(1, 2, 1, 3)
    decoded, likelihood = model(z)
    assert decoded[0, 0, 0].tolist() == [0.25, 1.25, -2.75]
    assert torch.equal(likelihood, model.likelihood(decoded))


def test_aux_loss_reaches_only_the_quantiles_and_is_zero_at_the_true_ones() -> None:
    model = bottleneck(2)
    model.aux_loss().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"quantiles"}
    low, high = torch.full((2, 1, 3), -1e4, dtype=DOUBLE), torch.full((2, 1, 3), 1e4, dtype=DOUBLE)
    targets = torch.tensor([-1.0, 0.0, 1.0], dtype=DOUBLE) * math.log(2e9 - 1)
    for _ in range(100):  # bisection
        middle = (low + high) / 2
        above = model.logits(middle) > targets
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    with torch.no_grad():
        model.quantiles.copy_(low)
    assert model.aux_loss() < tolerances.AT_THE_TARGETS


@pytest.mark.parametrize("scale", [0.11, 0.7, 5.0])
def test_gaussian_likelihoods_of_all_integers_sum_to_one(scale: float) -> None:
    y = torch.arange(-60.0, 61.0, dtype=DOUBLE)
    p = gaussian_likelihood(y, torch.full_like(y, scale), torch.full_like(y, 0.3))
    assert p.sum().item() == pytest.approx(1, abs=121 * tolerances.LEAST_LIKELIHOOD)


def test_gaussian_likelihood_is_the_density_integrated_over_a_unit_interval() -> None:
    y, scale, mean, n = 1.3, 0.8, -0.4, 4000
    t = (y - 0.5 + (torch.arange(n, dtype=DOUBLE) + 0.5) / n - mean) / scale
    integral = (torch.exp(-t.square() / 2) / (scale * math.sqrt(2 * math.pi))).mean()
    p = gaussian_likelihood(*(torch.tensor(v, dtype=DOUBLE) for v in (y, scale, mean)))
    assert p.item() == pytest.approx(integral.item(), rel=tolerances.DENSITY)


def test_gaussian_bounds_scale_and_likelihood_and_lets_both_recover() -> None:
    scale = torch.tensor([-1.0, SCALE_BOUND], requires_grad=True)
    p = gaussian_likelihood(torch.tensor([0.5, 100.0]), scale, torch.zeros(2))
    # As if the scale were 0.11.
    assert p[0].item() == pytest.approx(0.5, abs=tolerances.SCALE_BOUND)
    assert p[1].item() == pytest.approx(1e-9)
    mean = torch.zeros(1, requires_grad=True)
    gaussian_likelihood(torch.tensor([2.0]), torch.ones(1), mean).log().neg().sum().backward()
    assert mean.grad is not None
    assert mean.grad < 0  # descent moves the mean towards the symbol

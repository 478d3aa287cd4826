"""The models as wholes: shapes, costs, values at the start, gradients, and that they train."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import tolerances
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import shapes
from bench.lic.commands.shapes import describe
from bench.lic.models import MODELS, MeanScaleHyperprior, Model, build
from bench.lic.models.entropy import SCALE_BOUND, EntropyBottleneck, GaussianConditional
from bench.lic.models.model import rate_distortion
from bench.lic.optimizers import build as build_optimizer
from bench.lic.optimizers import main_parameters

PUBLISHED = ("elic", "tcm_64", "tcm_128", "lalic", "dcae")
FACTOR = 1 / 16
LAMBDA = 0.013
DOUBLE = torch.float64


def smooth(height: int, width: int) -> Tensor:
    """A random image without edges  # [1, 3, height, width]."""
    coarse = torch.rand(1, 3, height // 16, width // 16)
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def small(name: str, factor: float = FACTOR) -> Model:
    torch.manual_seed(0)
    return build(name, factor)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_public_model(name: str) -> None:
    def kinds(params: list[dict]) -> Counter:
        marks = {"aux": False, "contiguous": True, "grad": True}
        return Counter(
            (tuple(param["shape"]), *(param.get(mark, usual) for mark, usual in marks.items()))
            for param in params
        )

    ours = describe(name)
    public = json.loads((shapes.FOLDER / f"{name}.json").read_text())
    assert kinds(ours["params"]) == kinds(public["params"])
    for total in ("num_params", "num_params_main"):
        assert ours[total] == public[total]


# Of the public code at its random start, over two seeds: rms and largest of y and z, bits, MSE.
RANGES = {
    "elic": ((0.13, 0.14), (0.68, 0.68), (0.014, 0.016), (0.05, 0.06), (0.71, 0.75), (0.31, 0.51)),
    "tcm_64": ((0.30, 0.30), (1.1, 1.1), (0.18, 0.20), (0.62, 0.77), (2.1, 2.2), (0.40, 0.41)),
    "lalic": ((0.50, 0.62), (1.8, 2.4), (0.36, 0.42), (1.5, 1.8), (5.4, 7.7), (0.85, 1.5)),
    "dcae": ((0.39, 0.42), (1.4, 1.9), (0.18, 0.18), (0.67, 0.74), (3.5, 4.0), (0.51, 0.55)),
}
# The error depends on the image as well, which was another one.
SLACK = (1.2, 1.2, 1.2, 1.2, 1.2, 1.5)
# LALIC's few mixture weights are N(0, 1): one seed in four leaves the range, a median does not.
SEEDS = {"lalic": (1, 2, 3)}


@pytest.mark.parametrize("name", RANGES)
def test_values_at_the_start_are_those_of_the_public_model(name: str) -> None:
    samples = []
    for seed in SEEDS.get(name, (0,)):
        torch.manual_seed(seed)
        model, images = build(name), smooth(256, 256)
        with torch.no_grad():
            y = model.analysis(images)
            z = model.hyper_analysis(y)
            decoded, z_likelihood = model.entropy_bottleneck(z)
            quantised, y_likelihood = model.code(y, decoded)
            # A quarter of the image: at full width the whole would take as long as all the rest.
            error = model.synthesis(quantised[..., :8, :8]) - images[..., :128, :128]
        bits = -sum(p.log2().sum().item() for p in (y_likelihood, z_likelihood))
        sizes = [size(x).item() for x in (y, z) for size in (_rms, _largest)]
        samples.append([*sizes, bits / 256**2, error.square().mean().item()])
    middle = torch.tensor(samples).median(0).values.tolist()
    for value, (low, high), slack in zip(middle, RANGES[name], SLACK, strict=True):
        assert low / slack < value < slack * high, (middle, RANGES[name])


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _largest(x: Tensor) -> Tensor:
    return x.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_maps_have_their_sides_and_decoding_is_the_same_in_training(name: str) -> None:
    model = small(name).to(DOUBLE)
    height, width = model.stride, 2 * model.stride
    images = smooth(height, width).to(DOUBLE)
    with torch.no_grad():
        trained, evaluated = model(images), model.eval()(images)
    assert trained.images.shape == images.shape
    y, z = evaluated.likelihoods
    assert y.shape[2:] == (height // 16, width // 16)
    assert z.shape[2:] == (height // 64, width // 64)
    assert torch.allclose(trained.images, evaluated.images, **tolerances.LAYERS_64)
    assert torch.equal(model(images).likelihoods[0], y)  # no noise


@pytest.mark.parametrize("name", MODELS)
def test_other_sides_are_refused(name: str) -> None:
    with torch.device("meta"):
        model, images = build(name, FACTOR), torch.empty(1, 3, 256, 160)
    with pytest.raises(ValueError, match=f"256x160 pixels.*multiples of {model.stride}"):
        model(images)


@pytest.mark.parametrize("name", MODELS)
def test_likelihoods_are_densities_integrated_over_unit_intervals(name: str) -> None:
    model = small(name).to(DOUBLE).eval()
    expected: list[Tensor] = []

    def widen(module: nn.Module, call: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y, scale, mean = call  # scales are all but zero at the start, and all at their bound
        return y, 10 * scale.abs(), 10 * mean

    def integrate(module: nn.Module, call: tuple[Tensor, ...], result: tuple[Tensor, ...]) -> None:
        _, scale, mean = call
        expected.append(_gaussian_integral(result[0], scale.clamp(min=SCALE_BOUND), mean))

    for part in model.modules():
        if isinstance(part, GaussianConditional):
            part.register_forward_pre_hook(widen)
            part.register_forward_hook(integrate)
    y_channels = model.analysis(smooth(model.stride, model.stride).to(DOUBLE)).shape[1]
    z_channels = len(model.entropy_bottleneck.quantiles)
    with torch.no_grad():
        z = 3 * torch.randn(1, z_channels, 2, 2, dtype=DOUBLE)
        decoded, z_likelihood = model.entropy_bottleneck(z)
        _, y_likelihood = model.code(torch.randn(1, y_channels, 8, 8, dtype=DOUBLE), decoded)
    integral = torch.cat(expected, 1).clamp(min=1e-9)
    assert integral.shape == y_likelihood.shape
    assert torch.allclose(y_likelihood, integral, **tolerances.DENSITY_Y)
    assert len(integral.unique()) > integral.numel() / 4
    integral = _bottleneck_integral(model.entropy_bottleneck, decoded)
    assert torch.allclose(z_likelihood, integral, **tolerances.DENSITY_Z)


MIDDLES = (torch.arange(500, dtype=DOUBLE) + 0.5) / 500 - 0.5  # of a unit interval's parts


def _gaussian_integral(y: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
    t = ((y - mean)[..., None] + MIDDLES) / scale[..., None]
    return (torch.exp(-t.square() / 2) / (scale[..., None] * math.sqrt(2 * math.pi))).mean(-1)


def _bottleneck_integral(bottleneck: EntropyBottleneck, z: Tensor) -> Tensor:
    values = (z[0].flatten(1)[..., None] + MIDDLES).flatten(1)[:, None]  # [C, 1, H * W * 500]
    values.requires_grad_()
    (density,) = torch.autograd.grad(torch.sigmoid(bottleneck.logits(values)).sum(), values)
    return density.view(*z.shape, -1).mean(-1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_parameter_gets_a_gradient_within_two_steps(name: str) -> None:
    model = small(name, 1 / 8)
    images = smooth(model.stride, model.stride)
    with torch.no_grad():  # z would be rounded to zero, which gives the next layer no gradient
        largest = model.hyper_analysis(model.analysis(images)).abs().max()
        for param in model.hyper_analysis[-1].parameters():
            param.mul_(3 / largest)
    optimizer = torch.optim.Adam(main_parameters(model), lr=1e-4)
    silent = dict(model.named_parameters())
    for _ in range(2):
        optimizer.zero_grad()
        rate_distortion(model(images), images, LAMBDA).loss.backward()
        optimizer.step()
        silent = {key: p for key, p in silent.items() if p.grad is None or not p.grad.any()}
    quantiles = silent.pop("entropy_bottleneck.quantiles")
    assert quantiles.grad is not None
    never = {key for key, p in model.named_parameters() if key.endswith("merged")}
    assert set(silent) == never
    assert all(silent[key].grad is None for key in never)
    assert len(never) == (88 if name == "lalic" else 0)


@pytest.mark.parametrize("name", ["elic", "tcm_64", "lalic", "dcae"])
def test_soap_fast_reduces_the_loss(name: str) -> None:
    model = small(name)
    images = smooth(model.stride, model.stride)
    optimizer = build_optimizer("soap_fast", model, 3e-3, 10)
    losses = []
    for _ in range(20):  # two refreshes
        optimizer.zero_grad()
        cost = rate_distortion(model(images), images, LAMBDA)
        cost.loss.backward()
        nn.utils.clip_grad_norm_(main_parameters(model), 1.0)
        optimizer.step()
        losses.append(cost.loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_demos_model_is_a_quarter_of_the_registered_one() -> None:
    with torch.device("meta"):
        ours, demo = build("hyperprior", 0.25), MeanScaleHyperprior(48)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in demo.parameters()]

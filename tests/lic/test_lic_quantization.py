"""Eight-bit weights and activations: known answers, oracles in float64, and whole models."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.files import BadInput
from bench.lic.evaluation import int8, quantization
from bench.lic.evaluation.int8 import (
    Layer,
    adaround,
    as_weight,
    error,
    grid,
    nearest,
    on_grid,
    patches,
    rectified_sigmoid,
    regulariser,
    weight_rows,
    weight_scale,
)
from bench.lic.evaluation.quantization import RANGES, Recipe, calibrated, quantized
from bench.lic.models import build
from bench.lic.models.context import CheckerboardConv

LAYERS: list[tuple[Callable[[], Layer], tuple[int, ...]]] = [
    (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), (1, 6, 9, 11)),
    (lambda: nn.Conv2d(3, 4, (3, 5), dilation=(2, 1), padding="same"), (1, 3, 9, 11)),
    (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"), (1, 4, 9, 11)),
    (lambda: nn.ConvTranspose2d(6, 4, 5, 2, 2, output_padding=1, groups=2), (1, 6, 7, 5)),
    (lambda: nn.ConvTranspose2d(3, 5, (3, 2), (1, 3), dilation=(2, 1)), (1, 3, 7, 5)),
    (lambda: nn.Linear(7, 5), (1, 3, 7)),
]


# Known answers


def test_weights_and_activations_on_the_grid_are_exact() -> None:
    integers = torch.randint(-127, 128, (1, 4, 50))
    integers[..., 0] = 127
    rows = integers * torch.tensor([0.5, 0.25, 2.0, 8.0])[:, None]
    scale = weight_scale(rows)
    assert scale.flatten().tolist() == [0.5, 0.25, 2.0, 8.0]
    assert torch.equal(nearest(rows, scale), integers.to(torch.int8))
    columns = torch.randn(1, 50, 200)
    assert torch.equal(adaround(rows, scale, columns @ columns.mT, 20), integers.to(torch.int8))
    levels = grid(-16.0, 47.75)
    values = torch.arange(-16, 48, 0.25)
    assert len(values) == 256
    assert torch.equal(on_grid(values, levels), values)


def test_each_output_channel_has_its_own_scale() -> None:
    layer = nn.ConvTranspose2d(2, 3, 3)
    with torch.no_grad():
        layer.weight.copy_(
            torch.rand_like(layer.weight) * torch.tensor([1.0, 0.01, 100])[:, None, None]
        )
        layer.weight[:, 0] = 0
    rows = weight_rows(layer)  # [1, 3, 18]
    scale = weight_scale(rows)
    largest = layer.weight.detach().abs().amax((0, 2, 3))
    assert scale.flatten().tolist() == pytest.approx([1.0, *(largest[1:] / 127).tolist()])
    assert ((nearest(rows, scale) * scale - rows).abs() <= 0.501 * scale).all()


@given(st.floats(-100, 100), st.floats(0, 100), st.integers(0, 99))
def test_activations_are_off_by_half_a_step_at_most_and_zero_is_exact(
    low: float, span: float, seed: int
) -> None:
    levels = grid(low, low + span)
    generator = torch.Generator().manual_seed(seed)
    x = low + span * torch.rand(100, dtype=torch.float64, generator=generator)
    assert on_grid(torch.zeros(1), levels) == 0
    assert 0 <= levels.zero <= 255
    # Rounding the zero moves both ends by up to half a step.
    off = tolerances.ON_GRID * max(0, -low, low + span)
    assert ((on_grid(x, levels) - x).abs() <= 1.001 * levels.scale + off).all()
    inside = x[(x > low + levels.scale) & (x < low + span - levels.scale)]
    assert ((on_grid(inside, levels) - inside).abs() <= 0.501 * levels.scale + off).all()


def test_what_is_beyond_the_range_goes_to_its_ends() -> None:
    levels = grid(0.0, 255.0)
    assert on_grid(torch.tensor([-3.0, 400.0, 7.4]), levels).tolist() == [0, 255, 7]


def test_the_sigmoid_and_its_regulariser_at_known_points() -> None:
    far = torch.tensor([-100.0, 0.0, 100.0])
    assert rectified_sigmoid(far).tolist() == pytest.approx([0, 0.5, 1])
    assert regulariser(torch.tensor([0.0, 1.0]), 2.0) == 0
    assert regulariser(torch.full((7,), 0.5), 20.0) == 7
    assert regulariser(torch.tensor([0.75]), 2.0) == 0.75


# Oracles in float64


@pytest.mark.parametrize(("made", "shape"), LAYERS)
@pytest.mark.parametrize("band", [2**25, 200])
def test_a_layer_is_its_rows_times_its_patches(
    made: Callable[[], Layer], shape: tuple[int, ...], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "BAND", band)
    torch.manual_seed(0)
    layer, x = made().double(), torch.randn(shape, dtype=torch.float64)
    rows = weight_rows(layer)
    assert torch.equal(as_weight(rows, layer), layer.weight)
    found = torch.cat([rows @ columns for columns in patches(layer, x)], -1).flatten(0, 1)
    output = layer(x)[0].detach()
    expected = output.T if isinstance(layer, nn.Linear) else output.flatten(1)
    found = found + layer.bias.detach()[:, None]
    torch.testing.assert_close(found, expected, **tolerances.PLAIN_64)


def test_fewer_patches_are_some_of_all() -> None:
    layer, x = nn.ConvTranspose2d(2, 1, 5, 2, 2, output_padding=1), torch.rand(1, 2, 16, 16)
    (every,) = patches(layer, x)
    (some,) = patches(layer, x, 200)
    assert torch.equal(some, every[:, :, ::5])  # 1024 pixels, an odd number apart


@pytest.mark.parametrize(("made", "shape"), LAYERS)
def test_a_quantised_layer_computes_what_integers_would(
    made: Callable[[], Layer], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(made())
    images = [torch.randn(shape) for _ in range(2)]
    result = calibrated(model, images, Recipe(iterations=5, entropy_networks=True))
    with torch.no_grad(), quantized(model, result, "nearest", "min-max"):
        found = model(images[0])
    (one,) = result.layers
    levels, layer = one.grids["min-max"], made().double()
    read = ((images[0].double() / levels.scale).round() + levels.zero).clamp(0, 255) - levels.zero
    with torch.no_grad():
        layer.weight.copy_(as_weight(one.integers["nearest"].double(), layer))
        layer.bias.zero_()
        sums = layer(read)  # of integers: exact
    assert torch.equal(sums, sums.round()) or sums.abs().max() > 2**50
    by_channel = (-1,) if isinstance(layer, nn.Linear) else (-1, 1, 1)
    scale = one.scale.double().view(by_channel) * levels.scale
    expected = sums * scale + model[0].bias.detach().double().view(by_channel)
    torch.testing.assert_close(found.double(), expected, **tolerances.INT8)


def correlated(features: int, pixels: int) -> Tensor:
    """What a layer behind a ReLU reads: all features rise and fall together  # [1, K, n]."""
    generator = torch.Generator().manual_seed(3)
    common = torch.rand(pixels, generator=generator, dtype=torch.float64)
    own = torch.rand(features, pixels, generator=generator, dtype=torch.float64)
    return (common + 0.3 * own)[None]


def test_adaround_beats_nearest_on_a_correlated_problem_and_nears_the_best() -> None:
    columns, width = correlated(10, 500), 10
    gram = columns @ columns.mT
    rows = torch.randn(1, 16, width, generator=torch.Generator().manual_seed(4)).double()
    scale = weight_scale(rows)
    below = (rows / scale).floor()
    choices = torch.tensor(list(itertools.product((0, 1), repeat=width)), dtype=torch.float64)
    every = [(below[:, row : row + 1] + choices) * scale[:, row : row + 1] for row in range(16)]
    best = [
        error(ways - rows[:, row : row + 1], gram).min().item() for row, ways in enumerate(every)
    ]
    integers = adaround(rows, scale, gram)
    assert ((integers >= below) & (integers <= below + 1)).all()
    ours, rounded = (
        error(found * scale - rows, gram) for found in (integers, nearest(rows, scale))
    )
    assert ours.sum() < 0.3 * rounded.sum()
    assert ours.sum() < 4 * sum(best)
    outputs = (integers * scale - rows) @ columns
    torch.testing.assert_close(ours, outputs.square().sum(-1), **tolerances.PLAIN_64)


# Whole models


def photos(count: int, side: int = 64) -> list[Tensor]:
    """Smooth and coloured, each different  # [1, 3, side, side]."""
    y, x = torch.meshgrid(*[torch.arange(side) / 9] * 2, indexing="ij")
    planes = [
        torch.stack([torch.sin((c + 1) * x + k) * torch.cos(y + c * k) for c in range(3)])
        for k in range(count)
    ]
    return [0.5 + 0.5 * plane[None] for plane in planes]


def small(name: str = "hyperprior", factor: float = 1 / 24) -> nn.Module:
    torch.manual_seed(0)
    return build(name, factor).eval()


def test_output_errors_are_those_of_the_layers_on_the_image_kept_apart() -> None:
    model, images = small(), photos(4)
    result = calibrated(model, images, Recipe(iterations=150))
    assert [one.name for one in result.layers] == [
        f"{part}.{place}" for part in ("analysis", "synthesis") for place in (0, 2, 4, 6)
    ]
    assert all(one.errors["adaround"] <= one.errors["nearest"] for one in result.layers)
    assert result.error_ratio < 0.9
    exact = model.double()
    read: dict[str, Tensor] = {}
    quantization._watch(
        exact,
        {one.name: exact.get_submodule(one.name) for one in result.layers},
        [images[-1].double()],
        lambda name, x: read.update({name: x.detach()}),
    )
    for one in result.layers:
        layer = exact.get_submodule(one.name)
        weight = layer.weight.detach().clone()
        outputs = layer(read[one.name]).detach()
        with torch.no_grad():
            layer.weight.copy_(as_weight(one.integers["adaround"] * one.scale.double(), layer))
            off = (layer(read[one.name]) - outputs).square().sum()
            layer.weight.zero_()
            whole = (layer(read[one.name]) - outputs).square().sum()
            layer.weight.copy_(weight)
        expected = pytest.approx((off / whole).item(), rel=tolerances.ERROR_SHARE)
        assert one.errors["adaround"] == expected


def test_a_layer_where_adaround_is_no_better_keeps_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def halved(rows: Tensor, scale: Tensor, gram: Tensor, iterations: int) -> Tensor:
        return nearest(rows, scale) // 2

    monkeypatch.setattr(quantization, "adaround", halved)
    result = calibrated(small(), photos(2), Recipe())
    assert result.kept_nearest == len(result.layers) == 8
    assert result.error_ratio == 1
    for one in result.layers:
        assert torch.equal(one.integers["adaround"], one.integers["nearest"])


def test_the_model_and_random_numbers_are_as_before_whatever_happens() -> None:
    model, images = small(), photos(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    result = calibrated(model, images, Recipe(iterations=5))

    def fails(output: Tensor) -> None:
        with quantized(model, result, "adaround", "percentile"):
            assert not torch.equal(model(images[0]).images, output)
            raise ZeroDivisionError

    with torch.no_grad():
        output = model(images[0]).images
        with pytest.raises(ZeroDivisionError):
            fails(output)
        assert torch.equal(model(images[0]).images, output)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_of_the_entropy_model_are_behind_a_switch_and_attention_is_not() -> None:
    model, images = small("tcm_64", 1 / 32), photos(2, 128)
    part = calibrated(model, images, Recipe(iterations=1))
    names = {one.name for one in part.layers}
    assert all(name.startswith(("analysis", "synthesis")) for name in names)
    assert any(name.endswith("qkv") for name in names)
    whole = calibrated(model, images, Recipe(iterations=1, entropy_networks=True))
    others = {one.name.split(".")[0] for one in whole.layers if one.name not in names}
    assert others == {"hyper_analysis", "hyper_scale", "hyper_mean", "context"}


def test_the_transforms_of_compressais_models_are_known_by_their_names() -> None:
    model = build("lic.compressai_like:Autoencoder").eval()
    for whole, names in (
        (False, ["net.g_a", "net.g_s"]),
        (True, ["net.g_a", "net.mean", "net.g_s"]),
    ):
        recipe = Recipe(iterations=1, entropy_networks=whole)
        assert [one.name for one in calibrated(model, photos(2), recipe).layers] == names


def test_masked_taps_stay_zero_and_move_no_scale() -> None:
    torch.manual_seed(0)
    layer = CheckerboardConv(2, 2)
    kept = weight_rows(layer)
    with torch.no_grad():
        layer.weight += 100 * (1 - layer.mask)  # as an optimizer may leave them
    torch.testing.assert_close(weight_rows(layer), kept, **tolerances.PLAIN)
    columns = torch.rand(1, 50, 300)
    integers = adaround(kept, weight_scale(kept), columns @ columns.mT)
    assert (as_weight(integers, layer)[:, :, layer.mask == 0] == 0).all()


def test_a_percentile_leaves_out_as_much_at_both_ends() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    images = [(torch.arange(10_000.0) - 4000).view(1, 1, 100, 100)] * 2
    result = calibrated(model, images, Recipe(98.0, 1, True))
    low, high = (
        [(end - levels.zero) * levels.scale for end in (0, 255)]
        for levels in (result.layers[0].grids[ranges] for ranges in RANGES)
    )
    step = 10_000 / 255
    assert low == pytest.approx([-4000, 5999], abs=step)
    assert high == pytest.approx([-3900, 5899], abs=step)
    whole = calibrated(model, images, Recipe(100.0, 1, True)).layers[0].grids
    same = pytest.approx(whole["min-max"].scale, rel=tolerances.SAME_SCALE)
    assert whole["percentile"].scale == same


def test_what_cannot_be_quantised_is_refused_in_one_line() -> None:
    images = [torch.rand(1, 3, 8, 8)] * 2
    with pytest.raises(BadInput, match="the model has no Conv2d, ConvTranspose2d or Linear"):
        calibrated(nn.Sequential(nn.PReLU()), images, Recipe())
    elsewhere = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(BadInput, match="none of the model's 1 layers is in a transform"):
        calibrated(elsewhere, images, Recipe())
    with pytest.raises(BadInput, match="layer 0 reads values that are not finite"):
        calibrated(elsewhere, [image / 0 for image in images], Recipe(entropy_networks=True))

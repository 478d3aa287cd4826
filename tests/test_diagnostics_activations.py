"""Kurtosis, max over rms and what lies beyond six sigma, against their definitions in float64."""

from __future__ import annotations

import math

import pytest
import tolerances
import torch
from streams import assert_same_bits

from soap_fast.diagnostics import ActivationStatistics, kurtosis, outliers

SAMPLES = 400_000


def samples(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(SAMPLES, generator=generator, dtype=torch.float64) - 0.5
    return {
        "gaussian": torch.erfinv(2 * uniform) * math.sqrt(2),
        "laplace": -uniform.sign() * torch.log1p(-2 * uniform.abs()),
        "uniform": uniform,
    }[name]


def by_definition(x: torch.Tensor) -> tuple[float, float]:
    x = x.double().flatten()
    off = x - x.mean()
    k = off.pow(4).mean() / off.square().mean().square()
    return float(k), float(x.abs().max() / x.square().mean().sqrt())


@pytest.mark.parametrize(("name", "known"), [("gaussian", 3), ("laplace", 6), ("uniform", 1.8)])
def test_known_distributions(name, known):
    values = samples(name)
    assert kurtosis(values) == pytest.approx(known, rel=tolerances.KNOWN_KURTOSIS)
    # Laplace: exp(-6 sqrt 2) of it lies beyond six sigma.
    expected = math.exp(-6 * math.sqrt(2)) if name == "laplace" else 0
    assert outliers(values).beyond_6_sigma == pytest.approx(expected, **tolerances.KNOWN_TAIL)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_neither_scale_nor_mean_does_harm(scale, mean):
    values = ((samples("laplace")[:1000] + mean) * scale).float().reshape(10, 100)
    found = outliers(values)
    expected = by_definition(values.double() / scale)
    assert (found.kurtosis, found.max_over_rms) == pytest.approx(
        expected, rel=tolerances.MOMENTS_OFFSET
    )
    assert found.count == 1000


def test_six_sigma_is_counted():
    values = torch.zeros(1000)
    values[::2], values[1::2] = 1.0, -1.0
    values[:3] = torch.tensor([60.0, -60.0, 5.0])
    assert outliers(values).beyond_6_sigma == 2 / 1000
    assert outliers(values).max_over_rms == pytest.approx(by_definition(values)[1])


def test_constants_and_what_is_not_finite():
    found = outliers(torch.full((7,), 0.1))
    assert math.isnan(found.kurtosis)
    assert found.max_over_rms == pytest.approx(1)
    assert math.isnan(outliers(torch.zeros(3)).max_over_rms)
    assert math.isnan(kurtosis(torch.tensor([1.0, math.inf, 2.0])))
    for wrong in (torch.zeros(0), torch.zeros(2, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="give real values"):
            outliers(wrong)


class Latents(torch.nn.Module):
    """Puts out a tensor, a tuple and a dict, changes one in place, has a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.g_a = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(inplace=True))
        self.pair = Pair()
        self.named = Named()
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, _ = self.pair(self.g_a(x))
        return self.named(a)["y"]


class Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2, x.argmax(1)


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x - 50}


def test_layers_over_several_calls():
    torch.manual_seed(0)
    model, batches = Latents(), [torch.randn(n, 4) for n in (5, 1, 20)]
    with ActivationStatistics(model) as statistics:
        outputs = [model(batch) for batch in batches]
    model(100 * batches[0])  # outside: not counted
    found = statistics.summary()
    assert set(found) == {"g_a.0", "g_a.1", "pair[0]", "named['y']"}
    together = torch.cat(outputs).detach()
    assert found["named['y']"].count == together.numel()
    values = found["named['y']"].kurtosis, found["named['y']"].max_over_rms
    assert values == pytest.approx(by_definition(together), rel=tolerances.MOMENTS)
    linear = torch.cat([model.g_a[0](batch) for batch in batches]).detach()
    expected = pytest.approx(by_definition(linear)[0], rel=tolerances.MOMENTS)
    assert found["g_a.0"].kurtosis == expected
    with statistics:  # goes on
        model(batches[0])
    assert statistics.summary()["g_a.0"].count == 8 * 31
    statistics.reset()
    with pytest.raises(RuntimeError, match="no layer has run"):
        statistics.summary()


def test_a_latent_by_its_name_under_autocast():
    torch.manual_seed(0)
    model, x = Latents(), torch.randn(50, 4)
    with ActivationStatistics(model, ["g_a"]) as statistics, torch.autocast("cpu"):
        model(x)
    found = statistics.summary()
    with torch.autocast("cpu"):
        latent = model.g_a(x).detach()
    assert latent.dtype == torch.bfloat16
    assert list(found) == ["g_a"]
    expected = pytest.approx(by_definition(latent)[0], rel=tolerances.MOMENTS)
    assert found["g_a"].kurtosis == expected


def test_training_is_the_same_with_it():
    def trained(watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(), torch.nn.GELU())
        optimizer = torch.optim.Adam(model.parameters())
        statistics = ActivationStatistics(model)
        for _ in range(3):
            optimizer.zero_grad()
            if watched:
                with statistics:
                    loss = model(torch.randn(8, 4)).square().sum()
            else:
                loss = model(torch.randn(8, 4)).square().sum()
            loss.backward()
            optimizer.step()
        assert not any(module._forward_hooks for module in model.modules())
        return [*model.state_dict().values(), torch.get_rng_state()]

    assert_same_bits(trained(True), trained(False))


def test_layers_that_are_not_there_say_so():
    with pytest.raises(ValueError, match="Identity has no layers, only itself"):
        ActivationStatistics(torch.nn.Identity())
    with pytest.raises(ValueError, match=r"no layer 'g_b'; it has, e\.g\., g_a"):
        ActivationStatistics(Latents(), ["g_b"])
    with pytest.raises(ValueError, match="layers='g_a' is one name"):
        ActivationStatistics(Latents(), "g_a")
    with pytest.raises(ValueError, match="layers is empty"):
        ActivationStatistics(Latents(), [])
    with (
        ActivationStatistics(Latents()) as statistics,
        pytest.raises(RuntimeError, match="taken already"),
        statistics,
    ):
        pass

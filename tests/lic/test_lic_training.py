"""Steps of each optimizer, what they reach, and what is recorded of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
import tolerances
import torch

from bench.lic.data import Images, load
from bench.lic.optimizers import BUILDERS, aux_parameters, main_parameters
from bench.lic.training import Config, Training

RATES = {
    "adam": 3e-3,
    "adam_soap_betas": 3e-3,
    "soap_fast": 1e-2,
    "pytorch_optimizer": 1e-2,
}


@pytest.fixture(scope="module")
def images() -> Images:
    return load(None, 64, 64)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two that share a core with other tests wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config() -> Config:
    return Config(
        model="hyperprior",
        factor=1 / 16,
        optimizer="adam",
        lr=RATES["adam"],
        lam=0.013,
        steps=30,
        batch=2,
        crop=64,
        precondition_frequency=3,
    )


def run_of(name: str, config: Config, images: Images) -> Training:
    return Training(replace(config, optimizer=name, lr=RATES[name]), images)


@pytest.mark.parametrize("name", BUILDERS)
def test_training_reduces_the_loss(name: str, config: Config, images: Images) -> None:
    training = run_of(name, config, images)
    before = training.evaluate().loss
    while not training.finished:
        training.step()
    assert training.evaluate().loss < 0.7 * before


def test_every_main_parameter_gets_a_gradient_within_three_steps(
    config: Config, images: Images
) -> None:
    training = Training(replace(config, batch=8, factor=1 / 4), images)
    silent = dict(training.model.named_parameters())
    quantiles = {name for name in silent if name.endswith("quantiles")}
    for _ in range(3):
        training.step()
        silent = {name: p for name, p in silent.items() if not p.grad.any()}
    assert set(silent) - quantiles == set()


def test_main_and_auxiliary_optimizer_share_all_parameters_without_overlap(
    config: Config, images: Images
) -> None:
    training = Training(config, images)
    main, aux = main_parameters(training.model), aux_parameters(training.model)
    assert {id(p) for p in (*main, *aux)} == {id(p) for p in training.model.parameters()}
    assert len(main) + len(aux) == len(list(training.model.parameters()))
    assert [tuple(p.shape) for p in aux] == [(12, 1, 3)]


@pytest.mark.parametrize("lam", [1e3, 1e-6])
def test_gradients_of_the_main_parameters_are_clipped_together(
    lam: float, config: Config, images: Images
) -> None:
    training = Training(replace(config, lam=lam), images)
    training.step()
    grads = [p.grad for p in main_parameters(training.model)]
    norm = torch.cat([grad.flatten() for grad in grads]).norm().item()
    if lam == 1e3:
        assert norm == pytest.approx(1, rel=tolerances.CLIPPED)
    else:
        assert 0 < norm < 0.999  # not stretched


def test_quantiles_follow_the_auxiliary_loss(config: Config, images: Images) -> None:
    training = Training(config, images)
    before = training.model.entropy_bottleneck.quantiles.detach().clone()
    training.step()
    moved = training.model.entropy_bottleneck.quantiles.detach() - before
    found = moved[:, 0, [0, 2]].abs()
    assert torch.allclose(found, torch.tensor(1e-3), **tolerances.FIRST_STEP)


def test_all_optimizers_see_the_same_start_and_the_same_crops(
    config: Config, images: Images
) -> None:
    runs = [run_of(name, config, images) for name in BUILDERS]
    first = runs[0]
    for other in runs[1:]:
        for p, q in zip(first.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(p, q)
    crops = [run._next_batch() for run in runs]
    assert all(torch.equal(crops[0], other) for other in crops[1:])


def test_both_soaps_agree_on_their_options(config: Config, images: Images) -> None:
    ours = run_of("soap_fast", config, images).optimizer.param_groups[0]
    public = run_of("pytorch_optimizer", config, images).optimizer.param_groups[0]
    names = {
        "max_precond_dim": "max_precondition_dim",
        "normalize_grads": "normalize_gradient",
    }
    alone = {
        "data_format",
        "refresh_tolerance",
        "refresh_schedule",
        "noise_floor",
    }  # the public one has no such
    for name in set(ours) - {"params", "shampoo_beta"} - alone:
        assert ours[name] == public[names.get(name, name)], name
    # data_format plays no part without merge_dims; shampoo_beta is betas[1] in both
    assert not ours["merge_dims"]
    assert ours["refresh_tolerance"] == 0
    assert ours["refresh_schedule"] == "periodic"
    assert ours["shampoo_beta"] < 0
    assert public["shampoo_beta"] is None


def test_evaluation_leaves_training_as_it_was(config: Config, images: Images) -> None:
    with_it, without = Training(config, images), Training(config, images)
    torch.manual_seed(1)
    for _ in range(2):
        with_it.step()
        with_it.evaluate()
    torch.manual_seed(1)
    for _ in range(2):
        without.step()
    assert with_it.history.losses == without.history.losses
    assert with_it.history.evaluated_at == [1, 2]


def test_learning_rate_falls_to_zero_over_half_a_cosine(config: Config, images: Images) -> None:
    training = Training(replace(config, steps=4), images)
    rates = []
    while not training.finished:
        training.step()
        rates.append(training.optimizer.param_groups[0]["lr"])
    expected = [3e-3, 2.560660e-3, 1.5e-3, 0.439340e-3]
    assert rates == pytest.approx(expected, rel=tolerances.RATES_WRITTEN)


def test_a_loss_that_is_not_finite_ends_the_run(config: Config, images: Images) -> None:
    training = Training(config, images)
    with torch.no_grad():
        training.model.synthesis[0].weight.fill_(float("nan"))
    training.step()
    assert training.diverged
    assert training.finished


# Of TCM tables of places are not contiguous; LALIC has parameters that never get a gradient.
@pytest.mark.parametrize(("model", "crop"), [("tcm_64", 128), ("lalic", 64)])
def test_models_of_other_layouts_go_on_to_the_same_bits(
    model: str, crop: int, config: Config, images: Images
) -> None:
    config = replace(
        config, model=model, crop=crop, factor=0.03, batch=1, optimizer="soap_fast",
        precondition_frequency=1,
    )  # fmt: skip
    straight = Training(config, images)
    straight.step()
    kept = io.BytesIO()
    torch.save(straight.state_dict(), kept)
    straight.step()
    kept.seek(0)
    resumed = Training(config, images)
    resumed.load_state_dict(torch.load(kept, weights_only=True))
    resumed.step()
    assert resumed.history.losses == straight.history.losses
    for p, q in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)

"""Scores of agreement and off-diagonal mass: known answers, nothing changed, bad input."""

from __future__ import annotations

import math

import pytest
import tolerances
import torch
from factors import random_orthogonal
from streams import assert_same_bits, parameters, snapshot, train

import soap_fast
from soap_fast.diagnostics import (
    InterStepScore,
    inter_step_score,
    intra_step_score,
    off_diagonal,
)
from soap_fast.diagnostics.preconditioners import RULES, preconditioner_of

SIZE, CONDITION, APART = 24, 300.0, 2.0
OPTIMIZERS = {
    "soap": lambda params: soap_fast.SOAP(params, lr=0.0, betas=(0.9, 0.98)),
    "adam": lambda params: torch.optim.Adam(params, lr=0.0, betas=(0.9, 0.98)),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.0),
}


class Quadratics:
    """Two losses tr((X - M)ᵀ A (X - M) B) / 2, A and B with eigenvectors off the axes.

    Their minima M lie APART standard deviations of X from 0, on either side, along each of the
    three stiffest directions of the Hessian, the Kronecker product of A and B. With
    `reversed_spectra` the second loss has the eigenvalues of A and B the other way round.
    """

    def __init__(self, reversed_spectra: bool = False, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        u, v = (random_orthogonal(SIZE, self.generator) for _ in range(2))
        spectrum = torch.logspace(0, math.log10(CONDITION), SIZE, dtype=torch.float64)
        spectra = [spectrum, spectrum.flip(0) if reversed_spectra else spectrum]
        self.sides = [((u * s) @ u.T, (v * s) @ v.T) for s in spectra]
        stiffest = ((-1, -1), (-1, -2), (-2, -1))
        apart = APART * sum(torch.outer(u[:, i], v[:, j]) for i, j in stiffest)
        self.minima = apart, -apart
        self.x = torch.nn.Parameter(self.point())

    def point(self) -> torch.Tensor:
        return torch.randn(SIZE, SIZE, dtype=torch.float64, generator=self.generator)

    def losses(self) -> list[torch.Tensor]:
        self.x.data.copy_(self.point())
        found = []
        for (a, b), minimum in zip(self.sides, self.minima, strict=True):
            off = self.x - minimum
            found.append(0.5 * (off * (a @ off @ b)).sum())
        return found


def scores_at_random_points(optimizer: str, problem: Quadratics, points: int = 10) -> list[float]:
    """After 150 gradients of the sum, which only the optimizer's state goes by."""
    stepping = OPTIMIZERS[optimizer]([problem.x])
    for _ in range(150):
        stepping.zero_grad()
        sum(problem.losses()).backward()
        stepping.step()
    return [intra_step_score(stepping, problem.losses()).overall for _ in range(points)]


def test_soap_resolves_a_conflict_in_stiff_directions_and_others_do_not():
    assert min(scores_at_random_points("soap", Quadratics())) > 0.9
    assert max(scores_at_random_points("adam", Quadratics())) < 0.7
    assert max(scores_at_random_points("sgd", Quadratics())) < 0.7


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nobody_resolves_a_conflict_of_reversed_spectra(optimizer):
    assert max(scores_at_random_points(optimizer, Quadratics(reversed_spectra=True))) < 0.7


def small(seed: int = 0) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
    return model, torch.randn(16, 6)


def losses_of(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = model(x)
    return [y.square().mean(), (y - 1).abs().mean()]


def stepped(model: torch.nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(4):
        optimizer.zero_grad()
        sum(losses_of(model, x)).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", sorted(RULES, key=lambda kind: kind.__name__))
def test_rules_are_those_of_torchs_steps(kind):
    """A step without momentum, by gradients too small to move the state, goes along them."""
    params = parameters(((5, 3), (4,)), torch.float64)
    optimizer = kind(params, lr=1e-2, **({"centered": True} if kind is torch.optim.RMSprop else {}))
    train(optimizer, params, range(30))
    decays = {"weight_decay", "lambd"} & set(optimizer.defaults)
    optimizer.param_groups[0].update(dict.fromkeys(decays, 0.0))
    for param in params:
        param.grad *= 1e-6
        for key in ("exp_avg", "prev"):
            optimizer.state[param].get(key, torch.zeros(1)).zero_()
    expected = preconditioner_of(optimizer)([param.grad for param in params])
    before = [param.detach().clone() for param in params]
    optimizer.step()
    moved = [old - param.detach() for old, param in zip(before, params, strict=True)]
    found = inter_step_score(optimizer, expected, moved)
    assert found.overall > 0.999
    assert min(found.per_tensor.values()) > 0.999


def test_rectified_adam_begins_with_the_gradient():
    params = parameters(((5, 3),), torch.float64)
    optimizer = torch.optim.RAdam(params)
    train(optimizer, params, range(2))
    grads = [param.grad for param in params]
    assert_same_bits(preconditioner_of(optimizer)(grads), grads)


def test_amsgrad_divides_by_the_largest_second_moment():
    params = parameters(((5, 3),), torch.float64)
    optimizer = torch.optim.Adam(params, amsgrad=True)
    train(optimizer, params, range(3))
    grad, entry = params[0].grad, optimizer.state[params[0]]
    expected = grad / ((entry["max_exp_avg_sq"] / (1 - 0.999**3)).sqrt() + 1e-8)
    found = preconditioner_of(optimizer)([grad])[0]
    torch.testing.assert_close(found, expected, **tolerances.EXACT_64)


def test_a_score_is_the_cosine_and_of_three_losses_their_alignment():
    params = parameters(((3,), (2,)))
    optimizer = torch.optim.SGD([("a", params[0]), ("b", params[1])])
    one = [torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 0])]
    two = [torch.tensor([0, 1.0, 0]), torch.tensor([2.0, 0])]
    three = [torch.tensor([0, 0, 1.0]), torch.tensor([-1.0, 0])]
    found = intra_step_score(optimizer, [one, two])
    assert found.per_tensor == {"parameter 'a'": 0.0, "parameter 'b'": pytest.approx(1)}
    assert found.overall == pytest.approx(2 / math.sqrt(2 * 5))
    assert found.cosines[0][1] == pytest.approx(found.overall)
    # |e_1 + e_2 + e_3|² = 3 and |1 + 1 - 1|² = 1: 2 * 3 / 9 - 1 and 2 * 1 / 9 - 1
    found = intra_step_score(optimizer, [one, two, three])
    assert found.per_tensor["parameter 'a'"] == pytest.approx(-1 / 3)
    assert found.per_tensor["parameter 'b'"] == pytest.approx(-7 / 9)
    assert found.standard_error == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_changes(name):
    model, x = small()
    optimizer = OPTIMIZERS[name](model.parameters())
    followed = InterStepScore(optimizer, entries=3)
    stepped(model, x, optimizer)
    params = list(model.parameters())
    before, gradients = snapshot(optimizer, params), [param.grad.clone() for param in params]
    entries = len(optimizer.state)
    random, losses = torch.get_rng_state(), losses_of(model, x)
    intra_step_score(optimizer, losses)
    for _ in range(3):
        followed.update()
    followed.score()
    if name == "soap":
        off_diagonal(optimizer)
    assert_same_bits(snapshot(optimizer, params), before)
    assert_same_bits([param.grad for param in params], gradients)
    assert torch.equal(torch.get_rng_state(), random)
    assert len(optimizer.state) == entries
    sum(losses).backward()  # the graph is still there


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_under_mixed_precision(name):
    """In autocast, and with losses scaled for float16; P must not be computed in bfloat16."""
    model, x = small()
    optimizer = OPTIMIZERS[name](model.parameters())
    stepped(model, x, optimizer)
    full = intra_step_score(optimizer, losses_of(model, x))
    scaled = intra_step_score(optimizer, [2.0**16 * loss for loss in losses_of(model, x)])
    assert scaled.per_tensor == pytest.approx(full.per_tensor, abs=tolerances.COSINE)
    weights = list(model.parameters())
    losses = losses_of(model, x)
    grads = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses]
    with torch.autocast("cpu", torch.bfloat16):
        same = intra_step_score(optimizer, grads)
        assert intra_step_score(optimizer, losses_of(model, x)).overall == pytest.approx(
            full.overall, abs=tolerances.COSINE_AUTOCAST
        )
    assert same.per_tensor == pytest.approx(full.per_tensor, abs=tolerances.COSINE)


def test_what_is_skipped_is_named():
    model, x = small()
    extra = torch.nn.Parameter(torch.ones(3))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    named = [*model.named_parameters(), ("extra", extra), ("frozen", frozen)]
    optimizer = soap_fast.SOAP(named)
    stepped(model, x, optimizer)
    one, two = losses_of(model, x)
    grads = list(torch.autograd.grad(two, list(model.parameters()), retain_graph=True))
    found = intra_step_score(optimizer, [one, two + extra.sum()])
    assert found.skipped == {
        "parameter 'extra'": "no gradient in loss 0",
        "parameter 'frozen'": "no gradient in loss 0",
    }
    alone = intra_step_score(optimizer, [one, two])
    assert found.overall == pytest.approx(alone.overall)
    found = intra_step_score(optimizer, [one + extra.sum(), two + extra.sum()])
    assert "has not been stepped" in found.skipped["parameter 'extra'"]
    grads[0] = torch.full_like(grads[0], math.nan)
    grads[1] = torch.zeros_like(grads[1])
    found = intra_step_score(optimizer, [one, [*grads, None, None]])
    assert found.skipped["parameter '0.weight'"] == "gradient of loss 1 is not finite"
    assert found.skipped["parameter '0.bias'"] == "update of loss 1 is zero"
    nothing = intra_step_score(torch.optim.Adam(model.parameters()), losses_of(model, x))
    assert math.isnan(nothing.overall)
    assert len(nothing.skipped) == 4


def test_what_cannot_be_compared_says_why():
    model, x = small()
    optimizer = torch.optim.SGD(model.parameters())
    one, two = losses_of(model, x)
    with pytest.raises(ValueError, match="loss 1 has no graph: compute it with gradients"):
        intra_step_score(optimizer, [one, two.detach()])
    with pytest.raises(ValueError, match=r"loss 0 is \[16, 4\], not a scalar"):
        intra_step_score(optimizer, [model(x), two])
    with pytest.raises(ValueError, match="1 losses: a score compares two or more"):
        intra_step_score(optimizer, [one])
    other = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match="loss 1 reaches no parameter"):
        intra_step_score(optimizer, [one, 2 * other])
    with pytest.raises(ValueError, match="loss 1 has 1 gradients for 4 parameters"):
        intra_step_score(optimizer, [one, [None]])
    with pytest.raises(ValueError, match=r"gradient 0 of loss 1 is \[2\], its parameter \[5, 6\]"):
        intra_step_score(optimizer, [one, [torch.ones(2), None, None, None]])
    one.backward()
    with pytest.raises(ValueError, match="graph of loss 0 has been freed"):
        intra_step_score(optimizer, [one, two])
    one, two = losses_of(model, x)
    muon = torch.optim.Muon([param for param in model.parameters() if param.ndim == 2])
    with pytest.raises(ValueError, match=r"preconditioner of Muon is not known.*preconditioner="):
        intra_step_score(muon, [one, two])
    flipped = intra_step_score(muon, [one, two], preconditioner=lambda grads: grads)
    assert -1 <= flipped.overall <= 1
    with pytest.raises(TypeError, match="Muon has no factors"):
        off_diagonal(muon)


def test_consecutive_updates_against_copies():
    model, x = small()
    optimizer = soap_fast.SOAP(model.named_parameters(), precondition_frequency=2)
    scores = InterStepScore(optimizer)
    copies = []
    for _ in range(6):
        stepped(model, x, optimizer)
        scores.update()
        copies.append(torch.cat([p.detach().double().flatten() for p in model.parameters()]))
    earlier, later = copies[-2] - copies[-3], copies[-1] - copies[-2]
    expected = torch.nn.functional.cosine_similarity(earlier, later, dim=0)
    found = scores.score()
    assert found.overall == pytest.approx(float(expected), abs=tolerances.COSINE)
    assert set(found.per_tensor) == {f"parameter {n!r}" for n, _ in model.named_parameters()}
    assert found.skipped == {}


def test_every_so_many_steps_nothing_is_held_between():
    params = parameters(((4, 4),))
    optimizer = torch.optim.SGD(params, lr=1.0)
    scores = InterStepScore(optimizer, every=10, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="no score before call 10 of update, there were 0"):
        scores.score()
    for call in range(20):
        train(optimizer, params, [call])
        before = params[0].grad
        scores.update()
        if call == 18:
            seventeenth = before.clone()
    held = [t for f in scores._followed.values() for t in (f.values, f.delta) if t is not None]
    assert held == []
    expected = torch.nn.functional.cosine_similarity(
        seventeenth.flatten(), params[0].grad.flatten(), dim=0
    )
    found = scores.score().overall
    assert found == pytest.approx(float(expected), abs=tolerances.COSINE_HALF)


def test_a_sample_of_entries_is_off_by_about_its_standard_error():
    """Updates of two tensors with correlations 0.8 and 0.3, of unlike lengths."""
    generator = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (20000, 5000, 10)]
    optimizer = torch.optim.SGD(params, lr=1.0)
    scores = [InterStepScore(optimizer, entries=500, seed=seed) for seed in range(40)]
    exact = InterStepScore(optimizer)
    last = [torch.zeros_like(param) for param in params]
    for _ in range(3):
        for param, old, rho, size in zip(params, last, (0.8, 0.3, 0.5), (1, 3, 1), strict=True):
            noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            old.mul_(rho).add_(size * math.sqrt(1 - rho**2) * noise)
            param.grad = old.clone()
        optimizer.step()
        for score in (*scores, exact):
            score.update()
    truth, found = exact.score(), [score.score() for score in scores]
    errors = torch.tensor([(f.overall - truth.overall) / f.standard_error for f in found])
    assert 0.6 < errors.square().mean().sqrt() < 1.6
    assert truth.standard_error == 0
    assert found[0].per_tensor["parameter 2 of group 0"] == pytest.approx(
        truth.per_tensor["parameter 2 of group 0"]
    )
    assert scores[0]._followed["parameter 0 of group 0"].values.numel() == 500


def test_tensors_that_do_not_move_are_named():
    params = parameters(((4,), (3,)))
    optimizer = torch.optim.SGD([("moves", params[0]), ("rests", params[1])], lr=1.0)
    scores = InterStepScore(optimizer)
    for call in range(3):
        train(optimizer, params[:1], [call])
        scores.update()
    assert scores.score().skipped == {"parameter 'rests'": "earlier update is zero"}
    with pytest.raises(ValueError, match="every=0 is below 1"):
        InterStepScore(optimizer, every=0)
    with pytest.raises(ValueError, match="entries=0 is below 1"):
        InterStepScore(optimizer, entries=0)


def test_mass_off_the_diagonal():
    params = parameters(((6, 4), (5,)), torch.float64)
    optimizer = soap_fast.SOAP(params, precondition_frequency=100)
    assert off_diagonal(optimizer) == {}
    train(optimizer, params, range(1))
    first, second = (f"parameter {i} of group 0" for i in range(2))
    found = off_diagonal(optimizer)
    assert max(found[first]) < tolerances.NO_SHARE_64  # eigenvectors, of the first gradient alone
    assert math.isnan(found[second][0])
    train(optimizer, params, range(1, 8))
    k, q = (optimizer.state[params[0]][key][1] for key in ("GG", "Q"))
    h = q.T @ k @ q
    expected = (h.square().sum() - h.diagonal().square().sum()).sqrt() / h.norm()
    assert off_diagonal(optimizer)[first][1] == pytest.approx(float(expected))
    optimizer.state[params[0]]["GG"][0].zero_()
    assert off_diagonal(optimizer)[first][0] == 0

"""The noise that stands for another processor finds problems that make whole steps of rounding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tolerances
import torch
from perturbed import Perturbation
from streams import parameters, set_gradients

from soap_fast import SOAP


def product(rank: int, seed: int) -> torch.Tensor:  # [8, 8] float32
    left, right = parameters(((8, rank), (rank, 8)), seed=seed)
    return (left @ right).detach()


GRADIENTS = {
    "of full rank": [product(8, call) for call in range(6)],
    "of rank one": [(1 + call) * product(1, 0) for call in range(6)],
    "the same twice": [product(8, max(call, 1)) for call in range(6)],
    "a basis left open": [product(8 if call else 2, call) for call in range(6)],
}


def parted(kind: str, lr: float, noise_floor: float) -> float:
    """How far two optimizers part that see the same gradients, each under noise of its own."""
    perturbation, ends = Perturbation(1e-7), []
    for _ in range(2):
        (param,) = parameters(((8, 8),))
        optimizer = SOAP([param], backend="eager", lr=lr, noise_floor=noise_floor)
        for grad in GRADIENTS[kind]:
            param.grad = grad.clone()
            with perturbation.noise(optimizer):
                optimizer.step()
        ends.append(param.detach())
    return float((ends[0] - ends[1]).abs().max())


@pytest.mark.parametrize("kind", GRADIENTS)
def test_only_problems_that_make_steps_of_rounding_part(kind):
    apart = parted(kind, lr=(lr := 0.01), noise_floor=0.0)
    if kind == "of full rank":
        assert 0 < apart < tolerances.PERTURBED * lr
    else:
        assert apart > 0.1 * lr


@pytest.mark.parametrize("kind", ["of full rank", "of rank one"])
def test_under_the_floor_low_rank_parts_no_more_than_full(kind):
    assert parted(kind, lr=(lr := 0.01), noise_floor=1.0) < tolerances.PERTURBED * lr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_a_few_roundings_and_is_taken_back(dtype):
    perturbation = Perturbation(1e-7)
    params = parameters(((40, 50), ()), dtype=dtype)
    set_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    addresses = [p.grad.data_ptr() for p in params]
    seen = []
    for _ in range(2):
        optimizer = SOAP(params)
        with torch.device("meta"), perturbation.noise(optimizer):
            assert [p.grad.data_ptr() for p in params] == addresses
            seen.append(params[0].grad.clone())
        assert all(torch.equal(p.grad, grad) for p, grad in zip(params, before, strict=True))
    assert not torch.equal(*seen)
    share = ((seen[0] - before[0]) / before[0]).abs() / torch.finfo(dtype).eps
    assert 0.3 < share.mean() < 3
    assert share.max() < 6


def bits() -> None:
    assert torch.equal(torch.zeros(2), torch.full((2,), 1e-9))


def to_a_tolerance() -> None:
    torch.testing.assert_close(torch.zeros(2), torch.ones(2), **tolerances.PLAIN)


@pytest.mark.parametrize(("comparison", "outcome"), [(bits, "skipped"), (to_a_tolerance, "failed")])
def test_a_comparison_of_bits_is_expected_to_fail_and_no_other(comparison, outcome):
    with pytest.raises(AssertionError) as caught:
        comparison()
    report = SimpleNamespace(failed=True, outcome="failed")
    hook = Perturbation(1e-7).pytest_runtest_makereport(None, SimpleNamespace(excinfo=caught))
    next(hook)
    with pytest.raises(StopIteration):
        hook.send(report)
    assert report.outcome == outcome

"""A refresh: bases stay orthogonal and converge, moments mean what they meant, bad factors wait."""

from __future__ import annotations

import pytest
import torch
from test_oracle import random_factor, random_orthogonal

from soap_fast import SOAP
from soap_fast.modes import rotate_back
from soap_fast.options import PlanOptions
from soap_fast.plan import plan_tensor
from soap_fast.refresh import refresh_basis

PLAN_OPTIONS = PlanOptions(10000, False, False, "channels_first")


def off_diagonal(matrix: torch.Tensor) -> float:
    """Share of a matrix's norm that lies off its diagonal."""
    return float((matrix - matrix.diagonal().diag()).norm() / matrix.norm())


def orthogonality(q: torch.Tensor) -> tuple[float, float]:
    """Largest error of QᵀQ on the diagonal and off it, computed in float64."""
    error = q.double().T @ q.double() - torch.eye(len(q), dtype=torch.float64)
    return float(error.diagonal().abs().max()), float(off_diagonal_max(error))


def off_diagonal_max(error: torch.Tensor) -> torch.Tensor:
    return (error - error.diagonal().diag()).abs().max()


@pytest.mark.parametrize("size", [2, 5, 16, 64, 130])
def test_a_hundred_refreshes_keep_orthogonality_and_find_the_eigenvectors(size):
    generator = torch.Generator().manual_seed(size)
    spectrum = torch.logspace(0, -6, size, dtype=torch.float64)
    vectors = random_orthogonal(size, generator)
    k = (vectors * spectrum @ vectors.T).float()
    q = random_orthogonal(size, generator).float()
    first = None
    for _ in range(100):
        q = refresh_basis(k, q).Q
        first = first if first is not None else off_diagonal(q.T @ k @ q)
    on, off = orthogonality(q)
    # QR in float32 leaves about sqrt(size) roundings of 6e-8; four of those and no growth.
    assert on < 4 * 6e-8 * size**0.5
    assert off < 4 * 6e-8 * size**0.5
    rounding = size * 6e-8  # of the products that measure it
    assert off_diagonal(q.T @ k @ q) < 0.02 * first + rounding


def test_columns_are_sorted_by_descending_eigenvalue_estimate():
    generator = torch.Generator().manual_seed(0)
    k, q = random_factor(12, 12, generator), random_orthogonal(12, generator)
    order = refresh_basis(k, q).order
    estimates = (q.T @ k @ q).diagonal()[order]
    assert torch.equal(estimates, estimates.sort(descending=True).values)


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(5, 5), torch.full((5, 5), torch.nan), torch.full((5, 5), torch.inf)],
    ids=["zero", "nan", "inf"],
)
def test_a_factor_without_eigenvectors_keeps_its_basis_exactly(bad):
    q = random_orthogonal(5, torch.Generator().manual_seed(0)).float()
    kept = refresh_basis(bad, q)
    assert torch.equal(kept.Q, q)
    assert torch.equal(kept.order, torch.arange(5))
    assert torch.equal(kept.carry, torch.eye(5))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_a_factor_does_not_matter(scale):
    generator = torch.Generator().manual_seed(3)
    k, q = random_factor(20, 20, generator).float(), random_orthogonal(20, generator).float()
    k = k / k.abs().max()
    scaled, plain = refresh_basis(k * scale, q), refresh_basis(k, q)
    assert torch.equal(scaled.order, plain.order)
    signs = (scaled.Q * plain.Q).sum(0).sign()
    assert (scaled.Q * signs - plain.Q).abs().max() < 1e-4


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("size", [3, 5, 9, 16, 64])
def test_rank_deficient_factors_stay_orthogonal(size, rank):
    generator = torch.Generator().manual_seed(size)
    k = random_factor(size, min(rank, size), generator).float()
    q = torch.linalg.eigh(k).eigenvectors.flip(1)
    for _ in range(20):
        q = refresh_basis(k, q).Q
        assert max(orthogonality(q)) < 1e-5


def test_the_moments_keep_their_meaning_across_a_refresh():
    """exp_avg stands for the same tensor before and after; exp_avg_sq is only permuted."""
    generator = torch.Generator().manual_seed(1)
    param = torch.nn.Parameter(torch.zeros(6, 5, 4, dtype=torch.float64))
    optimizer = SOAP([param], betas=(0.9, 0.9), precondition_frequency=4, backend="eager")
    plan = plan_tensor((6, 5, 4), PLAN_OPTIONS)
    gradients = [torch.randn(6, 5, 4, dtype=torch.float64, generator=generator) for _ in range(5)]
    for grad in gradients[:4]:
        param.grad = grad
        optimizer.step()
    state = optimizer.state[param]
    before = rotate_back(state["exp_avg"], state["Q"], plan)
    old_bases = [q.clone() for q in state["Q"]]

    param.grad = torch.zeros(6, 5, 4, dtype=torch.float64)  # the refresh falls on this call
    old_squares = 0.9 * state["exp_avg_sq"]
    optimizer.step()
    after = rotate_back(state["exp_avg"], state["Q"], plan)
    assert not torch.equal(state["Q"][0], old_bases[0])
    torch.testing.assert_close(after, 0.9 * before, rtol=1e-12, atol=1e-15)
    assert torch.equal(
        state["exp_avg_sq"].flatten().sort().values, old_squares.flatten().sort().values
    )

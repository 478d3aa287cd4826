"""refresh_: bases stay orthogonal and converge, bad factors wait; native is as good as eager."""

from __future__ import annotations

from functools import cache, partial

import pytest
import tolerances
import torch
from factors import random_factor, random_orthogonal
from hypothesis import given
from hypothesis import strategies as st
from streams import needs_native

from soap_fast.step.refresh import (
    FAILED,
    KEPT,
    LEFT_OUT,
    REFRESHED,
    refresh_by_cholesky,
    refresh_eager,
    refresh_native,
)
from soap_fast.step.refresh_batched import refresh_batched

BOTH = [
    pytest.param(refresh_eager, id="eager"),
    pytest.param(refresh_batched, id="batched"),
    pytest.param(refresh_native, id="native", marks=needs_native),
    pytest.param(refresh_by_cholesky, id="cholesky", marks=needs_native),
    pytest.param(
        partial(refresh_by_cholesky, householder_up_to=0), id="cholesky alone", marks=needs_native
    ),
]
pytestmark = pytest.mark.parametrize("op", BOTH)


def one(op, k, q, allowed=True, tolerance=0.0):
    """Refresh a single factor; returns its new basis and its results."""
    bases = q.clone(memory_format=torch.contiguous_format)[None]
    chosen, flag = torch.zeros(1, dtype=torch.int32), torch.tensor([allowed])
    results = op([k[None]], [bases], [chosen], [flag], tolerance)
    return bases[0], [column[0][0] for column in results]


def off_diagonal(matrix: torch.Tensor) -> float:
    """Share of a matrix's norm that lies off its diagonal."""
    matrix = matrix.double()
    return float((matrix - matrix.diagonal().diag()).norm() / matrix.norm())


def orthogonality(q: torch.Tensor) -> float:
    return float((q.double().T @ q.double() - torch.eye(len(q))).abs().max())


def spectrum(kind: str, d: int) -> torch.Tensor:
    return {
        "condition 1e2": torch.logspace(0, -2, d, dtype=torch.float64),
        "condition 1e8": torch.logspace(0, -8, d, dtype=torch.float64),
        "clusters": torch.tensor([1.0, 1e-3, 1e-6]).double().repeat_interleave(d // 3 + 1)[:d],
        "rank d/3": (torch.arange(d) < max(1, d // 3)).double(),
        "rank 1": (torch.arange(d) < 1).double(),
    }[kind]


KINDS = ("condition 1e2", "condition 1e8", "clusters", "rank d/3", "rank 1")


@cache
def drifting(d: int) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, list[float]]:
    """A first basis, a hundred factors of all kinds in float32 [kinds, d, d], the last in float64.

    And what refreshes by Householder QR in float64 leave beside the diagonal of each kind.
    """
    generator = torch.Generator().manual_seed(d)
    vectors = random_orthogonal(d, generator)
    drift = torch.randn(d, d, dtype=torch.float64, generator=generator) * 1e-3 / d**0.5
    turn = torch.linalg.matrix_exp(drift - drift.T)
    start = random_orthogonal(d, generator)
    spectra = torch.stack([spectrum(kind, d) for kind in KINDS])
    exact = start.repeat(len(KINDS), 1, 1)
    factors = []
    for _ in range(100):
        vectors = turn @ vectors
        k = vectors * spectra[:, None] @ vectors.T
        factors.append(k.float())
        together(refresh_eager, k, exact)
    return start.float(), factors, k, list(map(off_diagonal, exact.mT @ k @ exact))


def together(op, k, q):  # [n, d, d] each
    """Refresh all factors of a stack, in place; returns what came of each [n]."""
    chosen, flags = torch.arange(len(k), dtype=torch.int32), torch.ones(len(k), dtype=torch.bool)
    return torch.stack(list(op([k], [q], [chosen], [flags], 0.0)[2][0]))


@pytest.mark.parametrize("d", [2, 3, 5, 9, 16, 33, 64, 130])
def test_a_hundred_refreshes_in_a_drifting_stream(op, d):
    """Orthogonal to rounding throughout, as diagonalising as Householder QR in float64."""
    start, factors, last, wanted = drifting(d)
    q = start.repeat(len(KINDS), 1, 1)
    for call, k in enumerate(factors):
        assert (together(op, k, q) == REFRESHED).all(), call
        error = (q.double().mT @ q.double() - torch.eye(d)).abs().amax((1, 2))
        assert (error < tolerances.qr(torch.float32, d)).all(), (call, error)
    for kind, found, share in zip(KINDS, q.double().mT @ last @ q.double(), wanted, strict=True):
        allowed = (1 + tolerances.DIAGONAL) * share + d * tolerances.U
        assert off_diagonal(found) < allowed, kind


def test_the_results_are_what_they_say(op):
    generator = torch.Generator().manual_seed(0)
    k, q = random_factor(12, 12, generator), random_orthogonal(12, generator)
    new, (order, carry, outcome, off) = one(op, k, q)
    h = q.T @ k @ q
    assert outcome == REFRESHED
    assert torch.equal(h.diagonal()[order], h.diagonal().sort(descending=True).values)
    torch.testing.assert_close(carry, q.T @ new, **tolerances.EXACT_64)
    assert float(off) == pytest.approx(off_diagonal(h), rel=tolerances.SHARE_64)
    expected = torch.linalg.qr(k @ q[:, order]).Q
    agreement = (new * expected).sum(0).abs()
    torch.testing.assert_close(agreement, torch.ones(12).double(), **tolerances.EXACT_64)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (torch.zeros(5, 5), KEPT),
        (torch.full((5, 5), torch.nan), FAILED),
        (torch.full((5, 5), torch.inf), FAILED),
        (torch.eye(5).masked_fill(torch.arange(25).reshape(5, 5) == 7, torch.nan), FAILED),
    ],
    ids=["zero", "nan", "inf", "one nan"],
)
def test_a_factor_without_eigenvectors_keeps_its_basis_exactly(op, factor, expected):
    q = random_orthogonal(5, torch.Generator().manual_seed(0)).float()
    new, (order, carry, outcome, _) = one(op, factor, q)
    assert outcome == expected
    assert torch.equal(new, q)
    assert torch.equal(order, torch.arange(5))
    assert torch.equal(carry, torch.eye(5))


def test_what_is_not_allowed_is_left_alone(op):
    generator = torch.Generator().manual_seed(0)
    k, q = random_factor(7, 7, generator), random_orthogonal(7, generator)
    new, (order, carry, outcome, off) = one(op, k, q, allowed=False)
    assert outcome == LEFT_OUT
    assert off.isnan()
    assert torch.equal(new, q)
    assert torch.equal(order, torch.arange(7))
    assert torch.equal(carry, torch.eye(7).double())


def test_tolerance_keeps_what_is_diagonal_enough(op):
    generator = torch.Generator().manual_seed(1)
    k, q = random_factor(9, 9, generator), random_orthogonal(9, generator)
    share = off_diagonal(q.T @ k @ q)
    kept, (_, _, outcome, off) = one(op, k, q, tolerance=share * 1.001)
    assert outcome == KEPT
    assert torch.equal(kept, q)
    assert float(off) == pytest.approx(share, rel=tolerances.SHARE_64)
    assert one(op, k, q, tolerance=share * 0.999)[1][2] == REFRESHED


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_a_factor_does_not_matter(op, scale):
    generator = torch.Generator().manual_seed(3)
    k, q = random_factor(40, 40, generator).float(), random_orthogonal(40, generator).float()
    k = k / k.abs().max()
    scaled, (order, _, outcome, off) = one(op, k * scale, q)
    plain, (plain_order, _, _, plain_off) = one(op, k, q)
    assert outcome == REFRESHED
    assert torch.equal(order, plain_order)
    assert float(off) == pytest.approx(float(plain_off), rel=tolerances.SHARE_SCALED)
    signs = (scaled * plain).sum(0).sign()
    assert (scaled * signs - plain).abs().max() < tolerances.BASES


@pytest.mark.parametrize("d", [3, 16, 64])
def test_dead_rows_and_multiples_of_the_identity(op, d):
    generator = torch.Generator().manual_seed(d)
    k, q = random_factor(d, d, generator).float(), random_orthogonal(d, generator).float()
    k[d // 2] = 0
    k[:, d // 2] = 0
    for factor in (k, 3 * torch.eye(d)):
        new = q
        for _ in range(20):
            new = one(op, factor, new)[0]
            assert orthogonality(new) < tolerances.ORTHOGONAL
        assert new.isfinite().all()


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_stacks_with_selections(op, sizes, dtype, seed):
    """Only the selected and allowed change, and each as it would alone, to the bit on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    n = 4
    factors = [torch.stack([random_factor(d, d, generator) for _ in range(n)]) for d in sizes]
    bases = [torch.stack([random_orthogonal(d, generator) for _ in range(n)]) for d in sizes]
    factors, bases = ([stack.to(dtype) for stack in stacks] for stacks in (factors, bases))
    before = [stack.clone() for stack in bases]
    chosen = [torch.randperm(n, generator=generator)[:3].int() for _ in sizes]
    flags = [torch.rand(3, generator=generator) < 0.7 for _ in sizes]
    results = op(factors, bases, chosen, flags, 0.0)
    for s in range(len(sizes)):
        touched = dict(zip(chosen[s].tolist(), range(3), strict=True))
        for slot in range(n):
            position = touched.get(slot)
            if position is None or not flags[s][position]:
                assert torch.equal(bases[s][slot], before[s][slot])
                continue
            if op is refresh_native:
                alone, parts = one(op, factors[s][slot], before[s][slot])
                assert torch.equal(bases[s][slot], alone)
                for column, part in zip(results, parts, strict=True):
                    assert torch.equal(column[s][position], part)
            assert orthogonality(bases[s][slot]) < tolerances.qr(dtype, sizes[s])


@given(
    sizes=st.lists(st.sampled_from([1, 3, 8, 16, 33, 40]), min_size=1, max_size=3, unique=True),
    chosen=st.lists(st.permutations(range(4)), min_size=3, max_size=3),
    number=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_bases_of_the_selection_in_its_order(op, sizes, chosen, number, seed):
    """As in a whole stack, to the bit; one that is named twice has two."""
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.stack([random_factor(d, d, generator) for _ in range(4)]) for d in sizes]
    whole = [torch.stack([random_orthogonal(d, generator) for _ in range(4)]) for d in sizes]
    slots = [torch.tensor(chosen[s][:number], dtype=torch.int32) for s in range(len(sizes))]
    flags = [torch.rand(number, generator=generator) < 0.7 for _ in sizes]
    copies = [q.index_select(0, slot) for q, slot in zip(whole, slots, strict=True)]
    wanted = op(factors, whole, slots, flags, 0.0)
    found = op(factors, copies, slots, flags, 0.0)
    for column, same in zip(found, wanted, strict=True):
        torch.testing.assert_close(list(column), list(same), rtol=0, atol=0, equal_nan=True)
    for q, new, slot in zip(whole, copies, slots, strict=True):
        assert torch.equal(q.index_select(0, slot), new)
    if number == 3:
        twice = [torch.stack([slot[0], slot[0], slot[1]]) for slot in slots]
        flags = [torch.tensor([True, True, True]) for _ in slots]
        both = [q.index_select(0, slot) for q, slot in zip(whole, twice, strict=True)]
        op(factors, both, twice, flags, 0.0)
        assert all(torch.equal(q[0], q[1]) for q in both)


def test_nothing_to_do(op):
    assert [list(column) for column in op([], [], [], [], 0.0)] == [[], [], [], []]
    none, flags = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.bool)
    results = op([torch.ones(3, 5, 5)], [torch.ones(3, 5, 5)], [none], [flags], 0.0)
    shapes = [tuple(column[0].shape) for column in results]
    assert shapes == [(0, 5), (0, 5, 5), (0,), (0,)]

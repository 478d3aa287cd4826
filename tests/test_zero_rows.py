"""Rows and columns of a factor that are exactly zero stay apart: in bases, refreshes and steps."""

from __future__ import annotations

import os
from functools import partial

import pytest
import tolerances
import torch
from factors import random_orthogonal
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import needs_native
from test_refresh import off_diagonal, orthogonality

from soap_fast.step.eigh import eigh_eager, eigh_native
from soap_fast.step.refresh import (
    KEPT,
    REFRESHED,
    refresh_by_cholesky,
    refresh_eager,
    refresh_native,
)

SOAK = "SOAP_FAST_EXAMPLES" in os.environ  # `make soak`
some_examples = settings(max_examples=int(os.environ.get("SOAP_FAST_EXAMPLES", "40")))

EIGH = [
    pytest.param(eigh_eager, id="eager"),
    pytest.param(eigh_native, id="native", marks=needs_native),
]
BY_QR = [
    pytest.param(refresh_eager, id="eager"),
    pytest.param(refresh_native, id="native", marks=needs_native),
    pytest.param(refresh_by_cholesky, id="gpu", marks=needs_native),
]
REFRESH = [
    *BY_QR,
    pytest.param(
        partial(refresh_by_cholesky, householder_up_to=0), id="cholesky", marks=needs_native
    ),
]

# The rest of a factor: of full rank, of fewer, with rows that are the same, with one row alone.
RESTS = ("full", "rank 1", "rank n/3", "the same rows", "diagonal")
SCALES = (1e-20, 1e-8, 1.0, 1e15)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small work on several threads of a busy machine waits for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def factor_of(zero: torch.Tensor, rest: str, generator: torch.Generator) -> torch.Tensor:
    """K [d, d] float64 whose rows and columns `zero` [d] are exactly 0."""
    d = len(zero)
    live = (~zero).nonzero().flatten()
    n = len(live)
    rank = {"full": n + 3, "rank 1": 1, "rank n/3": max(1, n // 3)}.get(rest, n)
    g = torch.randn(n, rank, dtype=torch.float64, generator=generator)
    if rest == "the same rows":
        g[: n // 2] = g[n - n // 2 :].clone()
    if rest == "diagonal":
        g = torch.diag(g.diagonal())
    k = torch.zeros(d, d, dtype=torch.float64)
    k[live[:, None], live] = g @ g.T
    return k


def assert_apart(basis: torch.Tensor, zero: torch.Tensor) -> None:
    """The last columns are the unit vectors of `zero`, the others exactly 0 in those rows."""
    unit = torch.eye(len(zero), dtype=basis.dtype)[:, zero]  # [d, |Z|]
    n = len(zero) - unit.shape[1]
    assert not basis[zero, :n].any()
    assert torch.equal(basis[:, n:].abs(), unit)


problems = st.tuples(
    st.integers(1, 70), st.sampled_from(RESTS), st.sampled_from(SCALES), st.integers(0, 2**32 - 1)
)
share_of_zeros = st.sampled_from(["none", "one", "some", "all but one", "all"])


def zeros(d: int, share: str, generator: torch.Generator) -> torch.Tensor:  # [d] bool
    count = {"none": 0, "one": 1, "some": d // 3, "all but one": d - 1, "all": d}[share]
    return torch.randperm(d, generator=generator) < count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eigh", EIGH)
@given(problem=problems, share=share_of_zeros)
@some_examples
def test_first_bases(eigh, dtype, problem, share):
    d, rest, scale, seed = problem
    generator = torch.Generator().manual_seed(seed)
    zero = zeros(d, share, generator)
    k = (factor_of(zero, rest, generator) * scale).to(dtype)
    plain = k[~zero][:, ~zero].contiguous()
    first = torch.zeros(1, dtype=torch.int32)
    (values,), (bases,) = eigh([k[None]], [first])
    if zero.all():
        assert torch.equal(bases[0], torch.eye(d, dtype=dtype))
        assert not values.any()
        return
    assert_apart(bases[0], zero)
    n = len(plain)
    assert not values[0, n:].any()
    assert orthogonality(bases[0]) <= 2 * tolerances.qr(dtype, d)
    if eigh is eigh_eager or n > 12:  # no rotations: the solver sees the rest alone
        (of_rest,), (alone,) = eigh([plain[None]], [first])
        assert torch.equal(values[0, :n], of_rest[0])
        assert torch.equal(bases[0][~zero, :n], alone[0])
    k, q, w = k.double() / scale, bases[0].double(), values[0].double() / scale
    assert (k - q * w @ q.T).norm() <= 8 * tolerances.qr(dtype, d) * k.norm()


def refreshed(op, k: torch.Tensor, q: torch.Tensor, tolerance: float = 0.0):
    bases = q.contiguous().clone()[None]
    results = op(
        [k[None]], [bases], [torch.zeros(1, dtype=torch.int32)], [torch.ones(1) > 0], tolerance
    )
    return bases[0], [column[0][0] for column in results]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", REFRESH)
@given(problem=problems, share=share_of_zeros)
@some_examples
def test_refreshes_in_a_row(op, dtype, problem, share):
    """From a basis that keeps them apart, for factors that change otherwise."""
    d, rest, scale, seed = problem
    generator = torch.Generator().manual_seed(seed)
    zero = zeros(d, share, generator)
    live = (~zero).nonzero().flatten()
    q = torch.zeros(d, d, dtype=dtype)
    q[live, : len(live)] = random_orthogonal(len(live), generator).to(dtype)
    q[:, len(live) :] = torch.eye(d, dtype=dtype)[:, zero]
    for _ in range(4):
        k = (factor_of(zero, rest, generator) * scale).to(dtype)
        before, (q, (order, carry, outcome, _)) = q, refreshed(op, k, q)
        if zero.all():
            assert outcome == KEPT
            assert torch.equal(q, before)
            continue
        assert outcome == REFRESHED
        assert_apart(q, zero)
        assert orthogonality(q) <= tolerances.qr(dtype, d)
        assert order.sort().values.equal(torch.arange(d))
        assert order[len(live) :].equal(torch.arange(len(live), d))
        assert not carry[len(live) :, : len(live)].any()
        assert not carry[: len(live), len(live) :].any()
        torch.testing.assert_close(
            carry.double(), before.double().T @ q.double(), rtol=0, atol=2 * tolerances.qr(dtype, d)
        )
        rest_of = [matrix[live][:, : len(live)].contiguous() for matrix in (k[:, live], before, q)]
        of_k, of_q, found = rest_of
        wanted = refreshed(op, of_k, of_q)[0]
        exact = of_k.double() / scale
        found, wanted = (off_diagonal(b.double().T @ exact @ b.double()) for b in (found, wanted))
        assert found <= (1 + tolerances.DIAGONAL) * wanted + 8 * d * tolerances.unit(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", REFRESH)
@given(problem=problems, share=st.sampled_from(["one", "some", "all but one"]))
@some_examples
def test_a_basis_that_mixes_them_is_mended(op, dtype, problem, share):
    """As bases of old checkpoints may, or those of rows that have died out since."""
    d, rest, scale, seed = problem
    generator = torch.Generator().manual_seed(seed)
    zero = zeros(d, share, generator)
    if zero.all():
        return
    k = (factor_of(zero, rest, generator) * scale).to(dtype)
    q = random_orthogonal(d, generator).to(dtype)
    for _ in range(3):
        before, (q, (order, carry, outcome, _)) = q, refreshed(op, k, q)
        assert outcome == REFRESHED
        assert_apart(q, zero)
        assert orthogonality(q) <= tolerances.qr(dtype, d)
        assert order.sort().values.equal(torch.arange(d))
        exact = before.double().T @ q.double()
        torch.testing.assert_close(carry.double(), exact, rtol=0, atol=2 * tolerances.qr(dtype, d))


@pytest.mark.parametrize("op", REFRESH)
@pytest.mark.parametrize("d", [5, 40])
def test_rows_join_when_they_are_no_longer_zero(op, d):
    generator = torch.Generator().manual_seed(d)
    zero = zeros(d, "some", generator)
    (_,), (bases,) = eigh_eager([factor_of(zero, "full", generator)[None]], [torch.zeros(1).int()])
    q, dead = bases[0], zero.clone()
    dead[zero.nonzero()[0]] = False
    for still in (zero, dead, torch.zeros_like(zero)):
        k = factor_of(still, "full", generator)
        for _ in range(60):
            q = refreshed(op, k, q)[0]
        assert_apart(q, still)
        assert off_diagonal(q.T @ k @ q) < 0.05
        assert q[zero & ~still].count_nonzero() == (zero & ~still).sum() * (~still).sum()


@pytest.mark.parametrize("op", BY_QR)
def test_without_such_rows_no_bit_depends_on_them(op):
    """The diagonal of K may be zero where its row is not: squares of small numbers are."""
    k = torch.tensor([[1.0, 1e-30], [1e-30, 0.0]])
    q = random_orthogonal(2, torch.Generator().manual_seed(0)).float()
    expected = torch.linalg.qr(k @ q[:, (q.T @ k @ q).diagonal().argsort(descending=True)]).Q
    found = refreshed(op, k, q)[0]
    agreement = (found * expected).sum(0).abs()
    torch.testing.assert_close(agreement, torch.ones(2), **tolerances.PLAIN)

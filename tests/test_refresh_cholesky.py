"""The refresh that CUDA runs, on the CPU: hard factors, emulated tf32x3, whole trajectories."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial

import golden
import pytest
import tolerances
import torch
from factors import random_factor, random_orthogonal
from streams import assert_same_bits, needs_native
from test_golden import run
from test_refresh import off_diagonal, one, orthogonality
from tf32 import products_in_tf32x3

from soap_fast.backends.native import NativeBackend
from soap_fast.step.refresh import (
    FAILED,
    LEFT_OUT,
    REFRESHED,
    Lent,
    lending,
    refresh_by_cholesky,
    refresh_eager,
    refresh_native,
)
from soap_fast.step.refresh_batched import plain_refresh_on, refresh_batched

pytestmark = needs_native
by_cholesky_alone = partial(refresh_by_cholesky, householder_up_to=0)
SOAK = "SOAP_FAST_EXAMPLES" in os.environ  # `make soak`

ops = pytest.mark.parametrize(
    "op", [refresh_by_cholesky, refresh_batched], ids=["operator", "batched"]
)
precision = pytest.mark.parametrize(
    "products", [nullcontext, products_in_tf32x3], ids=["float32", "tf32x3"]
)


@ops
@precision
@pytest.mark.parametrize("d", [3, 5, 9, 16, 64, 320])
def test_rank_one_never_fails(products, d, op):
    """Gradients that are multiples of each other; every refresh counts, 1000 of them in a soak."""
    generator = torch.Generator().manual_seed(d)
    q = random_orthogonal(d, generator).float()
    direction = torch.randn(d, dtype=torch.float64, generator=generator)
    with products():
        for call in range(1000 if SOAK else 20 if d < 100 else 5):
            if call % 10 == 0:  # another direction, seldom: most refreshes are of a settled basis
                direction += torch.randn(d, dtype=torch.float64, generator=generator)
            k = (torch.outer(direction, direction) * 10.0 ** (call % 5 - 2)).float()
            q, (_, _, outcome, _) = one(op, k, q)
            assert outcome == REFRESHED, call
            assert orthogonality(q) <= tolerances.ORTHOGONAL, call


@ops
@precision
@pytest.mark.parametrize("rank", ["d/3", "d/2", "d - 2"])
@pytest.mark.parametrize("d", [34, 50, 96, 192])
def test_from_a_basis_that_is_far_from_a_singular_factor(products, d, rank, op):
    """Where Newton-Schulz alone left 1.4e-5: the columns of L1 are nearly dependent."""
    r = {"d/3": d // 3, "d/2": d // 2, "d - 2": d - 2}[rank]
    with products():
        for seed in range(60 if SOAK else 3):
            generator = torch.Generator().manual_seed(seed)
            vectors = random_orthogonal(d, generator)[:, :r]
            k, q = (vectors @ vectors.T).float(), random_orthogonal(d, generator).float()
            for _ in range(4):
                q, (_, _, outcome, _) = one(op, k, q)
                assert outcome == REFRESHED
                assert orthogonality(q) <= tolerances.ORTHOGONAL


@ops
@precision
def test_as_diagonalising_as_householder(products, op):
    """Four decades and seven passes from a random basis, against float64."""
    d, generator = 130, torch.Generator().manual_seed(0)
    vectors = random_orthogonal(d, generator)
    k = vectors * torch.logspace(0, -4, d, dtype=torch.float64) @ vectors.T
    exact = random_orthogonal(d, generator)
    q = exact.float()
    with products():
        for _ in range(7):
            q, exact = one(op, k.float(), q)[0], one(refresh_eager, k, exact)[0]
    found, wanted = off_diagonal(q.double().T @ k @ q.double()), off_diagonal(exact.T @ k @ exact)
    assert found == pytest.approx(wanted, rel=tolerances.DIAGONAL)


def several_panels(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Factors and bases of sizes around a panel of columns and above, some of low rank."""
    generator = torch.Generator().manual_seed(0)
    factors, bases = [], []
    for d, ranks in ((384, [384]), (386, [386, 100]), (500, [499])):
        vectors = [random_orthogonal(d, generator)[:, :rank] for rank in ranks]
        decades = [torch.logspace(0, -4, rank, dtype=torch.float64) for rank in ranks]
        k = [v * x @ v.T for v, x in zip(vectors, decades, strict=True)]
        factors.append(torch.stack(k).to(dtype))
        q = torch.stack([random_orthogonal(d, generator) for _ in ranks])
        bases.append(q.to(dtype).contiguous())
    return factors, bases


def all_of(factors: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor], float]:
    counts = [len(k) for k in factors]
    chosen = [torch.arange(count, dtype=torch.int32) for count in counts]
    return chosen, [torch.ones(count, dtype=torch.bool) for count in counts], 0.0


@pytest.mark.parametrize(
    ("dtype", "products"),
    [
        (torch.float32, nullcontext),
        (torch.float32, products_in_tf32x3),
        (torch.float64, nullcontext),
    ],
    ids=["float32", "tf32x3", "float64"],
)
def test_factors_of_several_panels(dtype, products):
    factors, bases = several_panels(dtype)
    exact = [q.double() for q in bases]
    with products():
        for _ in range(3):
            results = refresh_by_cholesky(factors, bases, *all_of(factors))
            assert all((outcomes == REFRESHED).all() for outcomes in results.outcomes)
            refresh_eager([k.double() for k in factors], exact, *all_of(factors))
    for of_k, of_q, of_exact in zip(factors, bases, exact, strict=True):
        for k, q, wanted in zip(of_k.double(), of_q.double(), of_exact, strict=True):
            assert orthogonality(q) <= tolerances.ORTHOGONAL
            assert off_diagonal(q.T @ k @ q) == pytest.approx(
                off_diagonal(wanted.T @ k @ wanted), rel=tolerances.DIAGONAL
            )


@precision
def test_panels_have_the_same_bits_whatever_the_threads(products):
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            factors, bases = several_panels(torch.float32)
            with products():
                found.append((refresh_by_cholesky(factors, bases, *all_of(factors)), bases))
    finally:
        torch.set_num_threads(before)
    for results, bases in found[1:]:
        assert_same_bits(bases, found[0][1])
        assert_same_bits([*map(list, results)], [*map(list, found[0][0])])


@ops
def test_a_factor_that_is_not_positive_fails_alone(op):
    """No Gram matrix has such a pivot; whatever made it, the basis stays and the others go on."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.stack([random_factor(40, 40, generator) for _ in range(3)])
    factors[1] = torch.diag(torch.linspace(1, -1, 40))
    bases = torch.stack([random_orthogonal(40, generator) for _ in range(3)])
    bases[1] = torch.eye(40)
    before = bases.clone()
    chosen, allowed = torch.arange(3, dtype=torch.int32), torch.ones(3, dtype=torch.bool)
    results = op([factors], [bases], [chosen], [allowed], 0.0)
    assert results.outcomes[0].tolist() == [REFRESHED, FAILED, REFRESHED]
    assert torch.equal(bases[1], before[1])
    assert torch.equal(results.orders[0][1], torch.arange(40))
    assert torch.equal(results.carries[0][1], torch.eye(40).double())


def test_an_index_outside_the_stack_is_a_failed_factor():
    """CUDA does not read selections on the host."""
    generator = torch.Generator().manual_seed(0)
    stacks = [(random_factor(d, d, generator)[None], torch.eye(d).double()[None]) for d in (5, 40)]
    chosen = [torch.tensor([1], dtype=torch.int32), torch.tensor([-1], dtype=torch.int32)]
    allowed = [torch.ones(1, dtype=torch.bool)] * 2
    results = refresh_by_cholesky(
        [k for k, _ in stacks], [q for _, q in stacks], chosen, allowed, 0.0
    )
    assert [int(outcome) for outcome in results.outcomes] == [FAILED, FAILED]
    assert all(off.isnan().all() for off in results.off_diagonals)
    assert all(torch.equal(q[0], torch.eye(len(q[0])).double()) for _, q in stacks)


@pytest.mark.parametrize("share", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_workspace_that_is_lent_changes_no_bit(dtype, share):
    """Too little for all factors, which then go in rounds, just enough, and more. It is used."""
    generator = torch.Generator().manual_seed(0)
    sizes = (5, 36, 45, 70)
    factors = [torch.stack([random_factor(d, d, generator) for _ in range(3)]) for d in sizes]
    bases = [torch.stack([random_orthogonal(d, generator) for _ in range(3)]) for d in sizes]
    factors, bases = ([x.to(dtype) for x in stacks] for stacks in (factors, bases))
    same, given = [q.clone() for q in bases], all_of(factors)
    wanted = refresh_by_cholesky(factors, bases, *given)
    needed = sum(3 * (4 if d % 4 == 0 else 5) * (-(-d // 4) * 4) ** 2 for d in sizes[1:])
    workspace = torch.full((int(share * needed),), torch.nan, dtype=dtype)
    with lending(Lent(workspace=workspace)):
        found = refresh_by_cholesky(factors, same, *given)
    assert_same_bits([*map(list, found)], [*map(list, wanted)])
    assert_same_bits(same, bases)
    assert not workspace[: min(needed, len(workspace)) // 2].isnan().any()
    assert workspace[needed:].isnan().all()


@pytest.mark.parametrize("shape", [(4, 4), (16, 2)])
def test_a_workspace_that_is_not_flat_is_refused(shape):
    generator = torch.Generator().manual_seed(0)
    k, q = random_factor(5, 5, generator), random_orthogonal(5, generator)
    with (
        lending(Lent(workspace=torch.empty(shape)[:, 0] if shape[1] == 2 else torch.empty(shape))),
        pytest.raises(RuntimeError, match="workspace must be 1-D, contiguous and on the device"),
    ):
        one(refresh_by_cholesky, k, q)


def orthogonal_stack(d: int, generator: torch.Generator) -> torch.Tensor:  # [1, d, d] float64
    return random_orthogonal(d, generator).contiguous()[None]


def test_more_stacks_than_a_table_holds():
    sizes = [*range(2, 46), *range(60, 105)]
    generator = torch.Generator().manual_seed(0)
    factors = [random_factor(d, d, generator)[None] for d in sizes]
    bases = [orthogonal_stack(d, generator) for d in sizes]
    expected = [q.clone() for q in bases]
    given = [torch.zeros(1, dtype=torch.int32)] * len(sizes), [torch.ones(1) > 0] * len(sizes), 0.0
    results = refresh_by_cholesky(factors, bases, *given)
    wanted = refresh_eager(factors, expected, *given)
    assert all(outcome == REFRESHED for outcome in results.outcomes)
    for found, order, q, wanted_order in zip(
        bases, results.orders, expected, wanted.orders, strict=True
    ):
        assert torch.equal(order, wanted_order)
        aligned = found * (found * q).sum(1, keepdim=True).sign()
        torch.testing.assert_close(aligned, q, **tolerances.BASES_64)


def test_strided_factors_and_selections():
    generator = torch.Generator().manual_seed(0)
    wide = torch.stack([random_factor(80, 80, generator) for _ in range(6)])
    k, q = wide[::2, ::2, ::2], torch.stack([random_orthogonal(40, generator) for _ in range(3)])
    chosen = torch.tensor([2, 9, 0, 9], dtype=torch.int32)[::2]
    allowed = torch.ones(4, dtype=torch.bool)[::2]
    same = q.clone()
    found = by_cholesky_alone([k], [q], [chosen], [allowed], 0.0)
    plain = by_cholesky_alone(
        [k.contiguous()], [same], [chosen.contiguous()], [allowed.contiguous()], 0.0
    )
    assert_same_bits([*map(list, found)], [*map(list, plain)])
    assert torch.equal(q, same)


def test_householder_sizes_that_no_warp_can_have():
    generator = torch.Generator().manual_seed(0)
    k, q = random_factor(5, 5, generator), random_orthogonal(5, generator)
    with pytest.raises(RuntimeError, match=r"householder_up_to=33 is outside \[0, 32\]"):
        one(partial(refresh_by_cholesky, householder_up_to=33), k, q)


def test_opcheck():
    generator = torch.Generator().manual_seed(0)
    factors = [random_factor(d, d, generator)[None] for d in (5, 40)]
    bases = [orthogonal_stack(d, generator) for d in (5, 40)]
    chosen, allowed = [torch.zeros(1, dtype=torch.int32)] * 2, [torch.ones(1) > 0] * 2
    given = factors, bases, chosen, allowed, 0.0
    results = refresh_by_cholesky(*given)
    op = torch.ops.soap_fast.refresh_by_cholesky_.default
    torch.library.opcheck(op, (*given, *results, 32))
    torch.library.opcheck(op, (*given, *results, 32, torch.empty(40000, dtype=torch.float64)))


@precision
@pytest.mark.parametrize(
    "op",
    [refresh_by_cholesky, by_cholesky_alone, refresh_batched],
    ids=["gpu", "cholesky", "batched"],
)
@pytest.mark.parametrize("case", golden.CASES)
def test_golden_traces(monkeypatch, case, op, products):
    """All sizes of the traces are small: as the GPU does them, and all by Cholesky."""
    monkeypatch.setattr(NativeBackend, "refresh_op", lambda self, *args: op(*args))
    trace = golden.load(case)
    with products():
        for call, params, optimizer in run(trace, backend="native"):
            assert sum(optimizer.stats()["failed"].values()) == 0, call
            for i, param in enumerate(params):
                expected = trace.params[call - 1][i]
                moved = (expected - trace.init[i]).abs().max().clamp_min(1e-30)
                assert (param - expected).abs().max() / moved <= tolerances.TRACE, (call, i)


def test_the_stacks_of_a_real_model():
    """Sizes of ELIC, one factor of each: all refreshed, as the CPU's own refresh does it."""
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 5, 16, 32, 64, 96, 160, 192, 224, 320, 469)
    grams = [torch.randn(d, d + 8, generator=generator) for d in sizes]
    factors = [(g @ g.T / len(g))[None] for g in grams]
    bases = [orthogonal_stack(d, generator).float() for d in sizes]
    others = [q.clone() for q in bases]
    given = [torch.zeros(1, dtype=torch.int32)] * len(sizes), [torch.ones(1) > 0] * len(sizes), 0.0
    for _ in range(3):
        results = refresh_by_cholesky(factors, bases, *given)
        refresh_native(factors, others, *given)
        assert all(outcome == REFRESHED for outcome in results.outcomes)
    for k, q, other in zip(factors, bases, others, strict=True):
        rotated = [b[0].double().T @ k[0].double() @ b[0].double() for b in (q, other)]
        found, wanted = map(off_diagonal, rotated)
        assert found == pytest.approx(wanted, rel=tolerances.DIAGONAL, abs=len(k[0]) * tolerances.U)


def test_without_the_extension_a_gpu_does_without_qr():
    assert plain_refresh_on("cuda") is refresh_batched
    assert plain_refresh_on("cpu") is refresh_eager


def test_batches_that_do_not_fit_into_the_workspace_go_one_after_the_other(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    factors = torch.stack([random_factor(12, 12, generator) for _ in range(5)])
    bases = torch.stack([random_orthogonal(12, generator) for _ in range(5)])
    chosen, flags = torch.tensor([4, 0, 3], dtype=torch.int32), torch.tensor([True, False, True])
    same, given = bases.clone(), ([chosen], [flags], 0.0)
    wanted = refresh_batched([factors], [bases], *given)
    monkeypatch.setattr("soap_fast.step.refresh_batched.WORKSPACE", 1)
    found = refresh_batched([factors], [same], *given)
    assert wanted.outcomes[0].tolist() == [REFRESHED, LEFT_OUT, REFRESHED]
    torch.testing.assert_close(found, wanted, **tolerances.EXACT_64, equal_nan=True)
    torch.testing.assert_close(same, bases, **tolerances.EXACT_64)

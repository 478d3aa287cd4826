"""On an NVIDIA GPU: the extension's refresh against its definition, without waiting, in a graph."""

from __future__ import annotations

import golden
import pytest
import tolerances
import torch
from devices import operators_on_both as on_both
from devices import operators_on_gpu as on_gpu
from factors import random_factor, random_orthogonal
from streams import assert_same_bits
from test_golden import run
from tf32 import product_error

from soap_fast.backends.triton.products import products_by
from soap_fast.step.refresh import FAILED, KEPT, LEFT_OUT, REFRESHED, refresh_eager, refresh_native

SIZES = {
    "cpu": (1, 2, 3, 9, 32, 33, 65, 130),
    "cuda": (1, 2, 3, 5, 9, 17, 32, 33, 64, 65, 96, 130, 192, 320, 469, 1152),
}


def stacks(device, sizes, dtype=torch.float32, n=5):
    """K and Q on the device; of each stack the third is zero and the fourth is not finite."""
    generator = torch.Generator().manual_seed(0)
    factors, bases = [], []
    for d in sizes:
        k = torch.stack([random_factor(d, d, generator) for _ in range(n)]).to(dtype)
        k[2] = 0
        k[3, d - 1, d - 1] = torch.nan
        factors.append(k.to(device))
        bases.append(
            torch.stack([random_orthogonal(d, generator) for _ in range(n)]).to(dtype).to(device)
        )
    chosen = [torch.tensor([4, 0, 3, 2], dtype=torch.int32, device=device) for _ in sizes]
    allowed = [torch.tensor([True, False, True, True], device=device) for _ in sizes]
    return factors, bases, chosen, allowed, 0.0


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refresh_is_its_twin(device, dtype):
    given = stacks(device, SIZES[device], dtype)
    check_against_its_twin(given, SIZES[device], dtype, 0.0)


@on_gpu
@pytest.mark.parametrize("precision", ["tf32x3", "ieee"])
def test_refresh_by_the_kernels_products_is_its_twin(device, precision):
    """Panels, tiles of every class, rows at any address: as a step refreshes."""
    from soap_fast.backends.triton.launch.launcher import TritonLauncher

    launcher = TritonLauncher(torch.cuda.get_device_properties(device).multi_processor_count)
    sizes = SIZES["cuda"]
    with products_by(launcher, precision):
        error = product_error(precision, max(sizes))
        check_against_its_twin(stacks(device, sizes), sizes, torch.float32, error)


def check_against_its_twin(given, sizes, dtype, of_products):
    """Of refresh_native; `of_products`: what its products err by beyond float32, of sum |a| |b|."""
    factors, bases, *rest = given
    device = factors[0].device
    exact = [q.double().clone() for q in bases]  # both are refreshed in place
    before = [q.clone() for q in bases]
    found = refresh_native(*given)
    wanted = refresh_eager([k.double() for k in factors], exact, *rest)
    for s, d in enumerate(sizes):
        allowed = 2 * tolerances.qr(dtype, d) + of_products
        assert found.outcomes[s].tolist() == [REFRESHED, LEFT_OUT, FAILED, KEPT]
        assert torch.equal(bases[s][:4], before[s][:4])
        q, k = bases[s][4].double(), factors[s][4].double()
        assert (q.T @ q - torch.eye(d, device=device)).abs().max() <= allowed
        shares = [_off_diagonal(b.T @ k @ b) for b in (q, exact[s][4])]
        assert shares[0] <= (1 + tolerances.DIAGONAL) * shares[1] + 2 * d * tolerances.unit(dtype)
        carry = before[s][4].double().T @ q
        assert (found.carries[s][0] - carry).abs().max() <= allowed
        for i in (1, 2, 3):
            assert torch.equal(found.carries[s][i], torch.eye(d, device=device, dtype=dtype))
        off, expected = found.off_diagonals[s].double(), wanted.off_diagonals[s]
        assert torch.equal(off.isnan(), expected.isnan())
        assert (off - expected).abs().nan_to_num().max() <= allowed


def _off_diagonal(matrix: torch.Tensor) -> float:
    return float((matrix - matrix.diagonal().diag()).norm() / matrix.norm().clamp_min(1e-30))


@on_gpu
def test_two_runs_have_the_same_bits_and_wait_for_nothing(device):
    one, other = (stacks(device, SIZES[device]) for _ in range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [refresh_native(*given) for given in (one, other)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(one[1], other[1])
    assert_same_bits([*map(list, results[0])], [*map(list, results[1])])


@on_gpu
def test_in_a_cuda_graph(device):
    """Captured once, replayed on factors that have changed since."""
    factors, bases, *rest = stacks(device, (3, 17, 64, 130))
    start = [q.clone() for q in bases]
    refresh_native(factors, bases, *rest)  # libraries set themselves up outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = refresh_native(factors, bases, *rest)
    for k, q, old in zip(factors, bases, start, strict=True):
        k.mul_(2).add_(torch.eye(k.shape[1], device=device))
        q.copy_(old)
    graph.replay()
    wanted = refresh_native(factors, start, *rest)
    assert_same_bits(bases, start)
    assert_same_bits([*map(list, results)], [*map(list, wanted)])


@on_gpu
@pytest.mark.parametrize("case", golden.CASES)
def test_golden_traces(case, device):
    trace = golden.load(case)
    trace.init = [p.to(device) for p in trace.init]
    trace.grads = [[g.to(device) for g in grads] for grads in trace.grads]
    for call, params, _ in run(trace, backend="native"):
        for i, param in enumerate(params):
            expected, start = trace.params[call - 1][i], trace.init[i].cpu()
            moved = (expected - start).abs().max().clamp_min(1e-30)
            assert (param.cpu() - expected).abs().max() / moved <= tolerances.TRACE


@on_gpu
@pytest.mark.parametrize("d", [33, 64, 320])
def test_a_thousand_rank_one_refreshes(d, device):
    generator = torch.Generator().manual_seed(d)
    q = random_orthogonal(d, generator).float().contiguous().to(device)[None]
    g = torch.randn(1000, d, generator=generator).to(device)
    chosen, allowed = (
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.ones(1, device=device) > 0,
    )
    for row in g:
        results = refresh_native([torch.outer(row, row)[None]], [q], [chosen], [allowed], 0.0)
        assert int(results.outcomes[0]) == REFRESHED
    gram = q[0].double().T @ q[0].double()
    assert (gram - torch.eye(d, device=device)).abs().max() <= tolerances.ORTHOGONAL

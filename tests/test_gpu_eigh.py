"""The extension's eigh on an NVIDIA GPU; what does not ask for one, on the CPU as well.

Solvers are compared with float64, never with each other in float32.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from devices import operators_on_both as on_both
from devices import operators_on_gpu as on_gpu
from tolerances import PLAIN, PLAIN_64, eigensolver

from soap_fast.step.eigh import eigh_eager, eigh_native

# On both sides of the largest size of our own kernel, and more sizes than streams.
SIZES = {
    "cpu": (1, 3, 32, 33, 100),
    "cuda": (1, 3, 17, 32, 33, 34, 48, 64, 96, 100, 130, 192, 320, 640),
}


def factors_of(device, sizes, dtype, count=4, seed=0) -> list[torch.Tensor]:
    """Gram matrices on the device, a stack for each size."""
    generator = torch.Generator().manual_seed(seed)
    stacks = []
    for d in sizes:
        g = torch.randn(count, d, d + 3, dtype=torch.float64, generator=generator)
        stacks.append((g @ g.mT / d).to(dtype).to(device))
    return stacks


def everything(stacks) -> list[torch.Tensor]:
    return [torch.arange(len(stack), dtype=torch.int32, device=stack.device) for stack in stacks]


def assert_solves(stack, values, basis, *, residuals: bool = True) -> None:
    """Orthogonal for every factor; descending and an eigendecomposition for those with values.

    K Q = Q diag(w) + R makes w the eigenvalues of K - R Q⁻¹, so by Weyl none is further off than
    |R| |Q⁻¹|, and Q is orthogonal but for a rounding: a hundredth is more than that takes. LAPACK
    in float64 says where they are, to a rounding of its own.
    """
    d, bound = stack.shape[1], eigensolver(stack.dtype, stack.shape[1])
    basis, stack = basis.cpu().double(), stack.cpu().double()
    gram = basis.mT @ basis
    assert (gram - torch.eye(d, dtype=torch.float64)).abs().max() <= bound, d
    good = ~values.cpu().isnan().any(1)
    K, w, Q = stack[good], values.cpu()[good].double(), basis[good]
    assert (w.diff(dim=1) <= 0).all(), d
    norm = torch.linalg.matrix_norm(K)
    residual = torch.linalg.matrix_norm(K @ Q - Q * w[:, None])
    assert not residuals or (residual <= bound * norm).all(), d
    exact = torch.linalg.eigvalsh(K).flip(1)
    allowed = 1.01 * bound + eigensolver(torch.float64, d)
    assert ((w - exact).abs() <= allowed * norm[:, None]).all(), d


def lower(stack: torch.Tensor) -> torch.Tensor:
    """Symmetric, by the triangle that is read."""
    return stack.tril() + stack.tril(-1).mT


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigh_is_its_twin(device, dtype):
    """Each by what float64 says, and both give up on the same factors."""
    stacks = factors_of(device, SIZES[device], dtype)
    for stack in stacks[1::2]:
        stack[1] = 0
    for stack in stacks[2:]:
        stack[2, 2, 1] = torch.nan
        stack[0, -1, -1] = torch.inf
    chosen = everything(stacks)
    found, twin = (eigh(stacks, chosen) for eigh in (eigh_native, eigh_eager))
    # On a GPU the twin is whatever solver torch takes, whose residuals are not ours to bound.
    for results, ours in ((found, True), (twin, device == "cpu")):
        for stack, values, basis in zip(stacks, *results, strict=True):
            assert torch.equal(values.isnan().any(1), values.isnan().all(1))
            assert_solves(lower(stack), values, basis, residuals=ours)
    for values, wanted in zip(found[0], twin[0], strict=True):
        assert torch.equal(values.isnan(), wanted.isnan())
    for values, basis in list(zip(*found, strict=True))[2:]:
        identity = torch.eye(basis.shape[1], dtype=dtype, device=device)
        assert torch.equal(basis[2], identity)
        assert torch.equal(basis[0], identity)
        assert values[[0, 2]].isnan().all()
        assert values[3].isfinite().all()


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigh_reads_the_lower_triangle_and_any_scale(device, dtype):
    stacks = factors_of(device, (33, 100), dtype)
    powers = torch.tensor([2.0**-90, 1, 2.0**40, 2.0**90], dtype=dtype, device=device)
    scaled = [stack * powers[:, None, None] for stack in stacks]
    for stack in scaled:
        stack.masked_fill_(torch.ones_like(stack[0]).triu(1).bool(), torch.nan)
    values, bases = eigh_native(scaled, everything(scaled))
    expected, _ = eigh_native(stacks, everything(stacks))
    for stack, found, wanted, basis in zip(stacks, values, expected, bases, strict=True):
        plain = PLAIN if dtype == torch.float32 else PLAIN_64
        torch.testing.assert_close(found / powers[:, None], wanted, **plain)
        assert_solves(lower(stack), found / powers[:, None], basis)


@on_gpu
@pytest.mark.parametrize("d", [9, 40, 140])
def test_eigh_reports_an_index_outside_the_stack(device, d):
    (stack,) = factors_of(device, (d,), torch.float32)
    chosen = torch.tensor([3, 4, 0, -1], dtype=torch.int32, device=device)
    (values,), (bases,) = eigh_native([stack], [chosen])
    assert values[[1, 3]].isnan().all()
    assert torch.equal(bases[1], torch.eye(d, device=device))
    assert_solves(stack[[3, 0]], values[[0, 2]], bases[[0, 2]])


@on_gpu
def test_eigh_on_another_stream_is_ready_at_once(device):
    """What comes before and after on the current stream does, whatever streams eigh uses."""
    sources = factors_of(device, SIZES[device], torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for call in range(5):
        with torch.cuda.stream(stream):
            stacks = [torch.zeros_like(source) for source in sources]
            torch.cuda._sleep(20_000_000)  # 10 ms: reading too early finds zeros
            for stack, source in zip(stacks, sources, strict=True):
                stack.copy_(source * (call + 1))
            values, bases = eigh_native(stacks, everything(stacks))
            copies = [
                (value.clone(), basis.clone()) for value, basis in zip(values, bases, strict=True)
            ]
            del stacks, values, bases  # their memory is taken again in the next round
        stream.synchronize()
        for source, (value, basis) in zip(sources, copies, strict=True):
            assert_solves(source * (call + 1), value, basis)


@on_gpu
def test_eigh_in_more_than_one_batch(device):
    """17000 factors are more than cuSOLVER gets at a time."""
    (few,) = factors_of(device, (33,), torch.float32, count=100)
    stack = few.repeat(170, 1, 1)
    (values,), (bases,) = eigh_native([stack], everything([stack]))
    assert_solves(stack, values, bases)


def warnings_of(capfd, text: str, act: Callable[[], object]) -> int:
    """How often torch warns so while something is done.

    An operator that is called through `torch.ops` warns on stderr; others, and perhaps later
    versions of torch, by Python's warnings.
    """
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        act()
    printed = re.findall(text, capfd.readouterr().err)
    return len(printed) + sum(text in str(warning.message) for warning in noted)


@on_gpu
@pytest.mark.skipif(
    tuple(map(int, (torch.version.cuda or "0.0").split("."))) < (12, 8),
    reason="torch's cuSOLVER may lack cusolverDnXsyevBatched, which came with CUDA 12.6 update 2",
)
def test_eigh_waits_once_for_all_sizes(device, capfd):
    stacks = factors_of(device, SIZES[device], torch.float32)
    chosen = everything(stacks)
    eigh_native(stacks, chosen)  # the first time it waits for cuSOLVER to be loaded too
    torch.cuda.synchronize()
    waits = "called a synchronizing CUDA operation"
    torch.cuda.set_sync_debug_mode("warn")
    try:
        noticed = warnings_of(capfd, waits, stacks[0].sum().item)
        found = warnings_of(capfd, waits, lambda: eigh_native(stacks, chosen))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert noticed >= 1
    assert found == 1


def test_warnings_of_operators_are_counted(capfd):
    """On whichever of two ways they come."""
    resized = "output with one or more elements was resized"
    ones = torch.ones(4), torch.ones(4)
    for add in (torch.ops.aten.add.out, torch.add):
        found = warnings_of(capfd, resized, lambda add=add: add(*ones, out=torch.ones(3)))
        assert found == 1
    assert warnings_of(capfd, resized, lambda: torch.add(*ones)) == 0


@on_both
def test_eigh_from_two_threads(device):
    """Both need the same handles and streams."""
    stacks = factors_of(device, (33, 96, 130), torch.float32, count=12)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(eigh_native, stacks, everything(stacks)) for _ in range(8)]
        for call in calls:
            for stack, values, basis in zip(stacks, *call.result(), strict=True):
                assert_solves(stack, values, basis)

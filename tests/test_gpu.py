"""On an NVIDIA GPU: the same steps, no waiting, and the CUDA half of the extension."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import golden
import pytest
import torch
from streams import SHAPES, parameters, set_gradients
from test_golden import run

from soap_fast import SOAP, extension
from soap_fast.eigh import eigh_eager, eigh_native

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


@pytest.mark.parametrize("case", golden.CASES)
def test_golden_traces(case):
    trace = golden.load(case)
    trace.init = [p.cuda() for p in trace.init]
    trace.grads = [[g.cuda() for g in grads] for grads in trace.grads]
    for call, params, _ in run(trace):
        for i, param in enumerate(params):
            expected, start = trace.params[call - 1][i], trace.init[i].cpu()
            moved = (expected - start).abs().max().clamp_min(1e-30)
            assert (param.cpu() - expected).abs().max() / moved <= golden.TOLERANCE


def test_several_devices_in_one_group():
    near, alone = parameters(((3, 2),))[0], parameters(((3, 2),))[0]
    far = torch.nn.Parameter(near.detach().cuda())
    optimizer = SOAP([near, far], precondition_frequency=2)
    single = SOAP([alone], precondition_frequency=2, backend="eager")
    for call in range(8):
        set_gradients([alone], call)
        near.grad, far.grad = alone.grad.clone(), alone.grad.cuda()
        optimizer.step()
        single.step()
    torch.testing.assert_close(near.data, alone.data, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(far.data.cpu(), alone.data, rtol=1e-4, atol=1e-5)
    assert optimizer.state[near]["exp_avg"].device.type == "cpu"
    assert optimizer.state[far]["exp_avg"].device.type == "cuda"


def test_saving_takes_no_memory_of_the_device():
    params = [torch.nn.Parameter(torch.randn(512, 512, device="cuda")) for _ in range(8)]
    optimizer = SOAP(params)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.state_dict()
    assert torch.cuda.max_memory_allocated() - before <= 2 * params[0].nbytes  # a tensor at a time


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_later_calls_do_not_wait(dtype):
    params = [torch.nn.Parameter(p.detach().cuda()) for p in parameters(dtype=dtype)]
    optimizer = SOAP(params, precondition_frequency=2)
    for call in range(6):
        twins = parameters(SHAPES, dtype)
        set_gradients(twins, call)
        for param, twin in zip(params, twins, strict=True):
            param.grad = twin.grad.cuda()
        torch.cuda.set_sync_debug_mode("default" if call == 0 else "error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(param.isfinite().all() for param in params)


needs_cuda_build = pytest.mark.skipif(
    not (extension.build_info() or {}).get("cuda"), reason="the extension was built without CUDA"
)
# On both sides of the largest size of our own kernel, and more sizes than streams.
SIZES = (1, 3, 17, 32, 33, 34, 48, 64, 96, 100, 130, 192, 320, 640)


def factors_of(sizes, dtype, count=4, seed=0) -> list[torch.Tensor]:
    """Gram matrices on the GPU, a stack for each size."""
    generator = torch.Generator().manual_seed(seed)
    stacks = []
    for d in sizes:
        g = torch.randn(count, d, d + 3, dtype=torch.float64, generator=generator)
        stacks.append((g @ g.mT / d).to(dtype).cuda())
    return stacks


def everything(stacks) -> list[torch.Tensor]:
    return [torch.arange(len(stack), dtype=torch.int32, device="cuda") for stack in stacks]


def assert_solves(stack, values, basis) -> None:
    """Orthogonal for every factor; descending and an eigendecomposition for those with values."""
    d, bound = stack.shape[1], 20 * torch.finfo(stack.dtype).eps * stack.shape[1] ** 0.5
    gram = basis.double().mT @ basis.double()
    assert (gram - torch.eye(d, device="cuda").double()).abs().max() <= bound, d
    good = ~values.isnan().any(1)
    K, w, Q = stack[good].double(), values[good].double(), basis[good].double()
    assert (w.diff(dim=1) <= 0).all(), d
    residual = torch.linalg.matrix_norm(K @ Q - Q * w[:, None])
    assert (residual <= bound * torch.linalg.matrix_norm(K)).all(), d


def assert_is_its_twin(stacks, chosen, values, bases) -> None:
    expected, _ = eigh_eager(stacks, chosen)
    for stack, index, found, basis, wanted in zip(
        stacks, chosen, values, bases, expected, strict=True
    ):
        d, eps = stack.shape[1], torch.finfo(stack.dtype).eps
        good = ~wanted.isnan().any(1)
        assert torch.equal(good, ~found.isnan().any(1)), d
        assert torch.equal(found.isnan().any(1), found.isnan().all(1)), d
        scale = wanted[good].abs().amax(1, keepdim=True).clamp_min(1e-30)
        assert ((found - wanted)[good] / scale).abs().max() <= 20 * eps * d**0.5, d
        assert_solves(stack[index.long()], found, basis)


@needs_cuda_build
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigh_is_its_twin(dtype):
    stacks = factors_of(SIZES, dtype)
    for stack in stacks[1::2]:
        stack[1] = 0
    for stack in stacks[2:]:
        stack[2, 2, 1] = torch.nan
        stack[0, -1, -1] = torch.inf
    values, bases = eigh_native(stacks, everything(stacks))
    assert_is_its_twin(stacks, everything(stacks), values, bases)
    for found, basis in zip(values[2:], bases[2:], strict=True):
        identity = torch.eye(basis.shape[1], dtype=dtype, device="cuda")
        assert torch.equal(basis[2], identity)
        assert torch.equal(basis[0], identity)
        assert found[[0, 2]].isnan().all()
        assert found[3].isfinite().all()


@needs_cuda_build
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigh_reads_the_lower_triangle_and_any_scale(dtype):
    stacks = factors_of((33, 100), dtype)
    powers = torch.tensor([2.0**-90, 1, 2.0**40, 2.0**90], dtype=dtype, device="cuda")
    scaled = [stack * powers[:, None, None] for stack in stacks]
    for stack in scaled:
        stack.masked_fill_(torch.ones_like(stack[0]).triu(1).bool(), torch.nan)
    values, bases = eigh_native(scaled, everything(scaled))
    expected, _ = eigh_native(stacks, everything(stacks))
    for stack, found, wanted, basis in zip(stacks, values, expected, bases, strict=True):
        torch.testing.assert_close(found / powers[:, None], wanted)
        assert_solves(stack, found / powers[:, None], basis)


@needs_cuda_build
@pytest.mark.parametrize("d", [9, 40, 140])
def test_eigh_reports_an_index_outside_the_stack(d):
    (stack,) = factors_of((d,), torch.float32)
    chosen = torch.tensor([3, 4, 0, -1], dtype=torch.int32, device="cuda")
    (values,), (bases,) = eigh_native([stack], [chosen])
    assert values[[1, 3]].isnan().all()
    assert torch.equal(bases[1], torch.eye(d, device="cuda"))
    assert_solves(stack[[3, 0]], values[[0, 2]], bases[[0, 2]])


@needs_cuda_build
def test_eigh_on_another_stream_is_ready_at_once():
    """What comes before and after on the current stream does, whatever streams eigh uses."""
    sources = factors_of(SIZES, torch.float32)
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


@needs_cuda_build
def test_eigh_in_more_than_one_batch():
    """17000 factors are more than cuSOLVER gets at a time."""
    (few,) = factors_of((33,), torch.float32, count=100)
    stack = few.repeat(170, 1, 1)
    (values,), (bases,) = eigh_native([stack], everything([stack]))
    assert_solves(stack, values, bases)


@needs_cuda_build
@pytest.mark.skipif(
    tuple(map(int, (torch.version.cuda or "0.0").split("."))) < (12, 8),
    reason="torch's cuSOLVER may lack cusolverDnXsyevBatched, which came with CUDA 12.6 update 2",
)
def test_eigh_waits_once_for_all_sizes(recwarn):
    stacks = factors_of(SIZES, torch.float32)
    chosen = everything(stacks)
    eigh_native(stacks, chosen)  # the first time it waits for cuSOLVER to be loaded too
    torch.cuda.synchronize()
    recwarn.clear()
    warnings.simplefilter("always")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        eigh_native(stacks, chosen)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in recwarn if "synchroniz" in str(w.message)]) == 1


@needs_cuda_build
def test_eigh_from_two_threads():
    """Both need the same handles and streams."""
    stacks = factors_of((33, 96, 130), torch.float32, count=12)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(eigh_native, stacks, everything(stacks)) for _ in range(8)]
        for call in calls:
            for stack, values, basis in zip(stacks, *call.result(), strict=True):
                assert_solves(stack, values, basis)

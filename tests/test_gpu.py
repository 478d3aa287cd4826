"""On an NVIDIA GPU: the same steps, and no waiting."""

from __future__ import annotations

import golden
import pytest
import tolerances
import torch
from streams import SHAPES, parameters, set_gradients
from test_golden import run

from soap_fast import SOAP

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
            assert (param.cpu() - expected).abs().max() / moved <= tolerances.TRACE


def test_several_devices_in_one_group():
    near, alone = parameters(((3, 3),))[0], parameters(((3, 3),))[0]
    far = torch.nn.Parameter(near.detach().cuda())
    optimizer = SOAP([near, far], precondition_frequency=2)
    single = SOAP([alone], precondition_frequency=2, backend="eager")
    for call in range(8):
        set_gradients([alone], call)
        near.grad, far.grad = alone.grad.clone(), alone.grad.cuda()
        optimizer.step()
        single.step()
    torch.testing.assert_close(near.data, alone.data, **tolerances.FEW_CALLS)
    torch.testing.assert_close(far.data.cpu(), alone.data, **tolerances.FEW_CALLS)
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

"""On an NVIDIA GPU: the same steps, no waiting, and the CUDA half of the extension."""

from __future__ import annotations

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


@pytest.mark.skipif(
    not (extension.build_info() or {}).get("cuda"), reason="the extension was built without CUDA"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigh_is_its_twin(dtype):
    generator = torch.Generator().manual_seed(0)
    stacks = []
    for d in (1, 3, 17, 33, 96, 320):
        g = torch.randn(4, d, d + 3, dtype=torch.float64, generator=generator)
        stacks.append((g @ g.mT / d).to(dtype).cuda())
    stacks[2][1] = 0
    stacks[3][2, 5, 5] = torch.nan
    chosen = [torch.arange(4, dtype=torch.int32, device="cuda") for _ in stacks]
    values, bases = eigh_native(stacks, chosen)
    expected, _ = eigh_eager(stacks, chosen)
    for stack, found, basis, wanted in zip(stacks, values, bases, expected, strict=True):
        d, eps = stack.shape[1], torch.finfo(dtype).eps
        good = ~wanted.isnan().any(1)
        assert torch.equal(good, ~found.isnan().any(1))
        scale = wanted[good].abs().amax(1, keepdim=True).clamp_min(1e-30)
        assert ((found - wanted)[good] / scale).abs().max() <= 20 * eps * d**0.5
        gram = basis.double().mT @ basis.double()
        assert (gram - torch.eye(d, device="cuda").double()).abs().max() <= 20 * eps * d**0.5
        residual = stack.double() @ basis.double() - basis.double() * found.double()[:, None]
        norms = torch.linalg.matrix_norm(stack.double()).clamp_min(1e-30)
        assert (torch.linalg.matrix_norm(residual)[good] / norms[good]).max() <= 20 * eps * d**0.5

"""CUDA graphs on a GPU: replays follow the eager steps, whatever lr becomes and streams do."""

from __future__ import annotations

import pytest
import torch
from streams import parameters

from soap_fast import SOAP, GraphedStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

SHAPES = ((32, 16, 3, 3), (5,), (48, 40))


def on_gpu():
    return [torch.nn.Parameter(p.detach().cuda()) for p in parameters(SHAPES)]


def gradients_of(params, call):
    generator = torch.Generator().manual_seed(1000 + call)
    return [torch.randn(p.shape, generator=generator).cuda() for p in params]


def test_replays_are_the_steps():
    """Two optimizers, the same gradients and learning rates, three refreshes."""
    ends = []
    for graphed in (False, True):
        params = on_gpu()
        lr = torch.tensor(1e-3, device="cuda")
        optimizer = SOAP(params, lr=lr, backend="triton", precondition_frequency=5)
        static = gradients_of(params, 0)
        for param, grad in zip(params, static, strict=True):
            param.grad = grad
        step = GraphedStep(optimizer) if graphed else optimizer.step
        for call in range(18):
            for grad, new in zip(static, gradients_of(params, call), strict=True):
                grad.copy_(new)
            lr.fill_(1e-3 / (1 + call))
            step()
        torch.cuda.synchronize()
        assert {optimizer.state[p]["calls"] for p in params} == {18}
        ends.append([p.detach().clone() for p in params])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


def test_a_model_is_trained_whole_in_two_graphs():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.GELU(), torch.nn.Conv2d(16, 3, 3)
    ).cuda()
    images = torch.randn(4, 3, 16, 16, device="cuda")
    lr = torch.tensor(3e-3, device="cuda")
    optimizer = SOAP(model.parameters(), lr=lr, backend="triton")

    def body():
        optimizer.zero_grad(set_to_none=True)
        loss = model(images).square().mean()
        loss.backward()
        return loss

    step = GraphedStep(optimizer, body)
    losses = [float(step()) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_steps_on_two_streams_follow_each_other():
    params, others = on_gpu(), on_gpu()
    one = SOAP(params, backend="triton")
    other = SOAP(others, backend="triton")
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    train_on_gpu(one, params, range(12))
    torch.cuda.synchronize()
    for call in range(12):
        with torch.cuda.stream(streams[call % 2]):
            train_on_gpu(other, others, [call])
    torch.cuda.synchronize()
    for a, b in zip(params, others, strict=True):
        assert torch.equal(a, b)


def train_on_gpu(optimizer, params, calls):
    for call in calls:
        for param, grad in zip(params, gradients_of(params, call), strict=True):
            param.grad = grad
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"normalize_grads": True}])
def test_no_step_waits(options):
    params = on_gpu()
    optimizer = SOAP(params, backend="triton", precondition_frequency=2, **options)
    train_on_gpu(optimizer, params, [0])
    grads = [gradients_of(params, call) for call in range(1, 6)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for given in grads:
            for param, grad in zip(params, given, strict=True):
                param.grad = grad
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_number_as_lr_is_refused():
    params = on_gpu()
    optimizer = SOAP(params, lr=1e-3, backend="triton")
    train_on_gpu(optimizer, params, range(3))
    with (
        pytest.raises(RuntimeError, match=r"has lr=0\.001"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()

"""Under torch.amp.GradScaler: gradients are unscaled within the step, or the step is left out."""

from __future__ import annotations

import pytest
import torch
from streams import backends, parameters, snapshot, train

from soap_fast import SOAP
from soap_fast.backends.triton import interpreted

SHAPES = ((6, 4, 3, 3), (5,), (8, 8))
BACKENDS = [
    *backends(),
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            not interpreted(), reason="interprets kernels: TRITON_INTERPRET is not set"
        ),
    ),
]


def scaled_step(optimizer, params, scaler, call, poison=None):
    """A backward pass whose gradients are those of call `call`, times the scale."""
    generator = torch.Generator().manual_seed(1000 + call)
    gradients = [torch.randn(p.shape, generator=generator) for p in params]
    optimizer.zero_grad()
    loss = sum((p * g).sum() for p, g in zip(params, gradients, strict=True))
    scaler.scale(loss).backward()
    if poison is not None:
        params[0].grad.view(-1)[0] = poison
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scaled_gradient_gives_the_same_step(backend):
    plain, scaled = parameters(SHAPES), parameters(SHAPES)
    one, other = SOAP(plain, backend=backend), SOAP(scaled, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for call in range(4):
        train(one, plain, [call])
        scaled_step(other, scaled, scaler, call)
    for p, q in zip(plain, scaled, strict=True):
        assert torch.equal(p, q)  # a power of two costs no bit


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_gradient_leaves_out_the_step_of_every_tensor_and_halves_the_scale(backend):
    params = parameters(SHAPES)
    optimizer = SOAP(params, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=100)
    for call in range(2):
        scaled_step(optimizer, params, scaler, call)
    values, state = snapshot(optimizer, params)
    scaled_step(optimizer, params, scaler, 2, poison=float("inf"))
    assert scaler.get_scale() == 2.0**11
    for index, (param, old) in enumerate(zip(params, values, strict=True)):
        assert torch.equal(param, old)
        entry = optimizer.state[param]
        assert torch.equal(entry["exp_avg"], state["state"][index]["exp_avg"])
        assert int(entry["skipped"]) == 1
    scaled_step(optimizer, params, scaler, 3)
    train(optimizer, params, [4])  # without a scaler
    assert all(int(optimizer.state[p]["step"]) == 3 for p in params)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_were_unscaled_for_clipping_are_not_unscaled_again(backend):
    plain, scaled = parameters(SHAPES), parameters(SHAPES)
    one, other = SOAP(plain, backend=backend), SOAP(scaled, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for call in range(3):
        train(one, plain, [call])
        generator = torch.Generator().manual_seed(1000 + call)
        other.zero_grad()
        loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in scaled)
        scaler.scale(loss).backward()
        scaler.unscale_(other)
        scaler.step(other)
        scaler.update()
    for p, q in zip(plain, scaled, strict=True):
        assert torch.equal(p, q)

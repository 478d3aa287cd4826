"""Accelerate learns of a step that was left out where the scaler looks for infinities itself."""

from __future__ import annotations

import pytest
import torch
from streams import ON_CPU, assert_same_bits, parameters

from soap_fast import SOAP

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def forgets_its_settings():
    """Accelerate keeps them in the process, for whoever comes next."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_step_that_overflowed_is_skipped_and_the_scheduler_waits(backend, on_device):
    """As docs/recipes.md has it. On the device the step is left out, and nobody is told."""
    accelerate.Accelerator(cpu=True)  # whose state the parts below read
    params = parameters(((3, 2), (3,)))
    inner = SOAP(params, lr=0.5, backend=backend, precondition_frequency=2)
    if not on_device:
        inner._step_supports_amp_scaling = False
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(
        inner, device_placement=False, scaler=scaler
    )
    halving = torch.optim.lr_scheduler.ExponentialLR(inner, 0.5)
    scheduler = accelerate.scheduler.AcceleratedScheduler(halving, optimizer)
    for call in range(4):
        generator = torch.Generator().manual_seed(call)
        loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in params)
        scaler.scale(loss).backward()
        if call == 2:
            params[0].grad[0, 0] = params[1].grad[0] = torch.inf
        before = [p.detach().clone() for p in params]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if call == 2:
            assert_same_bits([p.detach() for p in params], before)
            assert optimizer.step_was_skipped != on_device
    assert halving.last_epoch == (4 if on_device else 3)
    assert inner.param_groups[0]["lr"] == 0.5 ** (1 + halving.last_epoch)
    assert scaler.get_scale() == 2.0

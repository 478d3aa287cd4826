"""Training loops as people write them: mixed precision, clipping, accumulation, averages."""

from __future__ import annotations

import pytest
import tolerances
import torch
from streams import ON_CPU, assert_same_bits
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from soap_fast import SOAP


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.GELU(), torch.nn.Conv2d(3, 2, 1)
    )


def images(call: int, batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 2, 5, 5, generator=torch.Generator().manual_seed(call))


def values(model: torch.nn.Module) -> list[torch.Tensor]:
    return [param.detach().clone() for param in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ON_CPU)
def test_autocast_with_a_scaler(backend, dtype):
    """One gradient in the middle overflows: that step is left out, the scale is halved."""
    model = network()
    optimizer = SOAP(model.parameters(), lr=0.02, backend=backend, precondition_frequency=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    losses = []
    for call in range(7):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = model(images(0)).square().mean()
        scaler.scale(loss).backward()
        if call == 4:
            model[0].weight.grad[0, 0, 0, 0] = float("inf")
        before = values(model)
        scaler.step(optimizer)
        scaler.update()
        if call == 4:
            assert_same_bits(values(model), before)
        losses.append(loss.item())
    assert scaler.get_scale() == 2.0**9
    assert losses[-1] < losses[0]
    assert set(optimizer.stats()["skipped"].values()) == {1}
    state = optimizer.state[model[0].weight]
    assert state["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_model_that_is_small_itself(backend, dtype):
    """Its state is float32: what a step adds is lost by the last rounding only."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).to(dtype)
    optimizer = SOAP(model.parameters(), lr=0.05, backend=backend, precondition_frequency=3)
    target = torch.randn(4, generator=torch.Generator().manual_seed(1)).to(dtype)
    losses = []
    for _ in range(7):
        optimizer.zero_grad()
        loss = model(target).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[1]
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {e["exp_avg"].dtype for e in optimizer.state.values()} == {torch.float32}


@pytest.mark.parametrize("backend", ON_CPU)
def test_micro_batches_add_up_to_one_batch(backend):
    ends = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(2, 3, 3)
        optimizer = SOAP(model.parameters(), backend=backend, precondition_frequency=3)
        start = values(model)
        for call in range(5):
            optimizer.zero_grad()
            for part in images(call).chunk(parts):
                (model(part).square().mean() / parts).backward()
            optimizer.step()
        ends.append(values(model))
    for whole, added, old in zip(*ends, start, strict=True):
        assert (whole - added).abs().max() <= tolerances.TRACE * (whole - old).abs().max()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("backend", ON_CPU)
def test_clipped_gradients_are_what_is_stepped_with(backend, foreach):
    """Clipping multiplies in place, or in new memory: either is read at the next step."""
    model, by_hand = network(), network()
    ours = SOAP(model.parameters(), backend=backend, precondition_frequency=3)
    theirs = SOAP(by_hand.parameters(), backend=backend, precondition_frequency=3)
    for call in range(5):
        for each, optimizer in ((model, ours), (by_hand, theirs)):
            optimizer.zero_grad()
            (1e3 * each(images(call)).square().mean()).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=foreach)
        assert norm > 1
        for param in by_hand.parameters():
            param.grad = param.grad * torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        ours.step()
        theirs.step()
    assert_same_bits(values(model), values(by_hand))


@pytest.mark.parametrize("kind", ["EMA", "SWA"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_averages_of_the_weights(backend, kind):
    """They are taken of what each step has written, and the training does not notice them."""
    ends = []
    for averaged in (False, True):
        model = network()
        optimizer = SOAP(model.parameters(), lr=0.02, backend=backend, precondition_frequency=3)
        decay = get_ema_multi_avg_fn(0.5) if kind == "EMA" else None
        average = AveragedModel(model, multi_avg_fn=decay) if averaged else None
        scheduler = SWALR(optimizer, swa_lr=0.01, anneal_epochs=2)
        seen = []
        for call in range(5):
            optimizer.zero_grad()
            model(images(call)).square().mean().backward()
            optimizer.step()
            scheduler.step()
            seen.append(values(model))
            if average is not None:
                average.update_parameters(model)
        ends.append(values(model))
    assert_same_bits(ends[1], ends[0])
    expected = seen[0]
    for number, found in enumerate(seen[1:], start=2):
        weight = 0.5 if kind == "EMA" else 1 / number
        expected = [old + weight * (new - old) for old, new in zip(expected, found, strict=True)]
    for found, wanted in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, **tolerances.PLAIN)
    update_bn([images(9)], average)
    assert average(images(10)).isfinite().all()

"""What training loops do around a step: autocast, clipping, accumulation, averages."""

from __future__ import annotations

import pytest
import torch
from subject import assert_equal, copies, descend, device_of, follow, on_every_backend, started

from soap_fast import SOAP


def network(backend: str, dtype=torch.float32) -> tuple[torch.nn.Module, torch.Tensor]:
    """Convolutions, a normalisation with running averages, and images [4, 2, 6, 6]."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, stride=2), torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 2)
    )
    images = torch.randn(4, 2, 6, 6).to(device_of(backend), dtype)
    return layers.to(device_of(backend), dtype), images


def of(model: torch.nn.Module, backend: str, **options) -> SOAP:
    options = {"lr": 0.01, "precondition_frequency": 3, **options}
    return SOAP(model.parameters(), backend=backend, **options)


@on_every_backend
def test_convolutions_train_under_autocast(backend):
    model, images = network(backend)
    optimizer = of(model, backend)

    def loss_of() -> torch.Tensor:
        with torch.autocast(device_of(backend), dtype=torch.bfloat16):
            output = model(images)
        assert output.dtype == torch.bfloat16
        return output.float().square().mean()

    losses = descend(optimizer, loss_of, 5)
    assert losses[-1] < losses[3] < losses[0]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    assert set(optimizer.stats()["skipped"].values()) == {0}


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_low_precision_train_with_a_state_in_float32(backend, dtype):
    params, optimizer = started(backend, ((3, 2), (3,)), dtype=dtype, lr=0.1)
    losses = descend(optimizer, lambda: sum(p.float().square().sum() for p in params), 5)
    assert losses[-1] < losses[3] < losses[1]
    for param in params:
        entry = optimizer.state[param]
        tensors = entry["exp_avg"], entry["exp_avg_sq"], *entry["GG"], *entry["Q"]
        assert all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)
        assert param.dtype == dtype


@on_every_backend
def test_clipped_gradients_are_what_is_stepped(backend):
    """The first factor is (1 - b_s) g gᵀ, whose trace is 1 - b_s where the norm of g is 1."""
    params, optimizer = started(backend, ((3, 2),), shampoo_beta=0.75)
    params[0].grad = torch.full_like(params[0], 100.0)
    norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    assert norm > 200
    trace = optimizer.state[params[0]]["GG"][0].trace()
    torch.testing.assert_close(trace.cpu(), torch.tensor(0.25), rtol=1e-4, atol=0)


@on_every_backend
def test_accumulation_over_micro_batches_is_one_batch(backend):
    """In float64's sense: sums in another order differ by rounding."""
    ends = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).to(device_of(backend))
        optimizer = of(model, backend, precondition_frequency=2)
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            optimizer.zero_grad()
            batch = torch.randn(8, 3, generator=generator).to(device_of(backend))
            for part in batch.chunk(parts):
                (model(part).square().mean() / parts).backward()
            optimizer.step()
        ends.append(copies(model.parameters()))
    for whole, accumulated in zip(*ends, strict=True):
        torch.testing.assert_close(accumulated, whole, rtol=1e-4, atol=1e-5)


@on_every_backend
def test_gradients_set_to_zero_or_to_none_make_no_difference(backend):
    ends = []
    for set_to_none in (True, False):
        model, images = network(backend)
        optimizer = of(model, backend, precondition_frequency=2)
        for _ in range(4):
            optimizer.zero_grad(set_to_none=set_to_none)
            assert (model[0].weight.grad is None) == (set_to_none or not optimizer.state)
            model(images).square().mean().backward()
            optimizer.step()
        ends.append(copies(model.parameters()))
    assert_equal(*ends)


@on_every_backend
@pytest.mark.parametrize("kind", ["average", "exponential"])
def test_averages_of_the_weights_follow_them(backend, kind):
    """An average taken after each step is of that step: parameters are where modules hold them."""
    swa = torch.optim.swa_utils
    model, images = network(backend)
    optimizer = of(model, backend)
    options = {} if kind == "average" else {"multi_avg_fn": swa.get_ema_multi_avg_fn(0.5)}
    averaged = swa.AveragedModel(model, **options)
    scheduler = swa.SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    seen = []
    for _ in range(4):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
        seen.append(copies(model.parameters()))
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    expected = [p.detach() for p in seen[0]]
    for place, values in enumerate(seen[1:], start=1):
        share = 0.5 if kind == "exponential" else place / (place + 1)
        expected = [share * e + (1 - share) * v for e, v in zip(expected, values, strict=True)]
    for found, wanted in zip(averaged.parameters(), expected, strict=True):
        torch.testing.assert_close(found.data, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(seen[1][0], seen[3][0])
    swa.update_bn([images], averaged)
    assert averaged(images).isfinite().all()


@on_every_backend
def test_freezing_and_unfreezing_a_layer_needs_no_new_optimizer(backend):
    model, images = network(backend)
    optimizer = of(model, backend)
    frozen = model[0].weight
    for trains in (True, False, True):
        frozen.requires_grad_(trains)
        before = frozen.detach().clone()
        for _ in range(2):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
        assert torch.equal(frozen, before) != trains
    assert optimizer.state[frozen]["calls"] == 4
    assert optimizer.state[model[2].weight]["calls"] == 6


@on_every_backend
def test_two_optimizers_share_a_model(backend):
    """And nothing else: each goes on as it would with the other's parameters in no optimizer."""
    params, optimizer = started(backend, ((3, 2), (3,)))
    others, other = started(backend, ((3, 2), (2, 2)))
    for call in range(3):
        follow(optimizer, params, [call])
        follow(other, others, [call])
    assert_equal(params, started(backend, ((3, 2), (3,)), calls=3)[0])
    assert_equal(others, started(backend, ((3, 2), (2, 2)), calls=3)[0])

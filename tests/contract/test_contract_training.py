"""Loss goes down, whatever the configuration, the strides, the groups and the scheduler."""

from __future__ import annotations

import pytest
import tolerances
import torch
from streams import ON_CPU, parameters, set_gradients
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch_info import INFO

STEPS = {"eager": 15, "native": 15, "triton": 5}  # interpreted kernels are slow
CONFIGURATIONS = {each.desc: each for each in INFO.optim_inputs_func("cpu")}


def problem(contiguous: bool) -> tuple[list[torch.nn.Parameter], torch.Tensor]:
    """A matrix and a vector to be fitted to a point, as torch's own tests have it."""
    torch.manual_seed(0)
    weight = torch.randn(5, 4)
    if not contiguous:
        weight = torch.randn(4, 5, 2)[..., 0].T
        assert not weight.is_contiguous()
    bias = torch.randn(5, 2)[:, 0] if not contiguous else torch.randn(5)
    return [torch.nn.Parameter(weight), torch.nn.Parameter(bias)], torch.randn(4)


def fit(params, optimizer, point, schedulers=(), steps=12) -> tuple[float, float]:
    weight, bias = params

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(point) + bias).pow(2).sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(steps):
        loss = optimizer.step(closure)
        for scheduler in schedulers:
            args = (loss,) if isinstance(scheduler, ReduceLROnPlateau) else ()
            scheduler.step(*args)
    return first, closure().item()


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@pytest.mark.parametrize("desc", CONFIGURATIONS)
@pytest.mark.parametrize("backend", ON_CPU)
def test_every_configuration(backend, desc, contiguous):
    params, point = problem(contiguous)
    strides = [param.stride() for param in params]
    optimizer = INFO.optim_cls(params, backend=backend, **CONFIGURATIONS[desc].kwargs)
    first, last = fit(params, optimizer, point, steps=STEPS[backend])
    assert last < first
    assert [param.stride() for param in params] == strides
    assert type(optimizer).__name__ in repr(optimizer)


@pytest.mark.parametrize("number", range(len(INFO.scheduler_inputs)))
@pytest.mark.parametrize("backend", ON_CPU)
def test_every_scheduler(backend, number):
    params, point = problem(True)
    optimizer = INFO.optim_cls(params, lr=0.01, backend=backend)
    schedulers = [make(optimizer) for make in INFO.scheduler_inputs[number]]
    first, last = fit(params, optimizer, point, schedulers, steps=STEPS[backend])
    assert last < first


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_scheduler_follows_a_tensor_lr_in_place(backend):
    params, point = problem(True)
    rate = torch.tensor(0.01)
    optimizer = INFO.optim_cls(params, lr=rate, backend=backend)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    fit(params, optimizer, point, [scheduler], steps=4)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.01 * 0.5**4)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_tensor_lr_steps_as_a_number_does(backend):
    """No rotated gradient is zero anywhere: Adam would make whole steps of its rounding there."""
    ends = []
    for rate in (0.01, torch.tensor(0.01), torch.tensor([0.01], dtype=torch.float64)):
        params = parameters(((4, 4), (5,)))
        optimizer = INFO.optim_cls(params, lr=rate, backend=backend)
        for call in range(5):
            set_gradients(params, call)
            for param in params:
                param.grad += param.detach()  # so that what a rate does shows in what follows
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in params]))
    torch.testing.assert_close(ends[0], ends[1], **tolerances.LR_IN_FLOAT32)
    torch.testing.assert_close(ends[0], ends[2], **tolerances.LR_IN_FLOAT32)


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_groups_have_options_of_their_own(backend, option):
    """A bias whose rate is zero stays; one that only decays, by the share that it should."""
    params, point = problem(True)
    weight, bias = params
    before = bias.detach().clone()
    of_bias = {"lr": 0.0} if option == "lr" else {"lr": 0.1, "weight_decay": 0.5}
    optimizer = INFO.optim_cls(
        [{"params": [weight]}, {"params": [bias], **of_bias}], lr=0.01, backend=backend
    )
    if option == "lr":
        first, last = fit(params, optimizer, point)
        assert last < first
        assert torch.equal(bias, before)
        return
    for _ in range(3):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    left = before * 0.95**2  # the first call starts only
    torch.testing.assert_close(bias.detach(), left, rtol=tolerances.decays(2), atol=0)


@pytest.mark.parametrize("backend", ON_CPU)
def test_what_torch_refuses_and_what_we_do(backend):
    for case in INFO.optim_error_inputs_func("cpu", torch.float32):
        given = case.optimizer_error_input
        expected = pytest.warns if case.error_type is UserWarning else pytest.raises
        with expected(case.error_type, match=case.error_regex):
            INFO.optim_cls(given.params, backend=backend, **given.kwargs)


@pytest.mark.parametrize("keyword", ["foreach", "fused", "capturable", "differentiable", "amsgrad"])
def test_keywords_of_other_optimizers_are_refused(keyword):
    with pytest.raises(TypeError, match=keyword):
        INFO.optim_cls([torch.nn.Parameter(torch.zeros(2))], **{keyword: True})

"""The loss goes down: with every option, scheduler, layout of memory and kind of `lr`."""

from __future__ import annotations

import pytest
import torch
from optimizer_info import SOAP_INFO
from subject import assert_equal, copies, descend, device_of, follow, on_every_backend, started

from soap_fast import SOAP

STEPS = 5
INPUTS = {given.desc: given.kwargs for given in SOAP_INFO.optim_inputs_func("cpu", torch.float32)}
SCHEDULERS = dict(enumerate(SOAP_INFO.scheduler_inputs))


def linear(shape: str, device: str) -> tuple[list[torch.nn.Parameter], torch.Tensor]:
    """A weight [4, 3] and a bias [4] in memory of some layout, and what is put in."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(s, generator=generator) for s in ((4, 3, 2), (4, 2)))
    weight, bias, x = weight.to(device), bias.to(device), torch.randn(3, generator=generator)
    match shape:
        case "contiguous":
            weight, bias = weight[..., 0].contiguous(), bias[..., 0].contiguous()
        case "sliced":
            weight, bias = weight[..., 0], bias[..., 0]
        case "permuted":
            weight, bias = weight[..., 0].t().contiguous().t(), bias[..., 0].contiguous()
    return [torch.nn.Parameter(weight), torch.nn.Parameter(bias)], x.to(device)


def trains(backend, shape="contiguous", schedulers=(), **kwargs) -> None:
    (weight, bias), x = linear(shape, device_of(backend))
    optimizer = SOAP([weight, bias], backend=backend, **kwargs)
    schedulers = [make(optimizer) for make in schedulers]
    strides = weight.stride()
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        for scheduler in schedulers:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(loss.detach()) if plateau else scheduler.step()
    assert losses[0] == losses[1]  # a first call moves nothing
    assert (weight.mv(x) + bias).square().sum().item() <= losses[-1] < losses[1]  # lr may reach 0
    assert weight.stride() == strides


@on_every_backend
@pytest.mark.parametrize("desc", INPUTS)
def test_with_every_option(backend, desc):
    trains(backend, **INPUTS[desc])


@on_every_backend
@pytest.mark.parametrize("shape", ["sliced", "permuted"])
def test_with_parameters_of_other_strides(backend, shape):
    trains(backend, shape)


@on_every_backend
@pytest.mark.parametrize("number", SCHEDULERS)
def test_with_every_scheduler_torch_tries_on_adam(backend, number):
    trains(backend, schedulers=SCHEDULERS[number])


@on_every_backend
@pytest.mark.parametrize(
    "scheduler",
    [
        lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.01, total_steps=STEPS + 1),
        lambda opt: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=3),
    ],
    ids=["one cycle", "warm restarts"],
)
def test_with_schedulers_that_look_into_groups(backend, scheduler):
    """OneCycleLR cycles `betas` too, which are in every group."""
    trains(backend, schedulers=[scheduler])


@on_every_backend
def test_a_tensor_lr_does_what_a_number_does_and_stays_what_it_was(backend):
    params, optimizer = started(backend, ((3, 2), (3,)), lr=0.25, calls=4)
    lr = torch.tensor(0.25)
    others, other = started(backend, ((3, 2), (3,)), lr=lr, calls=4)
    assert_equal(params, others)
    assert other.param_groups[0]["lr"] is lr
    assert lr.item() == 0.25
    lr.fill_(0.125)
    optimizer.param_groups[0]["lr"] = 0.125
    follow(optimizer, params, range(4, 6))
    follow(other, others, range(4, 6))
    assert_equal(params, others)


@on_every_backend
def test_an_lr_changed_later_takes_effect_at_the_next_step(backend):
    """Without weight decay a step is proportional to it."""
    moved = []
    for lr in (0.25, 0.5):
        options = {"lr": 0.25, "weight_decay": 0.0, "precondition_frequency": 20}
        params, optimizer = started(backend, ((3, 2), (3,)), calls=3, **options)
        before = copies(params)
        optimizer.param_groups[0]["lr"] = lr
        follow(optimizer, params, [3])
        moved.append([p.detach() - q.detach() for p, q in zip(params, before, strict=True)])
    for once, twice in zip(*moved, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-5, atol=1e-6)


@on_every_backend
@pytest.mark.parametrize(
    "options",
    [
        ({"lr": 0.1}, {"weight_decay": 0.5}),
        ({"betas": (0.5, 0.9), "eps": 1e-3}, {"lr": torch.tensor(0.01)}),
        ({"normalize_grads": True}, {"precondition_frequency": 3, "correct_bias": False}),
        ({"max_precond_dim": 2}, {"precondition_1d": True, "shampoo_beta": 0.5}),
    ],
    ids=lambda options: " | ".join(map(str, options)),
)
def test_groups_go_by_options_of_their_own(backend, options):
    """Two groups in one optimizer step as two optimizers."""
    together, _ = started(backend, ((3, 2), (3,)) * 2)
    groups = [
        {"params": together[:2], **options[0]},
        {"params": together[2:], **options[1]},
    ]
    alone = copies(together)
    one = SOAP(groups, backend=backend, precondition_frequency=2)
    follow(one, together, range(4))
    gradients = []
    for param, other in zip(together, alone, strict=True):
        gradients.append(param.grad)
        other.grad = None
    parts = [
        SOAP(part, backend=backend, **{"precondition_frequency": 2, **option})
        for part, option in zip((alone[:2], alone[2:]), options, strict=True)
    ]
    for call in range(4):
        generator = torch.Generator().manual_seed(1000 + call)
        for param in alone:
            param.grad = torch.randn(param.shape, generator=generator).to(param.device)
        for part in parts:
            part.step()
    assert_equal([p.grad for p in alone], gradients)
    assert_equal(together, alone)


@on_every_backend
def test_a_closure_runs_with_gradients_and_its_loss_comes_back(backend):
    (weight, bias), x = linear("contiguous", device_of(backend))
    optimizer = SOAP([weight, bias], backend=backend)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(4)]
    assert losses[0] == losses[1]
    assert losses[3] < losses[2] < losses[1]
    assert optimizer.step() is None


@on_every_backend
def test_two_runs_end_in_the_same_bits(backend):
    ends = []
    for _ in range(2):
        (weight, bias), x = linear("contiguous", device_of(backend))
        optimizer = SOAP([weight, bias], backend=backend, precondition_frequency=2)
        descend(optimizer, lambda w=weight, b=bias, x=x: (w.mv(x) + b).square().sum(), 4)
        ends.append([weight, bias])
    assert_equal(*ends)

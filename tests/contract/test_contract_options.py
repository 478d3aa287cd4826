"""Options and gradients that change on the way are followed from the very next step."""

from __future__ import annotations

import pytest
import tolerances
import torch
from subject import assert_equal, copies, device_of, follow, on_every_backend, started

from soap_fast import SOAP


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
        torch.testing.assert_close(twice, 2 * once, **tolerances.DIFFERENCE)


@on_every_backend
def test_a_frequency_changed_later_takes_effect_at_the_next_call(backend):
    params, optimizer = started(backend, ((3, 2), (3,)), calls=3, precondition_frequency=20)
    before = [basis.clone() for basis in optimizer.state[params[0]]["Q"]]
    optimizer.param_groups[0]["precondition_frequency"] = 1
    follow(optimizer, params, [3])
    after = optimizer.state[params[0]]["Q"]
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert optimizer.stats()["refreshed"]["parameter 0 of group 0"] == 2
    optimizer.param_groups[0]["precondition_frequency"] = 20
    kept = [basis.clone() for basis in after]
    follow(optimizer, params, [4])
    assert_equal(optimizer.state[params[0]]["Q"], kept)


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


CHANGES = [
    {"betas": (0.5, 0.7)},
    {"eps": 0.1},
    {"weight_decay": 0.5},
    {"shampoo_beta": 0.3},
    {"normalize_grads": True},
    {"correct_bias": False},
]


@on_every_backend
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_option_changed_between_steady_steps_does_what_it_does_to_eager(backend, change):
    """Values, moments and factors of the step after it; without it they would differ."""
    options = {"precondition_frequency": 20, "lr": 0.1}
    params, optimizer = started("eager", ((3, 2), (3,)), calls=1, **options)
    others = [torch.nn.Parameter(p.detach().to(device_of(backend), copy=True)) for p in params]
    other = SOAP(others, backend=backend)
    other.load_state_dict(optimizer.state_dict())
    unchanged, without = started("eager", ((3, 2), (3,)), calls=4, **options)
    for one, own in ((optimizer, params), (other, others)):
        follow(one, own, range(1, 3))
        one.param_groups[0].update(change)
        follow(one, own, [3])
    for place, (param, twin, third) in enumerate(zip(params, others, unchanged, strict=True)):
        found = everything(twin, other)
        for name, expected in everything(param, optimizer).items():
            torch.testing.assert_close(found[name], expected, **tolerances.AFTER_A_CHANGE, msg=name)
        plain = everything(third, without)
        close = (
            torch.allclose(found[name], plain[name], **tolerances.AFTER_A_CHANGE) for name in found
        )
        assert place or not all(close)


def everything(param, optimizer) -> dict[str, torch.Tensor]:
    entry = optimizer.state[param]
    factors = [] if entry["GG"][0] is None else entry["GG"]
    found = {"value": param.detach(), "m": entry["exp_avg"], "v": entry["exp_avg_sq"]}
    found |= {f"K{mode}": k for mode, k in enumerate(factors)}
    return {name: tensor.cpu() for name, tensor in found.items()}

"""No step reads what it has not written: all workspace is NaN before each."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICES, engine_of, forget_workspace, graphed
from launched import short_sums
from streams import assert_same_bits, parameters, set_gradients

from soap_fast import SOAP

# Folds of 9, 25 and 32, one and two products, sizes that no tile divides, no product, no axis.
SHAPES = {
    "cpu": ((6, 4, 3, 3), (5,)),
    "cuda": (
        (36, 20, 3, 3), (12, 6, 5, 5), (40, 4, 8), (70, 33), (7, 7, 7), (300,), (65, 1), (),
    ),
}  # fmt: skip
OPTIONS = [
    pytest.param({"precondition_frequency": 10}, 4, id="plain"),
    pytest.param({"precondition_frequency": 2, "normalize_grads": True}, 5, id="periodic"),
    pytest.param({"precondition_frequency": 2, "refresh_schedule": "staggered"}, 5, id="staggered"),
    pytest.param({"precondition_frequency": 1, "precondition_1d": True}, 3, id="every call"),
]
# After the first call and three plain ones, and after the second refresh, calls are replays.
IN_GRAPHS = [
    pytest.param({"precondition_frequency": 2}, 10, id="periodic"),
    pytest.param({"precondition_frequency": 2, "refresh_schedule": "staggered"}, 8, id="staggered"),
]


def trained(device: str, options: dict, calls: int, *, poisoned: bool, in_graphs: bool = False):
    """Parameters and state after some calls, the workspace NaN before each or left as it is."""
    params = [torch.nn.Parameter(p.detach().to(device)) for p in parameters(SHAPES[device])]
    lr = torch.tensor(1e-3, device=device)
    optimizer = SOAP(params, lr=lr, backend="triton", **options)
    step = graphed(optimizer, device) if in_graphs else optimizer.step
    for param in params:
        param.grad = torch.empty_like(param)
    twins = parameters(SHAPES[device])
    for call in range(calls):
        set_gradients(twins, call)
        for param, twin in zip(params, twins, strict=True):
            param.grad.copy_(twin.grad)
        if call == 2 and not in_graphs:  # tensors that take no part have no workspace either
            params[1].grad = None
        if poisoned and call > 1:
            forget_workspace(engine_of(optimizer))
        step()
        if params[1].grad is None:
            params[1].grad = torch.empty_like(params[1])
    return [p.detach().cpu() for p in params], optimizer.state_dict()["state"]


@pytest.mark.parametrize(("options", "calls"), OPTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_steps_read_what_they_have_written(device, options, calls):
    with short_sums(2):  # Gram matrices of these sizes in parts as well
        one, other = (trained(device, options, calls, poisoned=p) for p in (True, False))
    assert all(param.isfinite().all() for param in one[0])
    assert_same_bits(one, other)


@pytest.mark.parametrize(("options", "calls"), IN_GRAPHS)
@pytest.mark.parametrize("device", DEVICES)
def test_replays_read_what_they_have_written(device, options, calls):
    runs = [trained(device, options, calls, poisoned=p, in_graphs=True) for p in (True, False)]
    assert all(param.isfinite().all() for param in runs[0][0])
    assert_same_bits(*runs)


@pytest.mark.parametrize("device", DEVICES)
def test_the_poison_is_poison(device):
    """Left where a plain step begins to read, it reaches the parameters."""
    params = [torch.nn.Parameter(p.detach().to(device)) for p in parameters(((9, 7),))]
    optimizer = SOAP(params, backend="triton")
    for call in range(2):
        params[0].grad = torch.ones_like(params[0]) * (1 + call)
        optimizer.step()
    engine = engine_of(optimizer)
    real, ops = engine.launcher, []

    def poisoning(launch):
        real(launch)
        ops.append(launch.op)
        if launch.op == "gather":
            engine.memory.a.fill_(float("nan"))

    engine.launcher = poisoning
    optimizer.step()
    assert "gather" in ops
    assert not params[0].isfinite().all()

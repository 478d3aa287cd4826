"""A parameter whose memory is replaced between calls, as masked convolutions do."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from streams import assert_same_bits
from subjects import (
    BACKENDS,
    assert_orthogonal,
    built,
    for_each,
    give,
    gradients,
    one_thread,  # noqa: F401
    take,
    tensor_by_tensor,
)

from soap_fast import SOAP

pytestmark = pytest.mark.usefixtures("one_thread")
CALLS = 9  # two refreshes, and steady steps before, between and after them


def masked(param: torch.Tensor) -> torch.Tensor:
    """Half of the elements, as a causal kernel's."""
    ones = torch.ones(param.numel()).reshape(param.shape)
    ones.view(-1)[param.numel() // 2 :] = 0
    return ones


def trained(backend: str, forward, **options) -> list[list[dict]]:
    params, optimizer = built(backend, **options)
    history = []
    for call in range(CALLS):
        for param in params:
            forward(param, masked(param), call)
        take(optimizer, params, [call])
        history.append(tensor_by_tensor(optimizer, params))
    return history


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_another_memory_at_every_forward_equals_a_change_in_place(backend, schedule):
    def in_place(param, mask, call):
        param.data.mul_(mask)

    def moved(param, mask, call):
        kept.append(param.data)  # so that no memory comes back
        param.data = param.data * mask

    def moved_now_and_then(param, mask, call):
        (moved if call % 3 else in_place)(param, mask, call)

    kept = []
    expected = trained(backend, in_place, refresh_schedule=schedule)
    assert_same_bits(trained(backend, moved, refresh_schedule=schedule), expected)
    if backend != "triton":
        found = trained(backend, moved_now_and_then, refresh_schedule=schedule)
        assert_same_bits(found, expected)
    counts = [entry["refreshes"].tolist() for entry in expected[-1]]
    assert counts[0] == [4, 0, 0] or schedule == "staggered"


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_that_was_left_behind_is_not_written(backend):
    """Parameters alone move: gradients stay, as with zero_grad(set_to_none=False)."""
    params, optimizer = built(backend)
    take(optimizer, params, range(2))
    for call in range(2, 6):
        left = [param.data for param in params]
        copies = [one.clone() for one in left]
        for param in params:
            param.data = param.data.clone()
        for param, grad in zip(params, gradients(params, call), strict=True):
            param.grad.copy_(grad)
        optimizer.step()
        assert_same_bits(left, copies)
        assert all(not torch.equal(p, old) for p, old in zip(params, left, strict=True))


def shrunk(param):
    param.data = param.data[: param.shape[0] - 1].clone()


def grown(param):
    param.data = torch.cat([param.data, param.data])


def emptied(param):
    param.data = param.data[:0].clone()


def reordered(param):
    param.data = param.data.T.contiguous()


def resized_in_its_memory(param):
    param.data = param.data[: param.shape[0] - 1]  # the same address and strides


CHANGES = (shrunk, grown, emptied, reordered, resized_in_its_memory)
MOMENTS = {"second": 1, "steady": 2, "refresh": 3}


# The whole way through a step is the same for all changes, the steady one is not.
@pytest.mark.parametrize(
    ("backend", "change", "moment"),
    for_each(
        list(product(CHANGES, ("second", "refresh"))),
        [*product(CHANGES, ("steady",)), (shrunk, "second"), (shrunk, "refresh")],
    ),
)
def test_a_resized_parameter_is_refused_before_anything_changed(backend, change, moment):
    """Under steady steps as well, whose tables would lead behind the end of a smaller tensor."""
    params, optimizer = built(backend)
    call = MOMENTS[moment]
    take(optimizer, params, range(call))
    change(params[0])
    params[0].grad = None
    give(params, gradients(params, call))
    before = tensor_by_tensor(optimizer, params)
    with pytest.raises(ValueError, match=r"but was \[4, 3\] at its first call: a resized .*entry"):
        optimizer.step()
    assert_same_bits(tensor_by_tensor(optimizer, params), before)

    del optimizer.state[params[0]]  # the way on that the message names: the tensor begins anew
    optimizer.step()
    assert optimizer.state[params[0]]["calls"] == 1
    take(optimizer, params, range(call + 1, call + 5))
    assert [optimizer.state[p]["calls"] for p in params] == [5, *[call + 5] * (len(params) - 1)]
    assert_orthogonal(optimizer)
    assert all(param.isfinite().all() for param in params)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resized_parameter_is_refused_also_beside_gradients_that_stay(backend, change):
    """As they do with zero_grad(set_to_none=False): nothing but the size is another one."""
    params, optimizer = built(backend)
    take(optimizer, params, range(2))
    memory = params[0].data
    change(params[0])
    before, kept = tensor_by_tensor(optimizer, params), memory.clone()
    with pytest.raises(ValueError, match="both must agree"):
        optimizer.step()
    assert_same_bits(tensor_by_tensor(optimizer, params), before)
    assert_same_bits([memory], [kept])


def test_a_gradient_that_is_resized_in_its_place_is_refused():
    params, optimizer = built("triton")
    take(optimizer, params, range(2))
    before = tensor_by_tensor(optimizer, params)
    params[0].grad.data = params[0].grad.data[:-1]
    with pytest.raises(ValueError, match="both must agree"):
        optimizer.step()
    assert_same_bits(tensor_by_tensor(optimizer, params), before)


@pytest.mark.parametrize("whose", ["parameter", "gradient", "both"])
def test_other_strides_of_the_same_objects_are_followed(whose):
    """A square one, transposed, keeps its shape and its address too."""
    ends = []
    for changed in (False, True):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(4, 4))
        optimizer = SOAP([param], backend="triton", precondition_frequency=100)
        for call in range(4):
            grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(call))
            if param.grad is None:
                param.grad = torch.zeros(4, 4)
            if call == 2:
                if whose != "gradient":
                    param.data = param.data.T if changed else param.data.T.contiguous()
                if whose != "parameter":
                    param.grad.data = param.grad.data.T if changed else param.grad.data
            param.grad.copy_(grad)
            optimizer.step()
        ends.append(param.detach().contiguous())
    assert_same_bits(ends[:1], ends[1:])

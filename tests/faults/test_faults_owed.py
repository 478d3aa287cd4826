"""A refresh that fell due and was not made: saved, carried over by copies, and made once."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle

import pytest
import torch
from straight import MOMENTS, Saved, Straight
from streams import assert_same_bits, backends, parameters, through_a_file, train
from subjects import (
    BACKENDS,
    EVERY_THIRD,
    Broken,
    built,
    give,
    gradients,
    one_thread,  # noqa: F401
    take,
    tensor_by_tensor,
)
from torch.overrides import TorchFunctionMode

from soap_fast import SOAP
from soap_fast.step import capture
from soap_fast.step.call import Scaling

pytestmark = pytest.mark.usefixtures("one_thread")
DUE = MOMENTS["refresh"]
LATER = range(DUE + 1, DUE + 5)


def left(backend: str, coming=None, **options):
    """Parameters and optimizer whose call DUE ends ahead of its refresh."""
    params, optimizer = built(backend, **options)
    take(optimizer, params, range(DUE))
    give(params, gradients(params, DUE) if coming is None else coming(params))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer._backend, "refresh_op", raising)
        with pytest.raises(Broken):
            optimizer.step()
    return params, optimizer


def raising(*_):
    raise Broken


def reloaded(params, optimizer, backend: str, **options):
    others, loaded = built(backend, **options)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    with torch.no_grad():
        for param, value in zip(others, params, strict=True):
            param.copy_(value)
    return others, loaded


def owed(optimizer) -> list:
    return [group.get("owed") for group in optimizer.state_dict()["param_groups"]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_saved_until_it_is_made(backend):
    params, optimizer = left(backend)
    due = [
        [mode for mode, q in enumerate(optimizer.state[p]["Q"]) if q is not None] for p in params
    ]
    assert owed(optimizer) == [due]
    saved = optimizer.state_dict()
    assert not any("owed" in entry for entry in saved["state"].values())
    take(optimizer, params, LATER)
    assert owed(optimizer) == [None]
    others, straight = built(backend)
    take(straight, others, range(LATER.stop))
    assert_same_bits(tensor_by_tensor(optimizer, params), tensor_by_tensor(straight, others))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("backend", backends())
def test_copies_owe_it_too(backend, copied):
    straight = Straight(backend, DUE)
    params, optimizer = copied(left(backend))
    assert straight.check_saved(Saved.of(optimizer, params), "copy").count("not_refreshed") >= 2
    take(optimizer, params, straight.later)
    assert_same_bits(tensor_by_tensor(optimizer, params), straight.end)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_was_left_out_owes_none(backend):
    def failing(params):
        found = gradients(params, DUE)
        found[0].view(-1)[0] = math.nan
        return found

    params, optimizer = left(backend, failing)
    assert owed(optimizer)[0] is None or owed(optimizer)[0][0] == []
    others, straight = built(backend)
    take(straight, others, range(DUE))
    give(others, failing(others))
    straight.step()
    both = []
    loaded_params, loaded = reloaded(params, optimizer, backend)
    for run, own in ((optimizer, params), (loaded, loaded_params), (straight, others)):
        take(run, own, LATER)
        both.append(tensor_by_tensor(run, own))
    assert_same_bits(both[0], both[2])
    assert_same_bits(both[1], both[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_owed_is_what_fell_due_whatever_the_frequency_is_now(backend):
    params, optimizer = left(backend)
    optimizer.param_groups[0]["precondition_frequency"] = 100
    take(optimizer, params, [DUE + 1])
    assert optimizer.state[params[0]]["refreshes"].tolist() == [2, 0, 0]


@pytest.mark.parametrize("backend", backends())
def test_under_a_staggered_schedule(backend):
    """Every refresh fails at first, is saved as owed, and made by an optimizer that loads it."""
    others, straight = built(backend, refresh_schedule="staggered")
    take(straight, others, range(8))
    params, optimizer = built(backend, refresh_schedule="staggered")
    faults = 0
    for call in range(8):
        optimizer._backend.refresh_op = raising
        give(params, gradients(params, call))
        with contextlib.suppress(Broken):
            optimizer.step()
        faults += owed(optimizer) != [None]
        params, optimizer = reloaded(params, optimizer, backend, refresh_schedule="staggered")
        optimizer._backend.make_up(list(optimizer._calls(Scaling(), torch.zeros_like)))
    assert faults > 3
    assert_same_bits(tensor_by_tensor(optimizer, params), tensor_by_tensor(straight, others))


@pytest.mark.parametrize("backend", backends())
def test_moments_that_a_step_would_lay_elsewhere_are_carried_where_they_were_loaded(backend):
    """A matrix and a kernel: their planes are not in the order of their elements."""
    shapes = ((8, 8), (6, 4, 3, 3))
    ends = []
    for fails in (False, True):
        params = parameters(shapes)
        optimizer = SOAP(params, backend=backend, precondition_frequency=EVERY_THIRD)
        if fails:
            optimizer._backend.refresh_op = raising
        with contextlib.suppress(Broken):
            train(optimizer, params, range(DUE + 1))
        resumed = [torch.nn.Parameter(param.detach().clone()) for param in params]
        other = SOAP(resumed, backend=backend)
        other.load_state_dict(through_a_file(optimizer.state_dict()))
        assert (owed(other) != [None]) == fails
        train(other, resumed, range(DUE + 1, DUE + 5))
        ends.append((list(map(torch.Tensor.detach, resumed)), other.state_dict()))
    assert_same_bits(*ends)


@pytest.mark.parametrize("damaged", [3, [[0]], [[0], [], [7]], [[0], 1, []], [["a"], [], []]])
def test_what_is_damaged_is_refused(damaged):
    _, optimizer = left("eager")
    saved = optimizer.state_dict()
    saved["param_groups"][0]["owed"] = damaged
    _, other = built("eager")
    with pytest.raises(ValueError, match="owed="):
        other.load_state_dict(saved)
    assert not other.state


def test_it_is_not_captured():
    params, optimizer = left("eager")
    optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)
    give(params, gradients(params, DUE + 1))
    call, text = capture.not_capturable(list(optimizer._calls(Scaling())))
    assert call is not None
    assert "owes a refresh" in text


class Raising(TorchFunctionMode):
    """Python code behind a function of torch, as a default device is, in which a signal comes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("_foreach_copy_", "step_.default", "carry_.default"):
            raise Broken(func)
        return result


@pytest.mark.parametrize("backend", backends())
def test_modes_of_functions_see_no_write(backend):
    params, optimizer = built(backend)
    with Raising():
        take(optimizer, params, range(DUE + 1))
    assert optimizer.state[params[0]]["calls"] == DUE + 1

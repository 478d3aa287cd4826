"""A launch fails, as a kernel may whose compilation finds no room: nothing is torn unnoticed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from straight import MOMENTS, Straight, same
from subjects import (
    BACKENDS,
    one_thread,  # noqa: F401
    take,
    tensor_by_tensor,
    without,
)

import soap_fast
from soap_fast import soap
from soap_fast.backends.triton.launch.launcher import TritonLauncher
from soap_fast.step.call import Scaling

ONLY_TRITON = [backend for backend in BACKENDS if backend.values[0] == "triton"]
pytestmark = pytest.mark.usefixtures("one_thread")


class LaunchFailed(RuntimeError):
    """What an injected fault raises, and nothing else."""


class Failing:
    """Lets `left` launches pass from `on()` on, and fails at the next."""

    def __init__(self, monkeypatch) -> None:
        self.left, self.count, self.armed = -1, 0, False
        launch = TritonLauncher.__call__

        def counted(launcher, one):
            if self.armed:
                if self.count == self.left:
                    raise LaunchFailed(one.op)
                self.count += 1
            launch(launcher, one)

        monkeypatch.setattr(TritonLauncher, "__call__", counted)


@pytest.mark.parametrize("backend", ONLY_TRITON)
def test_every_launch_of_a_refresh(backend, monkeypatch):
    straight = Straight(backend, MOMENTS["refresh"])
    failing = Failing(monkeypatch)
    outcomes, failed = [], []
    for at in range(100):
        params, optimizer = straight.ready()
        working = optimizer._backend.refresh_op

        def arming(*arguments, working=working):
            failing.armed = True
            return working(*arguments)

        optimizer._backend.refresh_op = arming
        failing.left, failing.count, failing.armed = at, 0, False
        try:
            optimizer.step()
        except LaunchFailed as failure:
            failing.armed = False
            failed.append(str(failure))
        else:
            break
        optimizer._backend.refresh_op = working
        found = tensor_by_tensor(optimizer, params)
        for place, entry in enumerate(found):
            whole = straight.after[place], straight.not_refreshed[place]
            which = [same(*(without(e, "off_diagonal") for e in (entry, one))) for one in whole]
            assert any(which), (at, place)
            outcomes += ["after" if which[0] else "not refreshed"] * (place == 0)
        if outcomes[-1] == "after":
            take(optimizer, params, straight.later)
            assert same(tensor_by_tensor(optimizer, params), straight.end)
    assert failing.armed
    assert at == failing.count
    assert failed[0] == "count"
    assert failed[-3:] == ["permute", "settle", "derive"]
    assert set(outcomes) == {"after", "not refreshed"}
    assert outcomes[0] == "not refreshed"
    assert outcomes[-1] == "after"


@pytest.mark.parametrize("backend", ONLY_TRITON)
def test_operands_that_could_not_be_derived_are_not_taken_for_ready(backend, monkeypatch):
    """The first launch of new tables derives what products read of the bases."""
    straight = Straight(backend, MOMENTS["second"])
    params, optimizer = straight.ready()
    failing = Failing(monkeypatch)
    failing.left, failing.armed = 0, True
    with pytest.raises(LaunchFailed, match="derive"):
        optimizer.step()
    failing.armed = False
    assert straight.found(optimizer, params) == ["before"] * len(params)
    straight.check_what_follows(optimizer, params, ["before"] * len(params), "derive")


@pytest.mark.parametrize("moment", ["second", "steady"])
@pytest.mark.parametrize("backend", ONLY_TRITON)
def test_a_step_left_between_its_launches_is_neither_gone_on_with_nor_saved(
    backend, moment, monkeypatch
):
    straight = Straight(backend, MOMENTS[moment])
    failing = Failing(monkeypatch)
    refused = 0
    for at in range(100):
        params, optimizer = straight.ready()
        kept = copy.deepcopy(optimizer.state_dict())
        values = [param.detach().clone() for param in params]
        failing.left, failing.count, failing.armed = at, 0, True
        try:
            optimizer.step()
        except LaunchFailed:
            failing.armed = False
        else:
            break
        try:
            optimizer.state_dict()
        except RuntimeError:
            for use in (optimizer.step, optimizer.state_dict, lambda o=optimizer: pickle.dumps(o)):
                with pytest.raises(RuntimeError, match="load the last state_dict"):
                    use()
            refused += 1
            with torch.no_grad():
                for param, value in zip(params, values, strict=True):
                    param.copy_(value)
            optimizer.load_state_dict(kept)
        else:
            assert straight.found(optimizer, params) == ["before"] * len(params)
        take(optimizer, params, [straight.moment, *straight.later])
        assert same(tensor_by_tensor(optimizer, params), straight.end)
    assert failing.armed
    assert at >= 5
    assert refused == at - (
        2 if moment == "second" else 1
    )  # operands are derived, and gradients gathered


@pytest.mark.parametrize("backend", ONLY_TRITON)
def test_nothing_but_a_loaded_state_ends_that(backend, monkeypatch):
    straight = Straight(backend, MOMENTS["steady"])
    params, optimizer = straight.ready()
    kept = copy.deepcopy(optimizer.state_dict())
    failing = Failing(monkeypatch)
    failing.left, failing.armed = 2, True
    with pytest.raises(LaunchFailed):
        optimizer.step()
    failing.armed = False

    def refused(use):
        with pytest.raises(RuntimeError, match="load the last state_dict"):
            use()

    calls = list(optimizer._calls(Scaling()))
    refused(lambda: optimizer._backend.captured(calls).__enter__())
    refused(lambda: soap_fast.precondition(optimizer, [p.grad for p in params]))
    refused(soap_fast.GraphedStep(optimizer))
    with monkeypatch.context() as no_memory:
        no_memory.setattr(soap, "restack", _no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.load_state_dict(kept)
    refused(optimizer.step)
    del optimizer.state[params[0]]  # a step would make tables anew
    refused(optimizer.step)
    optimizer.load_state_dict(kept)
    optimizer.step()


def _no_memory(state):
    raise torch.OutOfMemoryError("as on a full device")

"""What is due together is planned and uploaded once, however long the period; not kept for ever."""

from __future__ import annotations

import pytest
import torch
from streams import parameters, set_gradients, train

from soap_fast import SOAP
from soap_fast.backends.triton import refresh as refresher
from soap_fast.backends.triton.backend import TritonBackend
from soap_fast.backends.triton.launch.launcher import RecordingLauncher


@pytest.fixture
def built(monkeypatch) -> list[int]:
    """How many tensors each set had that was planned."""
    sizes: list[int] = []
    real = refresher.Refresher._build

    def build(self, calls, *others):
        sizes.append(len(calls))
        return real(self, calls, *others)

    monkeypatch.setattr(refresher.Refresher, "_build", build)
    return sizes


def begun(tensors: int, **options):
    """Tensors after their first call, kernels recorded."""
    params = parameters(((2, 2),) * tensors)
    optimizer = SOAP(params, backend="eager", **options)
    train(optimizer, params, [0])
    optimizer._backend = TritonBackend(launcher=RecordingLauncher())
    return optimizer, params


def sets_of(optimizer: SOAP) -> int:
    (engine,) = optimizer._backend.engines.values()
    return len(engine.refresher.sets)


def test_nothing_is_planned_again_in_the_second_period(built):
    frequency = 100
    options = {"precondition_frequency": frequency, "refresh_schedule": "staggered"}
    optimizer, _ = begun(frequency, **options)
    for _ in range(frequency):
        optimizer.step()
    assert built == [1] * frequency  # a tensor's turn at every call
    for _ in range(frequency):
        optimizer.step()
    assert len(built) == frequency
    assert sets_of(optimizer) == frequency


def test_groups_of_two_frequencies_repeat_together(built):
    optimizer, params = begun(9, precondition_frequency=9, refresh_schedule="staggered")
    other = parameters(((2, 2),) * 8)
    options = {"params": other, "precondition_frequency": 8, "refresh_schedule": "staggered"}
    optimizer.add_param_group(options)
    params += other
    train(optimizer, params, range(1, 2 + 72))
    assert len(built) == 1 + 72  # the first one without the newcomers
    train(optimizer, params, range(2 + 72, 2 + 144))
    assert len(built) == 1 + 72


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
def test_tensors_that_have_gradients_now_and_then_do_not_fill_the_memory(built, schedule):
    optimizer, params = begun(9, precondition_frequency=2, refresh_schedule=schedule)
    generator = torch.Generator().manual_seed(0)
    for call in range(1, 160):
        set_gradients(params, call)
        for param in params:
            if torch.rand((), generator=generator) < 0.5:
                param.grad = None
        optimizer.step()
    assert len(built) > 100
    assert sets_of(optimizer) <= refresher.OTHER_SETS + 2


def test_the_set_that_was_due_longest_ago_goes_first(built, monkeypatch):
    monkeypatch.setattr(refresher, "OTHER_SETS", 2)
    optimizer, params = begun(2, precondition_frequency=1)
    train(optimizer, params, range(1, 4))
    assert built == [2]
    for call in range(4, 12):  # others come and go, that of all tensors stays
        set_gradients(params, call)
        params[call % 2].grad = None
        optimizer.step()
        train(optimizer, params, [call])
    assert built == [2, 1, 1]

"""A state that moves: begun on the CPU, stepped by another device or backend, and brought back."""

from __future__ import annotations

import pytest
import tolerances
import torch
from devices import on_cpu, on_gpu
from streams import SHAPES, assert_same_bits, parameters, set_gradients, through_a_file, train

from soap_fast import SOAP

SMALL = ((6, 4, 3, 3), (5,), (4, 1, 4), ())
FREQUENCY = 3
PLACES = [on_cpu("triton", SMALL), on_gpu(None, SHAPES), on_gpu("triton", SHAPES)]


def moved_to(device: str, params) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().to(device, copy=True)) for p in params]


def tensors_of(optimizer: SOAP) -> list[torch.Tensor]:
    found = []
    for entry in optimizer.state.values():
        found += [t for t in entry.values() if isinstance(t, torch.Tensor)]
        found += [m for m in entry["GG"] + entry["Q"] if m is not None]
    return found


def step_there(optimizer: SOAP, params, calls) -> None:
    """With the gradients of these calls, made on the CPU."""
    for call in calls:
        twins = parameters([p.shape for p in params])
        set_gradients(twins, call)
        for param, twin in zip(params, twins, strict=True):
            param.grad = twin.grad.to(param.device)
        optimizer.step()


def assert_follows(params, stayed, start) -> None:
    """As near as recorded trajectories are followed, in shares of the way since the move."""
    for param, twin, old in zip(params, stayed, start, strict=True):
        way = (twin.detach() - old).abs().max()
        assert (param.detach().cpu() - twin.detach()).abs().max() <= tolerances.TRACE * way


@pytest.mark.parametrize(("device", "backend", "shapes"), PLACES)
def test_a_state_moves_without_a_bit_changed(device, backend, shapes):
    params = parameters(shapes)
    optimizer = SOAP(params, precondition_frequency=FREQUENCY)
    train(optimizer, params, range(5))
    saved = optimizer.state_dict()
    far = moved_to(device, params)
    there = SOAP(far, backend=backend)
    there.load_state_dict(through_a_file(saved))
    assert all(t.device.type == device and t.is_contiguous() for t in tensors_of(there))
    assert_same_bits(there.state_dict(), saved)
    step_there(there, far, [5])  # which gives moments another order in memory
    back = moved_to("cpu", far)
    here = SOAP(back)
    here.load_state_dict(through_a_file(there.state_dict()))
    assert_same_bits(here.state_dict()["state"], there.state_dict()["state"])


@pytest.mark.parametrize("backend_here", ["eager", None])
@pytest.mark.parametrize(("device", "backend", "shapes"), PLACES)
def test_a_state_that_moves_goes_on_as_one_that_stays(device, backend, shapes, backend_here):
    """There through a refresh and a plain call, and back through another."""
    stayed = parameters(shapes)
    alone = SOAP(stayed, precondition_frequency=FREQUENCY, backend=backend_here)
    train(alone, stayed, range(5))
    start = [p.detach().clone() for p in stayed]

    far = moved_to(device, stayed)
    there = SOAP(far, backend=backend)
    there.load_state_dict(through_a_file(alone.state_dict()))
    there_calls, back_calls = range(5, 9), range(9, 12)
    step_there(there, far, there_calls)
    train(alone, stayed, there_calls)
    assert_follows(far, stayed, start)

    back = moved_to("cpu", far)
    here = SOAP(back, backend=backend_here)
    here.load_state_dict(through_a_file(there.state_dict()))
    train(here, back, back_calls)
    train(alone, stayed, back_calls)
    assert_follows(back, stayed, start)
    refreshed = [int(entry["refreshes"][0]) for entry in here.state.values()]
    assert refreshed == [int(entry["refreshes"][0]) for entry in alone.state.values()]
    assert max(refreshed) > 0

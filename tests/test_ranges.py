"""What a profiler shows of a step, and that a step without one pays nothing for it."""

from __future__ import annotations

import inspect

import pytest
import torch
from streams import backends, parameters, set_gradients

from soap_fast import SOAP, ranges
from soap_fast.backends.triton.backend import interpreted

needs_interpreter = pytest.mark.skipif(
    not interpreted(), reason="interprets kernels on CPU tensors: set TRITON_INTERPRET=1"
)
PHASES = ("soap_fast.begin", "soap_fast.update", "soap_fast.refresh")
# By backend: what computes within update and within refresh. The extension's operators have the
# names of the dispatcher.
WITHIN = {
    "eager": ({"rotate", "rotate_back", "grams", "adam_direction", "commit"}, {"refresh_eager"}),
    "native": ({"soap_fast::step_"}, {"soap_fast::refresh_", "soap_fast::carry_"}),
}


def spans_of_two_steps(backend):
    """The second one refreshes. Name, start and end of every range and operator."""
    params = parameters()
    optimizer = SOAP(params, backend=backend, precondition_frequency=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for call in range(2):
            set_gradients(params, call)
            optimizer.step()
    return [(e.name, e.time_range.start, e.time_range.end) for e in profile.events()]


@pytest.mark.parametrize("backend", backends())
def test_phases_and_what_computes_within_them(backend):
    spans = spans_of_two_steps(backend)
    assert [name for name, *_ in spans if name in PHASES] == [*PHASES, *PHASES]
    assert sum(name in PHASES for name, *_ in spans) == 6
    update, refresh = (
        max((span for span in spans if span[0] == phase), key=lambda span: span[2] - span[1])
        for phase in PHASES[1:]
    )
    for (_, start, end), expected in zip((update, refresh), WITHIN[backend], strict=True):
        inside = {name for name, begin, finish in spans if start <= begin and finish <= end}
        assert {one if "::" in one else f"soap_fast.{one}" for one in expected} <= inside


@needs_interpreter
def test_launches_have_names():
    params = parameters(shapes=((4, 3), (3,)))
    optimizer = SOAP(params, backend="triton")
    names = set()
    for call in range(2):
        set_gradients(params, call)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step()
        names |= {event.name for event in profile.events()}
    assert {f"soap_fast.{op}" for op in ("gather", "clock", "fold_gram", "adam", "apply")} <= names


@needs_interpreter
def test_a_steady_step_is_an_update():
    params = parameters(shapes=((4, 3), (3,)))
    optimizer = SOAP(params, backend="triton")
    set_gradients(params, 0)
    for _ in range(3):
        optimizer.step()
    assert optimizer._backend.steady is not None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    names = [event.name for event in profile.events()]
    assert names.count("soap_fast.update") == 1
    assert "soap_fast.begin" not in names


@pytest.mark.parametrize("backend", backends())
def test_without_a_profiler_nothing_is_recorded(backend, monkeypatch):
    def refused(name):
        raise AssertionError(f"a range {name} without a profiler")

    params = parameters()
    optimizer = SOAP(params, backend=backend, precondition_frequency=1)
    monkeypatch.setattr(ranges.profiler, "record_function", refused)
    for call in range(2):
        set_gradients(params, call)
        # Not by way of torch's wrapper of every optimizer's step, which always records.
        with torch.no_grad():
            inspect.unwrap(type(optimizer).step)(optimizer)
    assert ranges.named("update") is ranges.NOTHING

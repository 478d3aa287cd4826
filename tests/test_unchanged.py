"""What has moved since the last step: looked at from C++ and by its twin in Python, alike."""

from __future__ import annotations

import sys

import pytest
import torch
from streams import (
    DEMANDED,
    ON_CPU,
    assert_same_bits,
    needs_native,
    parameters,
    set_gradients,
    snapshot,
    train,
)

from soap_fast import SOAP, extension
from soap_fast.backends.metadata import PlainParameters, packed, parameters_seen, unpacked
from soap_fast.backends.unchanged import PlainWhereabouts, whereabouts_of
from soap_fast.install import missing
from soap_fast.step import call as step_call

WHY_NOT = extension.missing_unchanged()
AS_BUILT = pytest.mark.skipif(WHY_NOT is not None and not DEMANDED, reason=str(WHY_NOT))
COMPILED = pytest.param("compiled", marks=[needs_native, AS_BUILT])


@pytest.fixture(params=[COMPILED, "plain"])
def way(request, monkeypatch) -> str:
    """Who looks."""
    if request.param == "plain":
        monkeypatch.setattr(extension, "unchanged", lambda: None)
    return request.param


def seen(way: str):
    """Three parameters with gradients, as they were seen."""
    params = parameters(((4, 3), (2, 3, 5), ()))
    set_gradients(params, 0)
    found = parameters_seen(params, [param.grad for param in params])
    assert isinstance(found, PlainParameters) == (way == "plain")
    return params, found


def addresses(tensors) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def test_addresses_are_those_of_now(way):
    params, found = seen(way)
    for _ in range(2):
        gradients, of_params, _ = found.look(params)
        assert unpacked(gradients).tolist() == addresses(param.grad for param in params)
        assert unpacked(of_params).tolist() == addresses(params)
        set_gradients(params, 1)  # other tensors
        params[1].data = params[1].data.clone()


def subclassed(param) -> None:
    param.__class__ = type("Other", (torch.nn.Parameter,), {})


CHANGES = {
    "no gradient": lambda param: setattr(param, "grad", None),
    "the gradient's dtype": lambda param: setattr(param.grad, "data", param.grad.data.double()),
    "the gradient's strides": lambda param: setattr(param.grad, "data", param.grad.data.mT),
    "the gradient's sizes": lambda param: setattr(param.grad, "data", param.grad.data[:2]),
    "the gradient's dimensions": lambda param: setattr(param.grad, "data", param.grad.data[None]),
    "a gradient that is sparse": lambda param: setattr(param, "grad", param.grad.to_sparse()),
    "a gradient that is negated": lambda param: setattr(param, "grad", negated(param.grad)),
    "a gradient without memory": lambda param: setattr(param, "grad", fake(param)),
    "the dtype": lambda param: setattr(param, "data", param.data.bfloat16()),
    "the strides": lambda param: setattr(param, "data", param.data.mT),
    "the sizes": lambda param: setattr(param, "data", param.data[:2]),
    "the class": subclassed,
    "the sign": lambda param: setattr(param, "data", negated(param.data)),
    "the memory": lambda param: param.untyped_storage().resize_(0),
    "the gradient's memory": lambda param: param.grad.untyped_storage().resize_(0),
}


def negated(grad: torch.Tensor) -> torch.Tensor:
    found = torch._neg_view(grad)
    assert found.is_neg()
    return found


def fake(param: torch.Tensor) -> torch.Tensor:
    """A gradient that another tensor of torch's own class stands for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(param.shape)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_else_has_changed_is_noticed(way, change):
    params, found = seen(way)
    param = params[0]
    if change == "the gradient's strides":
        param.data = param.grad.data = torch.ones(3, 3)  # sizes stay
        found = parameters_seen(params, [one.grad for one in params])
    assert found.look(params) is not None
    CHANGES[change](param)
    assert found.look(params) is None


def test_gradients_live_as_long_as_what_was_found(way):
    params, found = seen(way)
    looked_at = found.look(params)
    before = set(unpacked(looked_at[0]).tolist())
    for param in params:
        param.grad = None
    others = [torch.empty_like(param) for _ in range(50) for param in params]
    assert before.isdisjoint(addresses(others))


def test_parameters_of_other_classes_are_looked_at_in_python(way):
    params, _ = seen(way)
    subclassed(params[1])
    found = parameters_seen(params, [param.grad for param in params])
    assert isinstance(found, PlainParameters)
    gradients, _, _ = found.look(params)
    assert gradients == packed(addresses(param.grad for param in params))


# Clocks ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
def test_calls_since_are_those_of_all_entries():
    """None where one has had more than another, or there is none."""
    entries, before = [{"calls": n, "step": n} for n in (3, 7, 300)], [3, 7, 300]
    assert step_call.calls_since(entries, before) == 0
    step_call.moving(entries)  # a map, which nobody has walked yet
    assert step_call.calls_since(entries, before) == 0
    for _ in range(2):
        list(step_call.moving(entries))
    assert step_call.calls_since(entries, before) == 2
    entries[2]["calls"] += 1
    assert step_call.calls_since(entries, before) is None
    assert step_call.calls_since([], []) is None


@pytest.mark.usefixtures("way")
def test_an_entry_without_a_clock_is_an_error():
    with pytest.raises(KeyError):
        step_call.calls_since([{"calls": 1}, {}], [1, 1])


# Where the state lies --------------------------------------------------------------------------


def states_after_steps() -> list[dict]:
    params = parameters(((4, 3), (5,)))
    optimizer = SOAP(params, backend="eager")
    train(optimizer, params, range(2))
    return [optimizer.state[param] for param in params]


def moved(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data.clone()


STATE_CHANGES = {
    "a counter": lambda entry: entry.update(step=entry["step"].clone()),
    "a counter in place": lambda entry: moved(entry["skipped"]),
    "a moment": lambda entry: entry.update(exp_avg_sq=entry["exp_avg_sq"].clone()),
    "a moment in place": lambda entry: moved(entry["exp_avg"]),
    "a moment's strides": lambda entry: setattr(
        entry["exp_avg"], "data", entry["exp_avg"].data.as_strided((4, 3), (1, 4))
    ),
    "a basis": lambda entry: entry["Q"].__setitem__(0, entry["Q"][0].clone()),
    "a basis in place": lambda entry: moved(entry["Q"][1]),
    "a factor": lambda entry: entry["GG"].__setitem__(1, entry["GG"][1].clone()),
    "no basis": lambda entry: entry["Q"].__setitem__(1, None),
    "one basis more": lambda entry: entry["Q"].append(entry["Q"][0]),
}


@pytest.mark.parametrize("change", STATE_CHANGES)
def test_a_state_that_lies_elsewhere_is_noticed(way, change):
    states = states_after_steps()
    kept = [dict(entry, GG=[*entry["GG"]], Q=[*entry["Q"]]) for entry in states]
    found = whereabouts_of(states)
    assert isinstance(found, PlainWhereabouts) == (way == "plain")
    assert found.same()
    states[0]["mine"] = object()
    assert found.same()
    STATE_CHANGES[change](states[0])
    assert not found.same()
    assert kept


def test_the_same_memory_by_another_object_is_the_same(way):
    states = states_after_steps()
    found = whereabouts_of(states)
    states[0]["exp_avg"] = states[0]["exp_avg"].view_as(states[0]["exp_avg"])
    assert found.same()


# Counting --------------------------------------------------------------------------------------


def test_calls_and_writes_are_counted(way):
    params, entries = parameters(((4, 3), (5,))), [{"calls": 1}, {"calls": 700, "step": None}]
    before = [param._version for param in params]
    step_call.count_writes(params)
    assert [param._version for param in params] == [version + 1 for version in before]
    for part in (step_call.moving(entries), step_call.moving(entries)):
        list(part)
    assert entries == [{"calls": 3}, {"calls": 702, "step": None}]


def test_writes_to_tensors_of_inference_are_not_counted(way):
    with torch.inference_mode():
        tensor = torch.ones(3)
    step_call.count_writes([tensor, torch.ones(2)])


@pytest.mark.parametrize("backend", [b for b in ON_CPU if "eager" not in b.values])
def test_steady_and_refreshing_calls_make_the_same_bits_either_way(backend, monkeypatch):
    ends = []
    for unchanged in (extension.unchanged, lambda: None):
        monkeypatch.setattr(extension, "unchanged", unchanged)
        params = parameters(((6, 4), (5,)))
        optimizer = SOAP(params, backend=backend, precondition_frequency=3)
        train(optimizer, params, range(9))
        assert optimizer._backend.steady is not None
        ends.append(snapshot(optimizer, params))
    assert_same_bits(*ends)


# What it was built with ------------------------------------------------------------------------


@needs_native
def test_another_build_of_torch_does_without_and_is_told(monkeypatch):
    """Its classes may be laid out otherwise: the module is not even imported."""
    loaded = sys.modules.pop("soap_fast._unchanged", None)
    extension._load_unchanged.cache_clear()
    monkeypatch.setattr(torch.version, "git_version", "another")
    try:
        assert extension.unchanged() is None
        assert "soap_fast._unchanged" not in sys.modules
        (told,) = (part for part in missing() if part["part"] == "comparisons in C++")
        assert "built with another torch" in told["how"]
    finally:
        monkeypatch.undo()
        if loaded is not None:
            sys.modules["soap_fast._unchanged"] = loaded
        extension._load_unchanged.cache_clear()


@needs_native
def test_the_build_it_was_made_with_has_it():
    if extension.build_info().get("torch_commit") == torch.version.git_version:
        assert extension.unchanged() is not None

"""What a subclass or a user keeps in `optimizer.state` stays there, as in torch's optimizers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from streams import (
    ON_CPU,
    assert_same_bits,
    backends,
    parameters,
    set_gradients,
    snapshot,
    through_a_file,
    train,
)

from soap_fast import SOAP, explain, precondition

SHAPES = ((4, 3), (3, 2, 2), (3,))
OURS = {"calls", "skipped", "step", "exp_avg", "exp_avg_sq", "GG", "Q", "refreshes", "off_diagonal"}


class Counting(SOAP):
    """Counts its steps in the state, as PyTorch's own tests of subclasses do."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.state["n"] = 0
        self.state["seen"] = {"losses": [0.5, torch.tensor([1.0, 2.0])], "of": ("a", None)}

    def step(self, closure=None):
        loss = super().step(closure)
        self.state["n"] += 1
        return loss


def with_own(backend, kind=SOAP, calls=0, **options):
    """Every entry has an average and a note of the user's, before it has anything of ours."""
    params = parameters(SHAPES)
    optimizer = kind(params, backend=backend, precondition_frequency=3, **options)
    for place, param in enumerate(params):
        optimizer.state[param]["mine"] = torch.full((2,), float(place))
        optimizer.state[param]["note"] = {"pair": (torch.tensor(place), "text"), "on": True}
    train(optimizer, params, range(calls))
    return params, optimizer


def assert_kept(optimizer, params):
    for place, param in enumerate(params):
        entry = optimizer.state[param]
        assert entry["mine"].tolist() == [place, place]
        assert entry["note"]["pair"][0].dtype == torch.int64
        assert entry["note"]["pair"] == (place, "text")
        assert entry["note"]["on"] is True


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_steps_are_those_without_it(backend, schedule):
    """The first, plain, steady and refreshing ones, and ones of tensors that begin later."""
    plain = parameters(SHAPES)
    options = {"refresh_schedule": schedule}
    expected = SOAP(plain, backend=backend, precondition_frequency=3, **options)
    params, optimizer = with_own(backend, Counting, **options)
    for call in range(7):
        for one, own in ((expected, plain), (optimizer, params)):
            set_gradients(own, call)
            if call < 2:
                own[1].grad = None
            one.step()
    assert optimizer.state["n"] == 7
    assert_kept(optimizer, params)
    for param, twin in zip(plain, params, strict=True):
        assert torch.equal(param, twin)
        ours = {k: v for k, v in optimizer.state[twin].items() if k not in ("mine", "note")}
        assert_same_bits(ours, dict(expected.state[param]))


@pytest.mark.parametrize("calls", [0, 1, 4])
@pytest.mark.parametrize("backend", ON_CPU)
def test_it_is_saved_and_loaded_through_a_file(backend, calls):
    params, optimizer = with_own(backend, Counting, calls)
    saved = through_a_file(optimizer.state_dict())
    assert saved["state"]["n"] == calls
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = Counting(resumed, backend=backend)
    other.state["n"] = 99
    other.load_state_dict(saved)
    assert other.state["n"] == calls
    assert other.state["seen"]["losses"][1].tolist() == [1.0, 2.0]
    assert_kept(other, resumed)
    assert_same_bits(other.state_dict(), optimizer.state_dict())
    train(optimizer, params, range(calls, 5))
    train(other, resumed, range(calls, 5))
    assert other.state["n"] == 5
    for param, twin in zip(params, resumed, strict=True):
        assert torch.equal(param, twin)


def test_what_is_saved_and_loaded_is_a_copy():
    params, optimizer = with_own("eager", Counting, 2)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    optimizer.state["seen"]["losses"][1].zero_()
    optimizer.state[params[0]]["mine"].fill_(7)
    assert_same_bits(saved, kept)
    other = Counting(parameters(SHAPES), backend="eager")
    other.load_state_dict(saved)
    other.state["seen"]["losses"][1].zero_()
    other.state[other.param_groups[0]["params"][0]]["mine"].fill_(7)
    assert_same_bits(saved, kept)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("backend", ON_CPU)
def test_copies_have_it(backend, copier):
    params, optimizer = with_own(backend, Counting, 4)
    copied = copier(optimizer)
    own = copied.param_groups[0]["params"]
    assert copied.state["n"] == 4
    assert_kept(copied, own)
    train(copied, own, range(4, 7))
    train(optimizer, params, range(4, 7))
    assert copied.state["n"] == optimizer.state["n"] == 7
    for param, twin in zip(params, own, strict=True):
        assert torch.equal(param, twin)


@pytest.mark.parametrize("backend", backends())
def test_the_layout_of_the_reference_carries_it_as_well(backend):
    params, optimizer = with_own(backend, Counting, 4)
    saved = through_a_file(optimizer.state_dict(layout="reference"))
    assert saved["state"]["n"] == 4
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = Counting(resumed, backend=backend)
    other.load_state_dict(saved)
    assert other.state["n"] == 4
    assert_kept(other, resumed)
    assert set(other.state[resumed[0]]) == OURS | {"phases", "mine", "note"}


def test_reading_the_state_of_a_tensor_that_has_not_begun_begins_nothing():
    params, optimizer = with_own("eager", Counting)
    assert set(optimizer.stats()["skipped"].values()) == {0}
    assert set(optimizer.stats()["refreshed"].values()) == {0}
    assert "eager" in str(explain(optimizer))
    with pytest.raises(ValueError, match="has not been stepped yet"):
        precondition(optimizer, [torch.ones_like(p) for p in params])
    before = snapshot(optimizer, params)
    set_gradients(params, 0)
    params[0].grad.fill_(torch.nan)
    optimizer.step()
    assert optimizer.stats()["skipped"]["parameter 0 of group 0"] == 1
    assert_same_bits([p.detach() for p in params], before[0])
    assert_kept(optimizer, params)


def test_a_key_that_would_be_taken_for_a_parameter_is_told():
    """Torch's optimizers write one over the other there."""
    _, optimizer = with_own("eager", calls=2)
    optimizer.state[1] = "mine"
    with pytest.raises(ValueError, match=r"state\[1\].*index of a parameter.*another key"):
        optimizer.state_dict()
    del optimizer.state[1]
    optimizer.state[11] = "mine"
    other = SOAP(parameters(SHAPES))
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.state[11] == "mine"


def test_entries_of_parameters_under_other_names_are_refused_as_before():
    _, optimizer = with_own("eager", calls=2)
    saved = optimizer.state_dict()
    saved["state"]["layer.weight"] = saved["state"].pop(1)
    with pytest.raises(ValueError, match=r"\['layer.weight'\] of no group"):
        SOAP(parameters(SHAPES)).load_state_dict(saved)

"""A parameter that was enlarged: the error says so and how to go on, and that way works."""

from __future__ import annotations

import pytest
import torch
from streams import ON_CPU, assert_same_bits, backends, parameters, set_gradients, train

from soap_fast import SOAP

DELETE = r"del optimizer\.state\[p\]"
BEFORE = {
    "a matrix": (4, 3),
    "a convolution": (4, 3, 2, 2),
    "a mode without a factor": (9, 3),
    "a vector": (4,),
}
# A step that finds something amiss is the same on all backends; how it comes to look is not.
CASES = [("eager", kind) for kind in BEFORE] + [
    pytest.param(backend.values[0], "a matrix", marks=backend.marks)
    for backend in ON_CPU
    if backend.values[0] != "eager"
]
OPTIONS = {"precondition_frequency": 3, "max_precond_dim": 8, "precondition_1d": True}


def begun(shape, backend, **options):
    """Some parameters that have taken steady steps, the one to be changed in their midst."""
    params = parameters(((2, 2), shape, (3,)))
    named = list(zip(("first", "grown", "last"), params, strict=True))
    optimizer = SOAP(named, backend=backend, **{**OPTIONS, **options})
    train(optimizer, params, range(5))
    return params, optimizer


def enlarge(param, dim, by=2):
    """In place, as layers grow, prune or take new rows of an embedding."""
    shape = list(param.shape)
    shape[dim] += by
    param.data = torch.randn(shape, generator=torch.Generator().manual_seed(7))


def moments_along(entry, shape):
    """As people do to Adam's state."""
    for name in ("exp_avg", "exp_avg_sq"):
        grown = torch.zeros(shape)
        grown[tuple(slice(size) for size in entry[name].shape)] = entry[name]
        entry[name] = grown


@pytest.mark.parametrize("moments", [False, True], ids=["alone", "with its moments"])
@pytest.mark.parametrize(("backend", "kind"), CASES)
def test_it_is_told_what_happened_and_how_to_go_on(backend, kind, moments):
    for dim in range(len(BEFORE[kind])):
        if moments and BEFORE[kind][dim] > OPTIONS["max_precond_dim"]:
            continue  # a mode without a factor may grow: all that there is of it has grown along
        params, optimizer = begun(BEFORE[kind], backend)
        enlarge(params[1], dim)
        if moments:
            moments_along(optimizer.state[params[1]], params[1].shape)
        set_gradients(params, 5)
        first = params[0].detach().clone()
        with pytest.raises(ValueError, match=DELETE) as told:
            optimizer.step()
        text = str(told.value)
        assert text.startswith(f"parameter 'grown' is {list(params[1].shape)} but ")
        assert "max_precond_dim" not in text
        assert torch.equal(params[0], first)

        del optimizer.state[params[1]]
        optimizer.step()
        train(optimizer, params, range(6, 9))
        assert optimizer.state[params[1]]["calls"] == 4
        assert optimizer.state[params[0]]["calls"] == 9


@pytest.mark.parametrize("backend", backends())
def test_a_new_parameter_that_is_given_the_old_ones_state(backend):
    """As splats are made more: the state is cut or padded and put under the new parameter."""
    params, optimizer = begun((4, 3), backend)
    entry = optimizer.state.pop(params[1])
    params[1] = torch.nn.Parameter(torch.randn(6, 3))
    moments_along(entry, (6, 3))
    optimizer.state[params[1]] = entry
    optimizer.param_groups[0]["params"][1] = params[1]
    set_gradients(params, 5)
    with pytest.raises(ValueError, match=rf"is \[6, 3\] but its factors are of \[4, 3\].*{DELETE}"):
        optimizer.step()
    del optimizer.state[params[1]]
    optimizer.step()
    assert optimizer.state[params[1]]["calls"] == 1


@pytest.mark.parametrize("merging", [True, False], ids=["merged", "not merged any more"])
def test_where_modes_are_merged_both_causes_are_told(merging):
    params, optimizer = begun((4, 3, 2, 2), "eager", merge_dims=True)
    optimizer.param_groups[0]["merge_dims"] = merging
    if merging:
        enlarge(params[1], 0)
        moments_along(optimizer.state[params[1]], params[1].shape)
    set_gradients(params, 5)
    with pytest.raises(ValueError, match=rf"resized.*or one of max_precond_dim.*{DELETE}"):
        optimizer.step()
    if merging:
        del optimizer.state[params[1]]
    optimizer.param_groups[0]["merge_dims"] = True
    optimizer.step()


def test_a_changed_option_is_still_what_is_told_of():
    params, optimizer = begun((4, 3), "eager")
    optimizer.param_groups[0]["max_precond_dim"] = 3
    set_gradients(params, 5)
    with pytest.raises(ValueError, match=r"max_precond_dim, .* cannot change after"):
        optimizer.step()
    optimizer.param_groups[0]["max_precond_dim"] = 8
    optimizer.step()


def test_a_checkpoint_of_the_smaller_one_says_so_too():
    params, optimizer = begun((4, 3), "eager")
    saved = optimizer.state_dict()
    enlarge(params[1], 0)
    del optimizer.state[params[1]]
    before = {key: dict(entry) for key, entry in optimizer.state_dict()["state"].items()}
    with pytest.raises(ValueError, match=r"grown: exp_avg is \(4, 3\), not of shape \(6, 3\)"):
        optimizer.load_state_dict(saved)
    assert_same_bits(dict(optimizer.state_dict()["state"]), before)
    del saved["state"][1]
    optimizer.load_state_dict(saved)
    train(optimizer, params, range(5, 8))

"""What is done between the step that starts a refresh and the next one finds it written."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from shared import OPTIONS, SHAPES, built, end_of, steps, take
from streams import ON_CPU, assert_same_bits, backends, set_gradients

from soap_fast import SOAP, precondition
from soap_fast.diagnostics import off_diagonal

CALLS = range(9)  # with refreshes at 3 and 6
BOTH = (False, True)  # whether results travel


def underway(optimizer) -> bool:
    """Whether a refresh was started and is not written."""
    return any("owed" in entry for entry in optimizer.state.values())


def save(params, optimizer, rank):
    return optimizer.state_dict() if rank == 0 else None


def count(params, optimizer, rank):
    return optimizer.stats()["refreshed"]


def look(params, optimizer, rank):
    grads = [torch.ones_like(param) for param in params]
    return precondition(optimizer, grads), off_diagonal(optimizer)["parameter 0 of group 0"]


def copies(params, optimizer, rank):
    """On one rank: a copy steps alone."""
    if rank == 0:
        return None
    twins = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    ends = []
    for twin in twins:
        own = twin.param_groups[0]["params"]
        for call in range(4, 8):
            set_gradients(own, call)
            twin.step()
        ends.append(end_of(own, twin))
    return ends


def join(params, optimizer, rank):
    """At call 6 each group has a refresh, by a call of the operator each."""
    params.append(torch.nn.Parameter(torch.ones(6, 5)))
    options = {"precondition_frequency": 2, "refresh_tolerance": 0.3}
    optimizer.add_param_group({"params": params[-1:], **options})
    return len(params)


def reload(params, optimizer, rank):
    """A state of call 2, which owes nothing, with other values; what travels is of no use."""
    alone, other = built(None, backend="eager")
    for call in range(3):
        set_gradients(alone, call)
        other.step()
    optimizer.load_state_dict(other.state_dict())
    for param, value in zip(params, alone, strict=True):
        param.data.copy_(value)
    assert getattr(optimizer._sharing, "_started", None) is None


def change(params, optimizer, rank):
    optimizer.param_groups[0].update(precondition_frequency=2, refresh_tolerance=0.5, lr=0.02)


def begin_anew(params, optimizer, rank):
    del optimizer.state[params[0]]


def replace(params, optimizer, rank):
    """A basis by a copy of it, which lies in no stack."""
    bases = optimizer.state[params[0]]["Q"]
    bases[0] = bases[0].clone()


def replace_and_save(params, optimizer, rank):
    """One rank alone has it written, to other places than it was computed for."""
    replace(params, optimizer, rank)
    return save(params, optimizer, rank)


def nothing(params, optimizer, rank):
    optimizer.zero_grad()
    optimizer.step()  # without any gradient


FINISHING = (save, count, look, copies, join, replace_and_save)
OTHERS = (reload, change, begin_anew, replace, nothing)


def done_between(group, backend, action, shapes=SHAPES, calls=CALLS):
    """Of both ways: parameters after each call, what the action saw, and the end."""
    found = []
    for overlap in BOTH:
        params, optimizer = built(group, shapes, backend=backend, overlap=overlap)
        seen = []
        for call in calls:
            set_gradients(params, call)
            optimizer.step()
            seen.append([p.detach().clone() for p in params])
            if call == 3:
                assert underway(optimizer) == overlap
                seen.append(action(params, optimizer, group.rank()))
                assert not underway(optimizer) or action in OTHERS or seen[-1] is None
        found.append((seen, end_of(params, optimizer)))
    return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("action", [*FINISHING, *OTHERS], ids=lambda action: action.__name__)
def test_it_is_as_without_overlap(ranks, backend, action):
    for at_once, later in ranks(2, done_between, backend, action):
        assert_same_bits(later, at_once)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", [b for b in ON_CPU if "triton" in b.values])
def test_no_steady_step_follows_a_basis_that_was_replaced(ranks, backend):
    """It lies alone in its stack, so that what has come is for it."""
    for at_once, later in ranks(2, done_between, backend, replace, ((4, 3), (3,)), range(6)):
        assert_same_bits(later, at_once)


def saved_by_one(group):
    """What rank 0 saves while a refresh is underway, and everybody's values."""
    params, optimizer = built(group, overlap=True, backend="eager")
    take(params, optimizer, range(4))
    saved = optimizer.state_dict() if group.rank() == 0 else None
    return [p.detach().clone() for p in params], saved


def gone_on(group, values, saved):
    params, optimizer = built(group, overlap=True, backend="eager")
    for param, value in zip(params, values, strict=True):
        param.data.copy_(value)
    optimizer.load_state_dict(saved)
    take(params, optimizer, range(4, 8))
    return end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
def test_what_one_rank_saves_meanwhile_is_resumed_by_all(ranks):
    values, saved = ranks(2, saved_by_one)[0]
    expected = steps(None, range(8), backend="eager")
    for found in ranks(4, gone_on, values, saved):
        assert_same_bits(found, expected)


def under_inference_mode(group, calls):
    """These calls; gradients are made outside of it."""
    params, optimizer = built(group, overlap=True, backend="eager", precondition_frequency=2)
    for call in CALLS:
        set_gradients(params, call)
        with torch.inference_mode(call in calls):
            optimizer.step()
    return end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("calls", [(2,), (3,), (2, 3, 4), (1, 6)], ids=str)
def test_steps_under_inference_mode(ranks, calls):
    """What is made in one is written in others."""
    expected = steps(None, CALLS, backend="eager", precondition_frequency=2)
    for found in ranks(2, under_inference_mode, calls):
        assert_same_bits(found, expected)


def of_wrong_options(group):
    said = []
    for options in (
        {"sharding": "state", "overlap": True, "process_group": group},
        {"overlap": True},
        {"sharding": "refresh", "overlap": 1, "process_group": group},
    ):
        with pytest.raises(ValueError, match="overlap=") as raised:
            SOAP([torch.nn.Parameter(torch.ones(2, 2))], **options)
        said.append(str(raised.value))
    params, optimizer = built(group, overlap=group.rank() == 0)
    set_gradients(params, 0)
    with pytest.raises(ValueError, match="rank 1 has other overlap than rank 0"):
        optimizer.step()
    return said


def test_what_it_is_refused_with(ranks):
    for state, none, number in ranks(2, of_wrong_options):
        assert state.startswith("overlap=True has nothing to overlap with sharding='state'")
        assert none.startswith("overlap=True has nothing to overlap with sharding='none'")
        assert number.startswith("overlap=1 is not True or False")


def alone_in_its_group(group):
    params, optimizer = built(group, overlap=True, **{**OPTIONS, "backend": "eager"})
    take(params, optimizer, range(4))
    return underway(optimizer)


def test_one_process_has_nobody_to_wait_for(ranks):
    assert ranks(1, alone_in_its_group) == [False]

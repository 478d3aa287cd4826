"""Steps that one rank does not take: the others hear of it in the step in which they next meet.

Where they did not, that rank would meet them a step later, at what is another collective for them.
"""

from __future__ import annotations

import pytest
import torch
from shared import OPTIONS, broken_once, built, end_of, heard_by_call
from streams import assert_same_bits, parameters
from test_distributed_faults import stepping

from soap_fast import SOAP

WAYS = ({"sharding": "refresh"}, {"sharding": "refresh", "overlap": True})
IDS = ("at once", "overlap")
TOLD = "ranks [1] could not take part in a refresh: what they raise says why"


def beside_first_bases(group, options):
    """One rank misses an update in a step in which another tensor begins."""
    params, optimizer = built(group, ((6, 5), (4, 3)), backend="eager", **options)

    def ahead(call):
        if call == 0:
            params[1].grad = None
        if (call, group.rank()) == (1, 1):
            optimizer._backend.update = broken_once(optimizer._backend.update)

    return heard_by_call(params, optimizer, range(6), ahead)


@pytest.mark.parametrize("options", WAYS, ids=IDS)
def test_an_update_that_raises_in_a_step_in_which_others_begin(ranks, options):
    other, faulty = ranks(2, beside_first_bases, options)
    assert [*other] == [3, 4, 5]  # with the refresh of the first tensor
    assert [*faulty] == [1, 3, 4, 5]
    assert "rank 1 is at a step after one that raised in step 4" in other[3]


def one_after_the_other(group, options):
    """One rank refuses two steps, of which the second is none of the second tensor."""
    first, second = parameters(((6, 5), (4, 3)))
    groups = [
        {"params": [first], "precondition_frequency": 100},
        {"params": [second], "precondition_frequency": 3},
    ]
    optimizer = SOAP(groups, lr=0.01, backend="eager", process_group=group, **options)

    def ahead(call):
        if call == 2:
            second.grad = None
        refuses = group.rank() == 1 and call in (1, 2)
        optimizer.param_groups[0]["lr"] = -1 if refuses else 0.01

    return heard_by_call([first, second], optimizer, range(7), ahead)


@pytest.mark.parametrize("options", WAYS, ids=IDS)
def test_steps_of_other_tensors_one_after_the_other(ranks, options):
    other, faulty = ranks(2, one_after_the_other, options)
    assert [*other] == [4, 5, 6]
    assert [*faulty] == [1, 2, 4, 5, 6]
    assert "rank 1 is at a step after one that raised in step 5" in other[4]


NO_OPTIONS = {
    "lr": -1,
    "precondition_frequency": 0,
    "refresh_schedule": "sometimes",
    "max_precond_dim": -1,
}


def no_such_option(group, options, name, value, at):
    """One rank is given an option that no step takes, for one step."""
    params, optimizer = built(group, backend="eager", **options)
    own = optimizer.param_groups[0]
    usual = own[name]

    def ahead(call):
        own[name] = value if (call, group.rank()) == (at, 1) else usual

    return heard_by_call(params, optimizer, range(6), ahead)


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
@pytest.mark.parametrize("at", [1, 3], ids=["without", "with a refresh"])
@pytest.mark.parametrize("name", NO_OPTIONS)
def test_whatever_option_one_rank_refuses(ranks, name, at, schedule):
    """Of staggered tensors, phases are given in the first step after that of their beginning."""
    for options in WAYS:
        options = {**options, "refresh_schedule": schedule}
        told = (options, name, NO_OPTIONS[name], at)
        other, faulty = ranks(2, no_such_option, *told)
        assert faulty[at].startswith(f"ValueError: {name}=")
        meets = at if schedule == "staggered" else 3
        assert [*other] == list(range(meets, 6))
        assert [*faulty] == sorted({at, *other})


@pytest.mark.parametrize("name", NO_OPTIONS)
def test_whatever_option_an_owner_refuses(ranks, name):
    """A plan that cannot be made is one of what ranks share; of the rest its owner is asked."""
    told = ({"sharding": "state", **OPTIONS}, name, NO_OPTIONS[name], 3)
    other, faulty = ranks(2, no_such_option, *told)
    assert [*faulty] == [3]
    assert faulty[3].startswith(f"ValueError: {name}=")
    assert [*other] == ([3] if name == "max_precond_dim" else [])


def one_step_less(group, options):
    """One rank does not call `step` once; then all load what the first one has."""
    params, optimizer = built(group, backend="native", **options)
    raised = stepping(params, optimizer, range(4 if group.rank() else 5))
    handed = [end_of(params, optimizer)]
    torch.distributed.broadcast_object_list(handed, group=group, group_src=0)
    ((values, state),) = handed
    optimizer.load_state_dict(state)
    for param, value in zip(params, values, strict=True):
        param.data.copy_(value)
    return raised, stepping(params, optimizer, range(6, 12)), end_of(params, optimizer)


@pytest.mark.parametrize("options", WAYS, ids=IDS)
def test_ranks_that_have_called_step_less_often_go_on_once_they_have_loaded(ranks, options):
    (early, fine, first), (too, late, second) = ranks(2, one_step_less, options)
    assert early == too == fine == late == []
    assert_same_bits(first, second)


def with_a_group_less(group, options):
    """A group is taken out of the optimizer; later one rank refuses a step with a refresh."""
    params = parameters(((6, 5), (4, 3)))
    sharing = {"backend": "eager", "process_group": group, **options}
    optimizer = SOAP([{"params": [p]} for p in params], precondition_frequency=3, **sharing)

    def ahead(call):
        if call == 3:
            optimizer.param_groups.pop()
            optimizer.param_groups[0]["lr"] = -1 if group.rank() else 0.01

    return heard_by_call(params, optimizer, range(4), ahead)


@pytest.mark.parametrize("options", WAYS, ids=IDS)
def test_a_step_that_one_rank_refuses_after_a_group_was_taken_out(ranks, options):
    other, faulty = ranks(2, with_a_group_less, options)
    assert other == {3: f"RuntimeError: {TOLD}"}
    assert faulty[3].startswith("ValueError: lr=-1")

"""What sharing cannot do is said by name: at once, or at the first step, on every rank."""

from __future__ import annotations

import pytest
import torch
from shared import OPTIONS, built, end_of, heard
from streams import assert_same_bits, parameters, set_gradients

from soap_fast import SOAP, GraphedStep


def test_an_unknown_sharding():
    with pytest.raises(
        ValueError, match=r"sharding='half' is not one of \('none', 'refresh', 'state'\)"
    ):
        SOAP(parameters(), sharding="half")


def test_no_processes():
    with pytest.raises(ValueError, match="init_process_group first"):
        SOAP(parameters(), sharding="refresh")


def of_wrong_groups(group):
    return heard(lambda: SOAP(parameters(), sharding="refresh", process_group="all"))


def test_what_is_no_group(ranks):
    for said in ranks(2, of_wrong_groups):
        assert "process_group='all' is not a torch.distributed.ProcessGroup" in said


def of_graphs(group):
    _, optimizer = built(group)
    return heard(lambda: GraphedStep(optimizer))


def test_cuda_graphs(ranks):
    for said in ranks(2, of_graphs):
        assert "RuntimeError: a CUDA graph repeats no exchange between processes" in said


def of_a_first_step(group, what):
    """What is said, and whether anything was written."""
    options = {"lr": 0.01 * (1 + group.rank())} if what == "lr" else {}
    params, optimizer = built(group, **options)
    if what == "order" and group.rank() == 1:
        params = params[::-1]
        optimizer = SOAP(params, **OPTIONS, sharding="refresh", process_group=group)
    set_gradients(params, 0)
    if what == "gradients" and group.rank() == 1:
        params[2].grad = None
    if what == "state" and group.rank() == 0:
        alone, other = built(None)
        set_gradients(alone, 0)
        other.step()
        optimizer.load_state_dict(other.state_dict())
    before = end_of(params, optimizer)
    said = heard(optimizer.step)
    assert_same_bits(end_of(params, optimizer), before)
    return said


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("lr", "other lr than rank 0"),
        ("order", "other parameters"),
        ("gradients", "other gradients than rank 0"),
        ("state", "other clocks of its state than rank 0"),
    ],
)
def test_ranks_that_differ_are_told_at_the_first_step(ranks, what, named):
    for said in ranks(2, of_a_first_step, what):
        assert said.startswith("ValueError: rank 1 has ")
        assert named in said


def of_freed_memory(group):
    """A parameter of another rank's, whose memory one rank has freed ahead of the last step."""
    params, optimizer = built(group, sharding="state")
    for call in range(3):
        set_gradients(params, call)
        if call == 2 and group.rank() == 1:
            params[0].untyped_storage().resize_(0)
        before = params[1].detach().clone()
        said = heard(optimizer.step)
    assert torch.equal(params[1], before)
    return said


def test_memory_that_one_rank_has_freed(ranks):
    other, freed = ranks(2, of_freed_memory)
    assert "ranks [1] could not take a step" in other
    assert "ValueError: parameter 0 of group 0 is [12, 12] but has no memory" in freed


def bases_of(params, optimizer) -> list:
    found = (q for p in params for q in optimizer.state.get(p, {}).get("Q", ()))
    return [q.clone() for q in found if q is not None]


def of_a_refresh(group):
    params, optimizer = built(group)
    for call in range(4):
        set_gradients(params, call)
        if call == 3 and group.rank() == 1:
            params[0].grad = None
        before = bases_of(params, optimizer)
        said = heard(optimizer.step)
    assert_same_bits(bases_of(params, optimizer), before)
    return said


def test_ranks_at_a_refresh_of_other_factors_are_told(ranks):
    for said in ranks(2, of_a_refresh):
        assert "rank 1 is at a refresh of other factors than rank 0" in said


def of_other_dtypes(group, options, at):
    """Each rank has a float64 gradient, of another of two tensors of one shape."""
    params, optimizer = built(group, ((6, 5), (6, 5)), **options)
    for call in range(at + 1):
        set_gradients(params, call)
        if call == at:
            param = params[group.rank()]
            param.grad.data = param.grad.double()
        before = [p.detach().clone() for p in params]
        bases = bases_of(params, optimizer)
        said = heard(optimizer.step)
    assert_same_bits(bases_of(params, optimizer), bases)
    return said, all(map(torch.equal, params, before))


DTYPES = [
    ({}, 0, "ValueError: rank 1 has other gradients than rank 0"),
    ({}, 3, "RuntimeError: rank 1 is at a refresh of other factors than rank 0, with other grad"),
    ({"overlap": True}, 3, "RuntimeError: rank 1 is at a refresh of other factors than rank 0, w"),
    ({"sharding": "state"}, 2, "RuntimeError: rank 1 has gradients of other parameters than rank"),
]


@pytest.mark.parametrize(("options", "at", "told"), DTYPES)
def test_ranks_whose_gradients_are_of_other_dtypes_are_told(ranks, options, at, told):
    """Backends decide by it who steps a tensor, and ranks that did not alike would mix results."""
    for said, unchanged in ranks(2, of_other_dtypes, options, at):
        assert said.startswith(told)
        assert unchanged or at == 3  # updates come ahead of a refresh


def of_a_copy(group):
    import copy
    import pickle

    params, optimizer = built(group)
    for call in range(2):
        set_gradients(params, call)
        optimizer.step()
    twins = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    if group.rank() == 1:  # nobody is waited for
        for twin in twins:
            own = twin.param_groups[0]["params"]
            for call in range(2, 5):
                set_gradients(own, call)
                twin.step()
    return [torch.is_tensor(p) for p in params]


def test_copies_step_alone(ranks):
    ranks(2, of_a_copy)

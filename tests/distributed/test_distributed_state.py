"""Parameters that are stepped by one rank each end with the bits of one process, on every rank."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import nullcontext
from pathlib import Path
from pickle import PicklingError

import pytest
import torch
import torch.distributed.checkpoint as dcp
from shared import OPTIONS, SHAPES, Broken, built, end_of, steps
from streams import assert_same_bits, backends, set_gradients, through_a_file
from test_distributed_checkpoints import COUNTS, FLAT, Model, train
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from soap_fast import SOAP, explain, precondition
from soap_fast.distributed.messages import meets_on_host

CALLS = range(10)


def run(group, options):
    return steps(group, sharding="state", **options)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("missing", [False, True])
def test_every_rank_ends_with_the_bits_of_one_process(ranks, count, backend, missing):
    options = {"backend": backend, "missing": missing}
    expected = steps(None, **options)
    for found in ranks(count, run, options):
        assert_same_bits(found, expected)


def staggered(group):
    found = steps(group, sharding="state", refresh_schedule="staggered")
    return found, steps(group, sharding="state", refresh_schedule="staggered")


def test_a_staggered_schedule_spreads_each_ranks_own_refreshes(ranks):
    found = ranks(2, staggered)
    for one, again in found:
        assert_same_bits(one, found[0][0])
        assert_same_bits(one, again)


def sizes(group):
    """Bytes of this rank's state, and for how many parameters it has any."""
    params, optimizer = built(group, sharding="state")
    set_gradients(params, 0)
    optimizer.step()
    tensors = []
    for entry in optimizer.state.values():
        tensors += [entry[name] for name in ("exp_avg", "exp_avg_sq") if entry]
        tensors += [m for name in ("GG", "Q") for m in entry.get(name, ()) if m is not None]
    assert set(optimizer.state) == set(params)
    return sum(t.nbytes for t in tensors), sum(map(bool, optimizer.state.values()))


@pytest.mark.parametrize("count", [2, 4])
def test_a_rank_has_what_was_planned(ranks, count):
    _, optimizer = built(None)
    shares = explain(optimizer, ranks=count).sharing.shares
    assert [(s.owned_state, s.owned) for s in shares] == ranks(count, sizes)
    assert sum(share.owned for share in shares) == len(SHAPES)


def refusals(group):
    params, optimizer = built(group, sharding="state")
    set_gradients(params, 0)
    optimizer.step()
    said = []
    for call in (
        optimizer.state_dict,
        lambda: copy.deepcopy(optimizer),
        lambda: precondition(optimizer, [p.grad for p in params]),
    ):
        with pytest.raises(RuntimeError) as raised:
            call()
        said.append(str(raised.value))
    optimizer.consolidate_state_dict()
    assert len(optimizer.state_dict()["state"]) == len(params)
    optimizer.step()
    with pytest.raises(RuntimeError, match="consolidate_state_dict"):
        optimizer.state_dict()
    optimizer.consolidate_state_dict(always=True)
    optimizer.step()
    assert len(optimizer.state_dict()["state"]) == len(params)
    return said


def test_a_part_is_never_taken_for_the_whole(ranks):
    for said in ranks(2, refusals):
        assert "consolidate_state_dict() on every rank first" in said[0]
        assert "an optimizer of sharding='none'" in said[1]
        assert "an optimizer of sharding='none'" in said[2]


CANNOT = "lambda|could not give"


def what_cannot_be_sent(group):
    """Beside the state that rank 1 has of a parameter."""
    params, optimizer = built(group, sharding="state")
    set_gradients(params, 0)
    optimizer.step()
    own = next(p for p in params if optimizer._sharing.owns(p))
    if group.rank() == 1:
        optimizer.state[own]["mine"] = lambda: 0
    with pytest.raises((RuntimeError, AttributeError, PicklingError), match=CANNOT) as raised:
        optimizer.consolidate_state_dict()
    optimizer.state[own].pop("mine", None)
    optimizer.consolidate_state_dict()
    return str(raised.value), optimizer.state_dict()


def test_a_state_that_one_rank_cannot_give_is_told_to_all(ranks):
    (other, first), (faulty, second) = ranks(2, what_cannot_be_sent)
    assert other == "ranks [1] could not give their state: what they raise says why"
    assert "lambda" in faulty
    assert_same_bits(first, second)


def saved_after(group, calls, sharding):
    params, optimizer = built(group, sharding=sharding)
    for call in calls:
        set_gradients(params, call)
        optimizer.step()
    optimizer.consolidate_state_dict()
    return [p.detach().clone() for p in params], through_a_file(optimizer.state_dict())


def gone_on(group, values, saved, calls, sharding):
    params, optimizer = built(group, sharding=sharding)
    for param, value in zip(params, values, strict=True):
        param.data.copy_(value)
    optimizer.load_state_dict(saved)
    for call in calls:
        set_gradients(params, call)
        optimizer.step()
    optimizer.consolidate_state_dict()
    return end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("before", COUNTS)
@pytest.mark.parametrize("after", COUNTS)
def test_saved_by_some_and_resumed_by_others(ranks, before, after):
    expected = steps(None, CALLS)
    values, saved = ranks(before, saved_after, range(5), "state")[-1]
    for found in ranks(after, gone_on, values, saved, range(5, 10), "state"):
        assert_same_bits(found, expected)
    for found in ranks(2, gone_on, values, saved, range(5, 10), "refresh"):
        assert_same_bits(found, expected)


def saving_and_loading(group, folder):
    """Through files of torch.distributed.checkpoint, into an optimizer that took no step."""
    ends = []
    for loads in (False, True):
        model = Model()
        optimizer = SOAP(model.parameters(), **OPTIONS, sharding="state", process_group=group)
        optimizer.consolidate_state_dict(always=True)
        if loads:
            flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
            stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
            flat = {key: value for key, value in flat.items() if f"optimizer.{key}" in stored}
            content = {"model": model.state_dict(), "optimizer": flat}
            dcp.load(content, checkpoint_id=folder, process_group=group)
            model.load_state_dict(content["model"])
            set_optimizer_state_dict(model, optimizer, content["optimizer"], options=FLAT)
        else:
            train(model, optimizer, range(5))
            flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
            content = {"model": model.state_dict(), "optimizer": flat}
            dcp.save(content, checkpoint_id=folder, process_group=group)
        train(model, optimizer, range(5, 10))
        ends.append(end_of(list(model.parameters()), optimizer))
    return ends


@pytest.mark.parametrize("count", COUNTS)
def test_files_of_torch_distributed_checkpoint(ranks, count, tmp_path: Path):
    found = ranks(count, saving_and_loading, str(tmp_path / "saved"))
    for straight, resumed in found:
        assert_same_bits(resumed, straight)
        assert_same_bits(straight, found[0][0])


def an_update_that_raises(group):
    params, optimizer = built(group, sharding="state", backend="eager")
    update, raised = optimizer._backend.update, []

    def broken(calls):
        if len(raised) == 0 and optimizer._sharing.steps == 4:
            raise Broken
        return update(calls)

    if group.rank() == 1:
        optimizer._backend.update = broken
    for call in CALLS:
        set_gradients(params, call)
        try:
            optimizer.step()
        except Broken:
            raised.append(call)
    return raised, [p.detach().clone() for p in params]


def test_a_step_that_raises_on_one_rank_leaves_its_parameters_on_all(ranks):
    (fine, first), (raised, second) = ranks(2, an_update_that_raises)
    assert (fine, raised) == ([], [3])
    assert_same_bits(first, second)


def other_gradients(group):
    params, optimizer = built(group, sharding="state")
    for call in range(2):
        set_gradients(params, call)
        if call == 1 and group.rank() == 1:
            params[0].grad = None
        told = (
            pytest.raises(RuntimeError, match="rank 1 has gradients of other")
            if call
            else nullcontext()
        )
        with told:
            optimizer.step()


def test_ranks_with_other_gradients_are_told(ranks):
    ranks(2, other_gradients)


def without_meeting(group, options):
    """As with NCCL alone, where ranks would have to wait for the device to compare."""
    params, optimizer = built(group, sharding="state", **options)
    optimizer._sharing.by_host = False
    owns = optimizer._sharing.owns
    for call in CALLS:
        set_gradients(params, call)
        if call > 1:
            params[(call + group.rank()) % len(params)].grad = None
        was = [p.detach().clone() for p in params]
        owned = [p.grad is not None for p in params if owns(p)]
        optimizer.step()
        moved = [not torch.equal(p, q) for p, q in zip(params, was, strict=True) if owns(p)]
        assert call == 0 or moved == owned
    optimizer.consolidate_state_dict()
    return end_of(params, optimizer)


@pytest.mark.parametrize("count", [2, 4])
def test_where_ranks_cannot_compare_gradients_owners_decide(ranks, count):
    found = ranks(count, without_meeting, {})
    for end in found:
        assert_same_bits(end, found[0])


@pytest.mark.parametrize(
    ("backends", "meets"),
    [("cuda:nccl", False), ("cpu:gloo,cuda:nccl", True), ("cpu:gloo,cuda:gloo", True)],
)
def test_ranks_meet_where_the_group_has_a_backend_for_the_host(backends, meets, monkeypatch):
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda _: backends)
    assert meets_on_host(None) == meets


def loading_alone(group):
    params, optimizer = built(group, sharding="state")
    for call in range(2):
        set_gradients(params, call)
        optimizer.step()
    optimizer.consolidate_state_dict()
    if group.rank() == 0:
        optimizer.load_state_dict(optimizer.state_dict())
    set_gradients(params, 2)
    told = "rank 1 is at an exchange in step 3, rank 0 at its first step in step 3"
    with pytest.raises(RuntimeError, match=told):
        optimizer.step()


def test_a_state_that_one_rank_alone_has_loaded_is_told(ranks):
    ranks(2, loading_alone)


def joining(group):
    """A group that comes later gets owners beside those that are there."""
    params, optimizer = built(group, SHAPES[:3], sharding="state")
    set_gradients(params, 0)
    optimizer.step()
    more = built(None, SHAPES[3:])[0]
    optimizer.add_param_group({"params": more})
    for call in range(1, 6):
        set_gradients([*params, *more], call)
        optimizer.step()
    optimizer.consolidate_state_dict()
    return end_of([*params, *more], optimizer)


@pytest.mark.usefixtures("one_thread")
def test_parameters_that_join(ranks):
    found = ranks(4, joining)
    alone = joining(None)
    for end in found:
        assert_same_bits(end, alone)


def leaving(group):
    """A parameter leaves with its state, and one of its shape comes: bytes that each rank has."""
    params, optimizer = built(group, sharding="state")
    own = optimizer.param_groups[0]["params"]
    for call in range(3):
        set_gradients(params, call)
        optimizer.step()
    before = sizes_of(optimizer)
    del own[0], optimizer.state[params[0]]
    gone = weakref.ref(params.pop(0))
    set_gradients(params, 3)
    optimizer.step()
    gc.collect()
    assert gone() is None
    own.append(torch.nn.Parameter(torch.ones(SHAPES[0])))
    set_gradients([*params, own[-1]], 4)
    optimizer.step()
    assert sizes_of(optimizer) == before


def sizes_of(optimizer):
    tensors = [entry["exp_avg"] for entry in optimizer.state.values() if entry]
    return sum(t.nbytes for t in tensors)


def test_parameters_that_leave_are_freed(ranks):
    ranks(4, leaving)


def leaving_for_a_while(group):
    params, optimizer = built(group, **({} if group is None else {"sharding": "state"}))
    own = optimizer.param_groups[0]["params"]
    for call in CALLS:
        set_gradients(params, call)
        if call == 2:
            del own[1]
        if call == 5:
            own.insert(1, params[1])
        optimizer.step()
    optimizer.consolidate_state_dict()
    return end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
def test_parameters_that_come_back_to_their_state_have_the_owner_they_had(ranks):
    alone = leaving_for_a_while(None)
    for found in ranks(2, leaving_for_a_while):
        assert_same_bits(found, alone)


def lazy_and_empty(group, sharding):
    """A module without a shape before its first forward, and a parameter without elements."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.Tanh(), torch.nn.LazyLinear(2))
    empty = torch.nn.Parameter(torch.empty(0, 3))
    options = {**OPTIONS, "sharding": sharding, "process_group": group}
    optimizer = SOAP([*model.parameters(), empty], **(OPTIONS if group is None else options))
    for call in range(5):
        optimizer.zero_grad()
        batch = torch.randn(8, 3, generator=torch.Generator().manual_seed(call))
        (model(batch).square().mean() + empty.sum()).backward()
        optimizer.step()
    optimizer.consolidate_state_dict()
    return end_of(list(model.parameters()), optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("sharding", ["refresh", "state"])
def test_lazy_modules_and_parameters_without_elements(ranks, sharding):
    expected = lazy_and_empty(None, sharding)
    for found in ranks(4, lazy_and_empty, sharding):
        assert_same_bits(found, expected)

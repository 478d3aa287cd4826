"""Parameters that FSDP2 spreads over ranks take the steps of one process, bit for bit."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from shared import Broken
from spread_models import (
    HSDP,
    Model,
    backward,
    end_of,
    full,
    mesh_of,
    one_process,
    optimizer_of,
    spread,
    train,
    values,
)
from streams import assert_same_bits, backends
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

MESHES = [(1, ""), (2, ""), (4, ""), (4, HSDP)]
CALLS = range(8)


def run(group, kind, options, clip=0.0):
    model = spread(group, kind)
    optimizer = optimizer_of(model, group, **options)
    gradients = train(model, optimizer, CALLS, group.rank(), clip)
    assert all(isinstance(p, DTensor) for p in optimizer.state)
    return end_of(model, optimizer), gradients


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("count", "kind"), MESHES)
@pytest.mark.parametrize("backend", backends())
def test_every_rank_ends_with_the_bits_of_one_process(ranks, count, kind, backend):
    options = {"backend": backend}
    found = ranks(count, run, kind, options)
    expected = one_process(found[0][1], **options)
    for end, gradients in found:
        assert_same_bits(gradients, found[0][1])
        assert_same_bits(end, expected)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "options",
    [{"weight_decay": 0.1}, {"merge_dims": True, "normalize_grads": True}, {"max_precond_dim": 5}],
    ids=str,
)
def test_options(ranks, options):
    found = ranks(4, run, "", options)
    assert_same_bits(found[3][0], one_process(found[0][1], **options))


@pytest.mark.usefixtures("one_thread")
def test_gradients_that_were_clipped(ranks):
    found = ranks(2, run, "", {}, 0.1)
    norms = [sum(g.square().sum() for g in step if g is not None) for step in found[0][1]]
    assert all(norm.sqrt() < 0.1001 for norm in norms)
    assert_same_bits(found[1][0], one_process(found[0][1]))


def staggered(group):
    options = {"refresh_schedule": "staggered"}
    return [run(group, "", options)[0] for _ in range(2)]


def test_a_staggered_schedule_spreads_each_ranks_own_refreshes(ranks):
    found = ranks(2, staggered)
    for first, second in found:
        assert_same_bits(first, found[0][0])
        assert_same_bits(second, found[0][0])


def sizes(group):
    """Bytes of this rank's moments, factors and bases."""
    model = spread(group)
    optimizer = optimizer_of(model, group)
    train(model, optimizer, range(1), group.rank())
    tensors: list[torch.Tensor] = []
    for entry in optimizer.state.values():
        tensors += [entry[name] for name in ("exp_avg", "exp_avg_sq") if entry]
        tensors += [m for name in ("GG", "Q") for m in entry.get(name, ()) if m is not None]
    return sum(t.nbytes for t in tensors), [bool(entry) for entry in optimizer.state.values()]


def test_state_lies_with_owners_alone(ranks):
    (alone, _), *_ = ranks(1, sizes)
    found = ranks(4, sizes)
    assert sum(size for size, _ in found) == alone
    assert max(size for size, _ in found) < alone / 2
    owners = torch.tensor([has for _, has in found]).sum(0)
    assert owners.tolist() == [1] * 8 + [0] * 2  # the unused layer has no state yet


def mixed(group):
    """One layer is spread, the other plain, with gradients that are the same on every rank."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 3), torch.nn.Linear(5, 4)
    if group is not None:
        fully_shard(layers[0], mesh=mesh_of(group))
    model = torch.nn.ModuleList(layers)
    optimizer = optimizer_of(model, group)
    for call in CALLS:
        optimizer.zero_grad()
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(call))
        (layers[0](x).square().sum() + layers[1](x).square().sum()).backward()
        optimizer.step()
    return end_of(model, optimizer)


@pytest.mark.usefixtures("one_thread")
def test_spread_and_plain_parameters_in_one_optimizer(ranks):
    """Two ranks with equal gradients average them to the same bits."""
    alone = mixed(None)
    for found in ranks(2, mixed):
        assert_same_bits(found, alone)


def without_meeting(group, differ):
    """As with NCCL alone; where ranks differ, one misses the gradients that another has."""
    model = spread(group)
    optimizer = optimizer_of(model, group)
    optimizer._sharing.by_host = False
    gradients = []
    for call in CALLS:
        optimizer.zero_grad()
        backward(model, call, group.rank())
        gradients.append([full(p.grad) for p in model.parameters()])
        if differ and call > 1:
            list(model.parameters())[(call + group.rank()) % 6].grad = None
        optimizer.step()
    return end_of(model, optimizer), gradients, sum(optimizer.stats()["skipped"].values())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("differ", [False, True])
def test_where_ranks_cannot_compare_gradients_none_waits(ranks, differ):
    """A tensor of which its owner has a gradient, and another has none, is left out."""
    found = ranks(2, without_meeting, differ)
    assert_same_bits(found[0][0], found[1][0])
    if not differ:
        assert_same_bits(found[0][0], one_process(found[0][1]))
    assert (sum(skipped for *_, skipped in found) > 0) == differ


def scaled(group, poisoned):
    """A loss that is not finite on one rank, in one step, under a GradScaler."""
    model = spread(group)
    optimizer = optimizer_of(model, group)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    gradients: list[list[Any]] = []
    for call in CALLS:
        optimizer.zero_grad()
        seed = torch.Generator().manual_seed(100 * call + group.rank())
        batch = torch.randn(4, 2, 4, 4, generator=seed)
        loss = model(batch).square().mean()
        if poisoned and (call, group.rank()) == (4, 1):
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients.append([full(p.grad) for p in model.parameters()])
        scaler.step(optimizer)
        scaler.update()
    return end_of(model, optimizer), gradients, sum(optimizer.stats()["skipped"].values())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("poisoned", [False, True])
def test_grad_scaler(ranks, poisoned):
    found = ranks(2, scaled, poisoned)
    assert_same_bits(found[0][0], found[1][0])
    assert_same_bits(found[0][0], one_process(found[0][1]))
    assert sum(skipped for *_, skipped in found) == (8 if poisoned else 0)


def from_other_values(group):
    """Parameters that are written between steps, as by a checkpoint, are those that are stepped."""
    model = spread(group)
    optimizer = optimizer_of(model, group)
    train(model, optimizer, range(2), group.rank())
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(0.5)
    train(model, optimizer, range(2, 3), group.rank())
    return values(model)


def test_a_step_starts_from_the_values_that_are_there(ranks):
    found = ranks(2, from_other_values)
    assert_same_bits(*found)
    assert all((value - 0.5).abs().max() < 0.1 for value in found[0])


def leaving(group):
    """Whether whole tensors stand in for parameters that have left."""
    model = spread(group)
    optimizer = optimizer_of(model, group)
    train(model, optimizer, range(2), group.rank())
    wholes = [weakref.ref(one) for one in optimizer._sharing._wholes.standing_in.values()]
    for group_of in optimizer.param_groups:
        del group_of["params"][:4], group_of["param_names"][:4]
    for param in list(model.parameters())[:4]:
        optimizer.state.pop(param)
    train(model, optimizer, range(2, 4), group.rank())
    gc.collect()
    return sum(one() is not None for one in wholes)


def test_whole_tensors_of_parameters_that_leave_are_freed(ranks):
    assert sum(ranks(2, leaving)) == len(list(Model().parameters())) - 4


def a_stale_graph(group):
    model = spread(group)
    optimizer = optimizer_of(model, group)
    weight = model.wide.weight
    square = (weight * weight).sum()  # by DTensor's own operators, which keep the wrapper
    train(model, optimizer, range(2), group.rank())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


def test_a_graph_of_values_before_the_step_raises(ranks):
    ranks(2, a_stale_graph)


def an_update_that_raises(group):
    model = spread(group)
    optimizer = optimizer_of(model, group, backend="eager")
    update = optimizer._backend.update

    def broken(calls):
        raise Broken

    raised = []
    for call in CALLS:
        optimizer.zero_grad()
        backward(model, call, group.rank())
        fails = (call, group.rank()) == (3, 1)
        optimizer._backend.update = broken if fails else update
        try:
            optimizer.step()
        except Broken:
            raised.append(call)
    return raised, values(model)


def test_a_step_that_raises_on_one_rank_leaves_its_parameters_on_all(ranks):
    (fine, first), (raised, second) = ranks(2, an_update_that_raises)
    assert (fine, raised) == ([], [3])
    assert_same_bits(first, second)

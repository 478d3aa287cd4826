"""Tensors that do not fit into the workspace together are refreshed in rounds, with the same bits.

Carrying matrices and the operator's workspace lie in the planes of a step meanwhile, and in the
place of its operands.
"""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from devices import DEVICES, engine_of, forget_workspace, graphed
from hypothesis import given
from hypothesis import strategies as st
from streams import assert_same_bits, needs_native, parameters, set_gradients

from soap_fast import SOAP
from soap_fast.backends.triton import refresh as of_refreshes
from soap_fast.backends.triton import rounds
from soap_fast.backends.triton.rounds import (
    WORKSPACE,
    Spare,
    free_bytes,
    most_within,
    rounds_of,
    workspace_bytes,
)
from soap_fast.distributed.together import Alone
from soap_fast.step import refresh as of_refresh
from soap_fast.step.refresh_plan import refresh_plan

SHAPES = ((6, 4, 3, 3), (12, 5), (5,), (9, 4), (12, 16, 20), (40, 40))
ALL = WORKSPACE
OPTIONS = [
    pytest.param({"precondition_frequency": 2}, id="periodic"),
    pytest.param({"precondition_frequency": 2, "refresh_schedule": "staggered"}, id="staggered"),
    pytest.param({"precondition_frequency": 1, "precondition_1d": True}, id="every call"),
]


def test_every_tensor_has_one_round_and_the_largest_factors_come_first():
    sizes = {0: [3], 1: [40, 2], 2: [], 3: [40, 7], 5: [8, 8], 6: [100]}
    most = workspace_bytes([40, 2, 40, 7])
    tensors = rounds_of(sizes, most)
    assert tensors == [[6], [1, 3], [0, 2, 5]]
    for found in tensors:
        needed = workspace_bytes(d for number in found for d in sizes[number])
        assert needed <= most or len(found) == 1
    assert rounds_of(sizes, ALL) == [sorted(sizes)]
    assert rounds_of({}, ALL) == []


def test_memory_is_cut_once_and_taken_anew_where_there_is_none():
    whole = torch.zeros(300)
    spare = Spare(whole[64:264])
    like = torch.zeros(0)
    found = [spare.room(like, shape) for shape in ((10, 10), (3, 7, 7), (8, 9), (0, 4))]
    assert [tuple(x.shape) for x in found] == [(10, 10), (3, 7, 7), (8, 9), (0, 4)]
    for number, tensor in enumerate(found):
        tensor.fill_(1 + number)
    assert [set(x.flatten().tolist()) for x in found] == [{1}, {2}, {3}, set()]
    assert spare.beside == 4 * 3 * 7 * 7  # there is no room for these
    assert [found[i].data_ptr() - whole.data_ptr() for i in (0, 2)] == [256, 768]  # by 256 bytes
    assert torch.equal(whole.unique(), torch.tensor([0.0, 1.0, 3.0]))
    assert not whole[:64].any()
    assert not whole[264:].any()
    assert spare.room(like.double(), (2,)).dtype == torch.float64
    assert spare.beside == 4 * 3 * 7 * 7 + 16


sizes_of_factors = st.lists(st.sampled_from([3, 32, 33, 40, 64, 100, 129]), max_size=12)


@given(
    sizes_of_factors, st.integers(1, 400_000), st.integers(0, 400_000),
    st.sampled_from([1, 1 << 18, 1 << 30]),
)  # fmt: skip
def test_what_is_lent_lies_apart_and_holds_a_round(sizes, planes, operands, most):
    """Carrying matrices end before operands, which `derive` writes, and before the workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "OPERATOR", most)
        patch.setattr(rounds, "CUT_FROM", 1 << 18)
        there = torch.empty(planes + operands, device="meta")
        carries, workspace = rounds.room_for(sizes, there, planes)
        alone = rounds.operator_rounds(sizes, most)
        end = carries.storage_offset() + len(carries)
        assert end <= planes
        if workspace is None:
            assert max(alone, default=0) == 0 or max(alone) > there.nbytes
            assert len(carries) == planes
            return
        start = workspace.storage_offset()
        assert start % 64 == 0
        assert end <= start <= len(there) - len(workspace)
        in_there = rounds.operator_rounds(sizes, min(workspace.nbytes, most))
        assert max(in_there) == workspace.nbytes
        assert len(in_there) <= 2 * len(alone)
        if max(alone) <= there.nbytes:
            assert in_there == alone


@needs_native
@given(sizes_of_factors, st.integers(20_000, 500_000))
def test_the_operator_has_the_rounds_that_are_counted_on(sizes, lent):
    """Of workspace lent, too."""
    plan = refresh_plan(Counter(sizes).items(), lent=lent)
    counted = [
        sum(workspace_bytes([share.size]) * share.factors for share in launch.shares)
        for launch in plan
        if launch.name == "gather"
    ]
    assert counted == rounds.operator_rounds(sizes, lent)


@pytest.fixture(autouse=True)
def cut(monkeypatch):
    """Small memory is lent as large memory is."""
    monkeypatch.setattr(rounds, "CUT_FROM", 0)


def spoil_workspace() -> int:
    """As the operator may leave what it was lent; how many elements."""
    workspace = of_refresh._lent.get().workspace
    if workspace is None:
        return 0
    workspace.fill_(float("nan"))
    return len(workspace)


def spoiling(backend) -> list[int]:
    """Have the operator spoil what it is lent; how much it was, by call."""
    working, spoiled = backend.refresh_op, []

    def op(*arguments):
        found = working(*arguments)
        spoiled.append(spoil_workspace())
        return found

    backend.refresh_op = op
    return spoiled


def trained(device, options, calls, workspace, *, in_graphs=False, poisoned=False):
    """Parameters and state, and how many sets of tensors were refreshed."""
    params = [torch.nn.Parameter(p.detach().to(device)) for p in parameters(SHAPES)]
    options = options | {"backend": "triton", "refresh_workspace": workspace}
    optimizer = SOAP(params, lr=torch.tensor(1e-3, device=device), **options)
    spoiled = spoiling(optimizer._backend) if poisoned else [1]
    step = graphed(optimizer, device) if in_graphs else optimizer.step
    for param in params:
        param.grad = torch.empty_like(param)  # which graphs ask to stay where they are
    kept = [param.grad for param in params]
    for call in range(calls):
        give_gradients(params, call)
        for param, grad in zip(params, kept, strict=True):
            param.grad = grad.copy_(param.grad)
        if poisoned and call > 1:
            forget_workspace(engine_of(optimizer))
        step()
    sets = len(engine_of(optimizer).refresher.sets)
    assert any(spoiled)
    return ([p.detach().cpu() for p in params], optimizer.state_dict()["state"]), sets


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_rounds_change_no_bit(device, options):
    """Nor does it matter what is left in memory that they have used."""
    together, sets = trained(device, options, 5, ALL)
    in_rounds, more = trained(device, options, 5, 1, poisoned=True)
    assert more > sets  # each tensor has a round of its own
    assert all(param.isfinite().all() for param in in_rounds[0])
    assert_same_bits(together, in_rounds)


def test_rounds_are_smaller_where_less_is_free(monkeypatch):
    """Where ranks share refreshes they are not: all must have the same."""
    options = {"precondition_frequency": 2}
    together, sets = trained("cpu", options, 5, ALL)
    asked = []

    def little(device):
        asked.append(device)
        return workspace_bytes([40, 40]) // 2

    monkeypatch.setattr(of_refreshes, "free_bytes", little)
    in_rounds, more = trained("cpu", options, 5, ALL)
    assert more > sets
    assert_same_bits(together, in_rounds)
    assert {device.type for device in asked} == {"cpu"}
    asked.clear()
    monkeypatch.setattr(Alone, "refreshes_alone", False)
    assert trained("cpu", options, 5, ALL)[1] == sets
    assert asked == []


def test_a_round_leaves_half_of_what_is_free():
    assert most_within(ALL, None) == most_within(ALL, ALL) == ALL
    assert most_within(ALL, 1 << 20) == 2 << 20  # a quarter of it are new bases
    assert free_bytes(torch.device("cpu")) is None


@pytest.mark.parametrize("device", DEVICES)
def test_rounds_change_no_bit_in_graphs(device):
    options = {"precondition_frequency": 2}
    runs = [
        trained(device, options, 10, most, in_graphs=True, poisoned=most == 1)[0]
        for most in (ALL, 1)
    ]
    assert_same_bits(*runs)


@pytest.mark.parametrize("device", DEVICES)
def test_a_graph_of_staggered_refreshes_may_spoil_what_it_is_lent(device):
    options = {"precondition_frequency": 2, "refresh_schedule": "staggered"}
    runs = [
        trained(device, options, 8, ALL, in_graphs=True, poisoned=poisoned)[0]
        for poisoned in (False, True)
    ]
    assert_same_bits(*runs)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_one_round_leaves_operands_that_are_derived(device, options):
    """Also where some tensors have no gradient at times, and keep theirs."""
    runs = []
    for poisoned in (False, True):
        params = [torch.nn.Parameter(p.detach().to(device)) for p in parameters(SHAPES)]
        optimizer = SOAP(params, backend="triton", **options)
        spoiled = spoiling(optimizer._backend) if poisoned else [1]
        for call in range(6):
            give_gradients(params, call)
            if call in (2, 3, 4):
                params[1].grad = None
            optimizer.step()
        assert any(spoiled)
        runs.append(([p.detach().cpu() for p in params], optimizer.state_dict()["state"]))
    assert all(param.isfinite().all() for param in runs[1][0])
    assert_same_bits(*runs)


def test_a_copy_keeps_its_workspace_and_what_is_no_number_of_bytes_is_refused():
    params = parameters(SHAPES)
    for optimizer in (SOAP(params, refresh_workspace=1 << 20), SOAP(params)):
        for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert copied._asked == optimizer._asked
    assert optimizer._asked["refresh_workspace"] == ALL
    for wrong in (0, -1, 1.5, True, None, "1"):
        with pytest.raises(ValueError, match=f"refresh_workspace={wrong!r} is not a number of"):
            SOAP(params, refresh_workspace=wrong)


def failing_at(backend, number: int) -> list[int]:
    """Have the operator find no memory when it is called so often; how often it was."""
    working, calls = backend.refresh_op, [0]

    def op(*arguments):
        calls[0] += 1
        if calls[0] == number:
            spoil_workspace()
            raise torch.OutOfMemoryError
        return working(*arguments)

    backend.refresh_op = op
    return calls


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("device", DEVICES)
def test_a_round_without_memory_is_made_up_for_and_those_before_stand(device, number):
    """Rounds before it are done, it and those behind it are owed: in the end no bit differs."""
    runs = []
    for fails in (False, True):
        params = [torch.nn.Parameter(p.detach().to(device)) for p in parameters(SHAPES)]
        options = {"backend": "triton", "refresh_workspace": 1}
        optimizer = SOAP(params, precondition_frequency=2, **options)
        for call in range(6):
            give_gradients(params, call)
            if fails and call == 2:
                fail_and_owe(optimizer, params, number)
            else:
                optimizer.step()
        runs.append(([p.detach().cpu() for p in params], optimizer.state_dict()["state"]))
    assert_same_bits(*runs)


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_end_with_memory_that_a_failed_refresh_gives_up(device):
    """A plain step was captured when the first refresh finds no memory: it is captured again."""
    runs = []
    for fails in (False, True):
        params = [torch.nn.Parameter(p.detach().to(device)) for p in parameters(SHAPES)]
        lr = torch.tensor(1e-3, device=device)
        optimizer = SOAP(params, lr=lr, precondition_frequency=5, backend="triton")
        step = graphed(optimizer, device)
        for param in params:
            param.grad = torch.empty_like(param)
        kept = [param.grad for param in params]
        for call in range(13):
            give_gradients(params, call)
            for param, grad in zip(params, kept, strict=True):
                param.grad = grad.copy_(param.grad)
            if fails and call == 5:
                assert set(step._graphs) == {False}
                engine, working = engine_of(optimizer), optimizer._backend.refresh_op
                failing_at(optimizer._backend, 1)
                with pytest.raises(torch.OutOfMemoryError):
                    step()
                optimizer._backend.refresh_op = working
            else:
                step()
            if fails and call == 6:
                assert not step._graphs
                assert engine_of(optimizer) is not engine
        assert step._graphs
        runs.append(([p.detach().cpu() for p in params], optimizer.state_dict()["state"]))
    assert_same_bits(*runs)


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_hear_of_a_steady_step_that_was_left(device):
    params = [torch.nn.Parameter(p.detach().to(device)) for p in parameters(((8, 4),))]
    lr = torch.tensor(1e-3, device=device)
    optimizer = SOAP(params, lr=lr, precondition_frequency=2, backend="triton")
    step = graphed(optimizer, device)
    step._graphs[False] = step  # of steps before
    params[0].grad = torch.ones_like(params[0])
    for _ in range(6):  # the next one refreshes
        optimizer.step()
    assert optimizer._backend.steady is not None
    working = optimizer._backend.refresh_op
    calls = failing_at(optimizer._backend, 1)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    assert calls == [1]
    optimizer._backend.refresh_op = working
    step()
    assert not step._graphs


def fail_and_owe(optimizer: SOAP, params, number: int) -> None:
    """A step whose round of this number, from 1, finds no memory."""
    working = optimizer._backend.refresh_op
    calls = failing_at(optimizer._backend, number)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    assert calls == [number]
    states = [optimizer.state[p] for p in params if p.ndim > 1]
    owing = [state.get("owed") is not None for state in states]
    assert [bool(state["refreshes"].sum()) for state in states] == [not owes for owes in owing]
    assert owing.count(False) == number - 1
    optimizer._backend.refresh_op = working


def give_gradients(params, call: int) -> None:
    twins = parameters(SHAPES)
    set_gradients(twins, call)
    for param, twin in zip(params, twins, strict=True):
        param.grad = twin.grad.to(param.device)

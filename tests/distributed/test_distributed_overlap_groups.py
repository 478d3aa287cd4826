"""Results that travel in several messages: each comes to the factors that it is of."""

from __future__ import annotations

import gc
import weakref

import pytest
from shared import Broken, broken_once, end_of, take
from streams import assert_same_bits, backends, needs_interpreter, parameters, set_gradients

from soap_fast import SOAP

SHAPES = ((6, 5), (6, 5))  # of one shape: nothing but their places tells them apart
CALLS = 10


def in_groups(group, overlap=False, **options):
    """Two tensors that one call of the operator cannot refresh together."""
    params = parameters(SHAPES)
    groups = [
        {"params": [p], "refresh_tolerance": t} for p, t in zip(params, (0.0, 1e-3), strict=True)
    ]
    if group is not None:
        options |= {"sharding": "refresh", "process_group": group, "overlap": overlap}
    return params, SOAP(groups, lr=0.01, precondition_frequency=3, **options)


def a_second_write_that_raises(group, backend):
    """The first set is written by then; the state is read again."""
    params, optimizer = in_groups(group, overlap=True, backend=backend)
    take(params, optimizer, range(4))
    if group.rank() == 1:
        optimizer._backend.carry = broken_once(optimizer._backend.carry, 1)
        with pytest.raises(Broken):
            optimizer.state_dict()
    read = end_of(params, optimizer)
    take(params, optimizer, range(4, CALLS))
    return [read, end_of(params, optimizer)]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_a_write_that_is_tried_again_goes_on_where_it_was_left(ranks, backend):
    expected = []
    for calls in (4, CALLS):
        params, optimizer = in_groups(None, backend=backend)
        take(params, optimizer, range(calls))
        expected.append(end_of(params, optimizer))
    for found in ranks(2, a_second_write_that_raises, backend):
        assert_same_bits(found, expected)


def with_double_gradients(group, backend, overlap, which):
    """Of float32 parameters, at calls that refresh too."""
    params, optimizer = in_groups(group, overlap=overlap, backend=backend)
    for call in range(CALLS):
        set_gradients(params, call)
        for param in [params[i] for i in which]:
            param.grad.data = param.grad.double()  # as `Module.double` does
        optimizer.step()
    return end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("which", [(0,), (0, 1)])
@pytest.mark.parametrize("backend", backends())
def test_moments_are_carried_by_gradients_of_another_dtype(ranks, backend, which):
    at_once, later = (
        ranks(2, with_double_gradients, backend, overlap, which) for overlap in (False, True)
    )
    assert_same_bits(later, at_once)


def kernels_or_not(group, overlap):
    """What the kernels do not take at a call that refreshes, they take as it is written."""
    from soap_fast.backends.triton.backend import TritonBackend

    params, optimizer = in_groups(group, overlap=overlap)
    backend = TritonBackend(best_on=lambda device: "triton")
    backend.sharing, optimizer._backend = optimizer._sharing, backend
    for call in range(CALLS):
        set_gradients(params, call)
        if call % 3 == 0:
            params[0].grad.data = params[0].grad.double()
        optimizer.step()
    return end_of(params, optimizer)


@needs_interpreter
def test_another_order_of_writing_gives_nobody_anothers_basis(ranks):
    at_once, later = (ranks(2, kernels_or_not, overlap) for overlap in (False, True))
    assert_same_bits(later, at_once)


def served_by_others(group, overlap):
    """Ranks have kernels refresh another one of two tensors of one shape, for whatever reason."""
    from soap_fast.backends.triton.backend import TritonBackend

    params, optimizer = in_groups(group, overlap=overlap)
    optimizer.param_groups[1]["refresh_tolerance"] = 0.0
    backend = TritonBackend(best_on=lambda device: "triton")
    backend.sharing, optimizer._backend = optimizer._sharing, backend
    take(params, optimizer, range(3))
    set_gradients(params, 3)
    backend.serves = lambda call: call.param is params[group.rank()]
    before = [optimizer.state[p]["Q"][0].clone() for p in params]
    with pytest.raises(RuntimeError, match="with other factors or order of them"):
        optimizer.step()
    assert_same_bits([optimizer.state[p]["Q"][0] for p in params], before)


@needs_interpreter
@pytest.mark.parametrize("overlap", [False, True])
def test_ranks_whose_backends_share_tensors_out_in_other_ways_are_told(ranks, overlap):
    ranks(2, served_by_others, overlap)


def owed_before(group, overlap):
    """A tensor owes a refresh that was not sent; another one's travels; then a rank refuses."""
    params = parameters(((6, 5), (4, 3)))
    sharing = {"sharding": "refresh", "process_group": group, "overlap": overlap}
    optimizer = SOAP(params, lr=0.01, precondition_frequency=3, backend="eager", **sharing)
    raised = []
    for call in range(10):
        set_gradients(params, call)
        if call in (4, 5, 6):
            params[0].grad = None
        refuses = call == 7 and group.rank() == 1
        optimizer.param_groups[0]["lr"] = -1 if refuses else 0.01
        if call == 3 and group.rank() == 1:
            room = optimizer._sharing._room
            room.of = broken_once(room.of)
        try:
            optimizer.step()
        except (Broken, RuntimeError, ValueError):
            raised.append(call)
    return raised, end_of(params, optimizer)


def test_a_rank_that_raises_meets_those_that_make_up_for_what_was_owed_before(ranks):
    """None waits for it longer than without overlap, and all go on."""
    for overlap in (False, True):
        (one, first), (other, second) = ranks(2, owed_before, overlap)
        assert one == other == [3, 7]
        assert_same_bits(first, second)


def entries_replaced(group, backend, overlap):
    """By dicts of the same tensors, on one rank alone, while results travel."""
    params, optimizer = in_groups(group, overlap=overlap, backend=backend)
    for call in range(CALLS):
        set_gradients(params, call)
        optimizer.step()
        if group.rank() == 0 and call == 3:
            for param in params:
                optimizer.state[param] = dict(optimizer.state[param])
    return end_of(params, optimizer)


@pytest.mark.parametrize("backend", backends())
def test_an_entry_that_was_replaced_is_refreshed_once(ranks, backend):
    at_once, later = (ranks(2, entries_replaced, backend, overlap) for overlap in (False, True))
    assert_same_bits(later, at_once)


def factors_replaced(group, backend):
    """The stacks that results are of: there until these are written or given up."""
    params, optimizer = in_groups(group, overlap=True, backend=backend)
    take(params, optimizer, range(4))
    stacks = [weakref.ref(optimizer.state[p]["Q"][0]._base) for p in params]
    for param in params:
        entry = optimizer.state[param]
        entry["GG"] = [k.clone() for k in entry["GG"]]
        entry["Q"] = [q.clone() for q in entry["Q"]]
    gc.collect()
    travelling = [stack() is not None for stack in stacks]
    take(params, optimizer, range(4, 5))
    gc.collect()
    return travelling, [stack() is not None for stack in stacks], end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_nobody_else_has_the_addresses_of_factors_whose_results_travel(ranks, backend):
    params, optimizer = in_groups(None, backend=backend)
    take(params, optimizer, range(5))
    for travelling, written, end in ranks(2, factors_replaced, backend):
        assert all(travelling)
        assert not any(written)
        assert_same_bits(end, end_of(params, optimizer))

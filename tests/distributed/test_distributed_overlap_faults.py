"""Faults on one rank while results travel: it alone raises, or all do; none is waited for."""

from __future__ import annotations

import signal

import pytest
from shared import Broken, broken_once, built, end_of, steps, take
from streams import assert_same_bits, backends, set_gradients
from test_distributed_faults import CALLS, owed_by_all, stepping
from test_distributed_memory import judge, with_a_fault, without_room
from test_distributed_overlap_groups import in_groups

from soap_fast.distributed.exchange import Exchange


def a_share_that_raises(group, backend):
    """With and without overlap: calls that raised, the end, and what has failed."""
    found = []
    for overlap in (False, True):
        params, optimizer = built(group, backend=backend, overlap=overlap)
        if group.rank() == 1:
            optimizer._backend.refresh_op = broken_once(optimizer._backend.refresh_op)
        raised = stepping(params, optimizer)
        found.append((raised, end_of(params, optimizer), optimizer.stats()["failed"]))
    return found


@pytest.mark.parametrize("backend", backends())
def test_a_share_that_raises_leaves_its_bases_on_every_rank(ranks, backend):
    other, faulty = ranks(2, a_share_that_raises, backend)
    for (at_once, later), calls in ((other, []), (faulty, [3])):
        assert at_once[0] == later[0] == calls
        assert_same_bits(later[1:], at_once[1:])
        assert_same_bits(later[1], other[0][1])
    assert sum(other[1][2].values()) > 0


def a_write_that_raises(group, backend):
    """It is tried when the state is read, and again."""
    params, optimizer = built(group, backend=backend, overlap=True)
    if group.rank() == 1:
        optimizer._backend.carry = broken_once(optimizer._backend.carry)
    raised = stepping(params, optimizer, range(4))
    saved = None
    if group.rank() == 1:
        with pytest.raises(Broken):
            optimizer.state_dict()
        saved = optimizer.state_dict()
    return [*raised, *stepping(params, optimizer, CALLS[4:])], saved, end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_what_cannot_be_written_when_it_is_read_is_written_later(ranks, backend):
    found = ranks(2, a_write_that_raises, backend)
    for raised, _, end in found:
        assert raised == []
        assert_same_bits(end, steps(None, CALLS, backend=backend))
    assert_same_bits(found[1][1], steps(None, range(4), backend=backend)[1])


def a_step_not_taken(group, backend, frequency):
    options = {"precondition_frequency": frequency, "overlap": True}
    params, optimizer = built(group, backend=backend, **options)
    if group.rank() == 1:
        optimizer._backend.carry = broken_once(optimizer._backend.carry)
    raised = stepping(params, optimizer, range(2 * frequency + 1))
    set_gradients(params, 7)
    with pytest.raises(ValueError, match="rank 1 has other clocks of its state than rank 0"):
        optimizer.step()
    return raised


@pytest.mark.parametrize("backend", backends())
def test_a_step_that_cannot_write_what_has_come_is_not_taken(ranks, backend):
    """Others have taken it: they hear of it at the next refresh, which may be its own."""
    assert ranks(2, a_step_not_taken, backend, 3) == [[6], [4, 6]]
    assert ranks(2, a_step_not_taken, backend, 1) == [[2], [2]]


def owed_already(group, backend):
    return owed_by_all(group, backend, overlap=True)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_a_refresh_that_a_loaded_state_owes_is_shared_at_once(ranks, backend):
    expected = steps(None, CALLS, backend=backend)
    for found in ranks(2, owed_already, backend):
        assert_same_bits(found, expected)


def a_signal(group):
    params, optimizer = built(group, overlap=True, backend="eager")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    own = optimizer._backend

    def interrupted(function):
        def called(*arguments):
            signal.raise_signal(signal.SIGINT)
            return function(*arguments)

        return called

    if group.rank() == 1:
        own.refresh_op, own.carry = interrupted(own.refresh_op), interrupted(own.carry)
    try:
        return stepping(params, optimizer, range(11)), end_of(params, optimizer)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("one_thread")
def test_a_signal_waits_for_the_end_of_the_step(ranks):
    expected = steps(None, range(11), backend="eager")
    (fine, first), (raised, second) = ranks(2, a_signal)
    assert (fine, raised) == ([], [3, 4, 6, 7, 9, 10])
    assert_same_bits(first, expected)
    assert_same_bits(second, expected)


def with_overlap(group, at, call, backend):
    return with_a_fault(group, at, call, overlap=True, backend=backend)


@pytest.mark.parametrize(("call", "backend"), [(3, "native"), (4, "eager")])
def test_wherever_memory_runs_out_ranks_stay_together(ranks, call, backend):
    """In the step that starts a refresh, and in the one that finds it come."""
    ((_, _, allocations), _) = ranks(2, with_overlap, -1, call, backend)
    assert allocations > 20
    places = range(1, allocations + 1, max(1, allocations // 24))
    seen = {judge(ranks(2, with_overlap, at, call, backend)) for at in places}
    expected = {3: {"all refuse", "all raised", "alone"}, 4: {"all refuse"}}
    assert seen == expected[call]


def no_room(group, backend):
    return without_room(group, 3, overlap=True, backend=backend)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_what_one_rank_cannot_send_is_owed_on_all(ranks, backend):
    """Also where the step was whole on the other rank, whose next one could be a steady one."""
    found = ranks(2, no_room, backend)
    assert judge(found) == "all raised"
    params, optimizer = built(None, ((6, 6), (5, 3), (4,), (6, 2)), backend=backend)
    for seed in range(8):
        set_gradients(params, seed)
        optimizer.step()
    for raised, end, _ in found:
        assert [*raised] == [3]
        assert_same_bits(end, end_of(params, optimizer))


def a_start_that_raises(group):
    """Of the second of two exchanges, on every rank: nobody knows when the first has come."""
    params, optimizer = in_groups(group, overlap=True, backend="eager")
    take(params, optimizer, range(3))
    sharing = optimizer._sharing
    start, given_up = Exchange.start, list(sharing._rooms)
    memory: list[int] = []
    Exchange.start = broken_once(start, 1)
    try:
        raised = stepping(params, optimizer, [3])
    finally:
        Exchange.start = start
    memory += [kept.data_ptr() for room in given_up for kept in room.kept.values()]
    assert not any(room in given_up for room in sharing._rooms)
    assert sharing._room is sharing._rooms[0]
    raised += stepping(params, optimizer, range(4, 10))
    used = [kept.data_ptr() for room in sharing._rooms for kept in room.kept.values()]
    assert not {*used} & {*memory}  # as long as these are held
    return raised, end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
def test_rooms_of_messages_are_given_up_where_one_of_two_cannot_start(ranks):
    """The refresh is owed on all, and the next step makes up for it in other rooms."""
    params, optimizer = in_groups(None, backend="eager")
    take(params, optimizer, range(10))
    for raised, found in ranks(2, a_start_that_raises):
        assert raised == [3]
        assert_same_bits(found, end_of(params, optimizer))

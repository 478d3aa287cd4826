"""Faults on one rank: it alone raises, and all ranks go on with the same bits, or none hangs."""

from __future__ import annotations

import signal

import pytest
import torch
from shared import NOTHING, Broken, broken_once, built, end_of, heard, steps
from streams import assert_same_bits, backends, parameters, set_gradients

from soap_fast import SOAP

CALLS = range(10)


def stepping(params, optimizer, calls=CALLS) -> list[int]:
    """Take these steps; returns those that raised."""
    raised = []
    for call in calls:
        set_gradients(params, call)
        try:
            optimizer.step()
        except (Broken, RuntimeError, KeyboardInterrupt):
            raised.append(call)
    return raised


def a_refresh_that_raises(group, backend):
    params, optimizer = built(group, backend=backend)
    if group.rank() == 1:
        optimizer._backend.refresh_op = broken_once(optimizer._backend.refresh_op)
    raised = stepping(params, optimizer)
    return raised, end_of(params, optimizer), optimizer.stats()["failed"]


@pytest.mark.parametrize("backend", backends())
def test_a_refresh_that_raises_leaves_its_bases_on_every_rank(ranks, backend):
    (fine, first, failed), (raised, second, _) = ranks(2, a_refresh_that_raises, backend)
    assert (fine, raised) == ([], [3])
    assert_same_bits(first, second)
    assert sum(failed.values()) > 0


def a_write_that_raises(group, backend):
    params, optimizer = built(group, backend=backend)
    if group.rank() == 1:
        optimizer._backend.carry = broken_once(optimizer._backend.carry)
    return stepping(params, optimizer), end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_a_refresh_that_cannot_be_written_is_made_up_for_alone(ranks, backend):
    (fine, first), (raised, second) = ranks(2, a_write_that_raises, backend)
    assert (fine, raised) == ([], [3])
    assert_same_bits(first, second)
    assert_same_bits(first, steps(None, CALLS, backend=backend))


LATER = {4: (1, 3)}  # tensors without a gradient, by call
OWED_BEFORE = dict.fromkeys((4, 5, 6), (0,))


def not_all_at_once(group, backend, missing):
    """What one rank could not write is made up for later than by the next step, or beside what all
    owe: the first tensor, of the refresh at call 3 that one rank had no room for.
    """
    params, optimizer = built(group, backend=backend)
    raised, broken = [], 6 if len(missing) > 1 else 3
    for call in CALLS:
        set_gradients(params, call)
        for index in missing.get(call, ()):
            params[index].grad = None
        if group is not None and group.rank() == 1:
            if call == 3 and len(missing) > 1:
                room = optimizer._sharing._room
                room.of = broken_once(room.of)
            if call == broken:
                optimizer._backend.carry = broken_once(optimizer._backend.carry)
        try:
            optimizer.step()
        except (Broken, RuntimeError):
            raised.append(call)
    return raised, end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("missing", [LATER, OWED_BEFORE], ids=["later", "beside"])
@pytest.mark.parametrize("backend", backends())
def test_what_is_made_up_for_alone_is_known_by_its_tensors(ranks, backend, missing):
    (one, first), (other, second) = ranks(2, not_all_at_once, backend, missing)
    _, alone = not_all_at_once(None, backend, missing)
    assert (one, other) == (([3], [3, 6]) if len(missing) > 1 else ([], [3]))
    assert_same_bits(first, alone)
    assert_same_bits(second, alone)


def one_of_two_not_written(group):
    """Of two tensors with a refresh of their own each, a rank cannot write the first."""
    params = parameters(((6, 5), (4, 3)))
    groups = [
        {"params": [p], "refresh_tolerance": t} for p, t in zip(params, (0, 1e-3), strict=True)
    ]
    sharing = {"sharding": "refresh", "process_group": group}
    optimizer = SOAP(groups, lr=0.01, precondition_frequency=3, backend="eager", **sharing)
    if group.rank() == 1:
        optimizer._backend.carry = broken_once(optimizer._backend.carry)
    return stepping(params, optimizer, range(4)), heard(optimizer.step)


def test_what_cannot_be_written_ahead_of_another_exchange_is_told_to_all(ranks):
    for raised, said in ranks(2, one_of_two_not_written):
        assert raised == [3]
        assert said.startswith("ValueError: rank 1 has other clocks of its state than rank 0")


NOT_WRITTEN, REPLACED, REPLACED_HERE = "not written", "replaced", "replaced here"


def both(group, backend, what):
    """One rank's share raises, and what comes of the rest is not written, or to other factors."""
    params, optimizer = built(group, backend=backend, overlap=what != NOT_WRITTEN)
    own = optimizer._backend
    if group.rank() == 1:
        own.refresh_op = broken_once(own.refresh_op)
    elif what == NOT_WRITTEN:
        own.carry = broken_once(own.carry)
    raised = stepping(params, optimizer, range(4))
    if what == REPLACED or (what, group.rank()) == (REPLACED_HERE, 0):
        for param in params[:2]:
            bases = optimizer.state[param]["Q"]
            bases[0] = bases[0].clone()
    # Ranks with other stacks are told so at their next refresh, the one at call 6.
    raised += stepping(params, optimizer, range(4, 6 if what == REPLACED_HERE else 10))
    return raised, end_of(params, optimizer), optimizer.stats()["failed"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("what", [NOT_WRITTEN, REPLACED, REPLACED_HERE])
@pytest.mark.parametrize("backend", backends())
def test_bases_that_others_could_not_compute_stay_and_the_rest_is_made_up_for(ranks, backend, what):
    (one, first, failed), (other, second, the_same) = ranks(2, both, backend, what)
    assert (one, other) == ([3] if what == NOT_WRITTEN else [], [3])
    assert_same_bits(first, second)
    assert failed == the_same
    assert sum(failed.values()) > 0


def first_bases_that_raise(group, backend):
    params, optimizer = built(group, backend=backend)
    if group.rank() == 0:
        optimizer._backend.eigh = broken_once(optimizer._backend.eigh)
    set_gradients(params, 0)
    with pytest.raises(RuntimeError, match=r"ranks \[0\] could not compute their first bases"):
        optimizer.step()
    assert not optimizer.state
    stepping(params, optimizer)
    return end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
def test_first_bases_that_one_rank_cannot_compute_begin_nowhere(ranks):
    expected = steps(None, CALLS, backend="eager")
    for found in ranks(2, first_bases_that_raise, "eager"):
        assert_same_bits(found, expected)


def a_signal(group, backend):
    params, optimizer = built(group, backend=backend)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    refresh = optimizer._backend.refresh_op

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return refresh(*arguments)

    if group.rank() == 1:
        optimizer._backend.refresh_op = interrupted
    try:
        return stepping(params, optimizer), end_of(params, optimizer)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("one_thread")
def test_a_signal_waits_for_the_end_of_the_step(ranks):
    (fine, first), (raised, second) = ranks(2, a_signal, "eager")
    assert (fine, raised) == ([], [3, 6, 9])
    assert_same_bits(first, second)
    assert_same_bits(first, steps(None, CALLS, backend="eager"))


def owed_by_all(group, backend, **options):
    """A state that was saved between an update and its refresh, loaded on every rank."""
    alone, other = built(None, backend=backend)
    other._backend.carry = broken_once(other._backend.carry)
    stepping(alone, other, range(4))
    saved = other.state_dict()
    assert "owed" in saved["param_groups"][0]
    params, optimizer = built(group, backend=backend, **options)
    for param, value in zip(params, alone, strict=True):
        param.data.copy_(value)
    optimizer.load_state_dict(saved)
    stepping(params, optimizer, range(4, 10))
    return end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_a_refresh_that_a_loaded_state_owes_is_shared(ranks, backend):
    expected = steps(None, CALLS, backend=backend)
    for found in ranks(2, owed_by_all, backend):
        assert_same_bits(found, expected)


def with_nan(group, backend):
    """Gradients averaged over the ranks, of which one has a NaN in one tensor at one call."""
    params, optimizer = built(group, backend=backend)
    for call in CALLS:
        set_gradients(params, 10 * call + group.rank())
        if call == 3 and group.rank() == 1:
            params[1].grad[0, 0] = torch.nan
        for param in params:
            torch.distributed.all_reduce(param.grad, group=group)
            param.grad /= group.size()
        optimizer.step()
    return end_of(params, optimizer), list(optimizer.stats()["skipped"].values())


@pytest.mark.parametrize("backend", backends())
def test_a_nan_on_one_rank_leaves_the_tensor_out_on_all(ranks, backend):
    found = ranks(4, with_nan, backend)
    for end, skipped in found:
        assert skipped == [0, 1, 0, 0, 0, 0, 0]
        assert_same_bits(end, found[0][0])


class Unreadable:
    """What rank 0 cannot read, as without memory for it."""

    def __reduce__(self):
        return read, ()


def read() -> None:
    if torch.distributed.get_rank() == 0:
        raise Broken


def a_state_that_cannot_be_read(group):
    params, optimizer = built(group, sharding="state")
    set_gradients(params, 0)
    optimizer.step()
    own = next(p for p in params if optimizer._sharing.owns(p))
    if group.rank() == 1:
        optimizer.state[own]["mine"] = Unreadable()
    said = heard(optimizer.consolidate_state_dict)
    optimizer.state[own].pop("mine", None)
    optimizer.consolidate_state_dict()
    return said, optimizer.state_dict()


def test_a_state_that_one_rank_cannot_read_leaves_nobody_waiting(ranks):
    (faulty, first), (other, second) = ranks(2, a_state_that_cannot_be_read)
    assert (faulty, other) == ("Broken: ", NOTHING)
    assert_same_bits(first, second)

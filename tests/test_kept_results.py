"""A refresh that recurs writes its results where it wrote the last ones, and uploads nothing."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from test_due_sets import begun

from soap_fast.backends.triton.launch import mirror
from soap_fast.backends.triton.results import KeptResults, starts_of
from soap_fast.backends.triton.rounds import Room
from soap_fast.step.refresh import Refreshed, lending, uninitialised


@pytest.fixture
def uploads(monkeypatch) -> list[torch.Tensor]:
    """Tables that were uploaded because they differ from the last ones."""
    made: list[torch.Tensor] = []
    monkeypatch.setattr(mirror, "upload_into", lambda table, rows: made.append(rows))
    return made


def recording(optimizer) -> list[Refreshed]:
    """Results of each refresh, all of them alive: nothing else can lie where they do."""
    found: list[Refreshed] = []
    real = optimizer._backend.refresh_op

    def refresh_op(*arguments):
        found.append(real(*arguments))
        return found[-1]

    optimizer._backend.refresh_op = refresh_op
    return found


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
def test_a_refresh_that_recurs_uploads_nothing(uploads, schedule):
    frequency = 2
    optimizer, _ = begun(6, precondition_frequency=frequency, refresh_schedule=schedule)
    found = recording(optimizer)
    for _ in range(3 * frequency):
        optimizer.step()
    turns = len(found) // 3
    uploads.clear()
    for _ in range(frequency):
        optimizer.step()
    assert not uploads
    last, now = found[2 * turns : 3 * turns], found[3 * turns :]
    assert list(map(starts_of, last)) == list(map(starts_of, now))


def stacks():
    return [torch.empty(3, 40, 40), torch.empty(2, 7, 7)], [
        torch.arange(n, dtype=torch.int32) for n in (2, 2)
    ]


def forms(results):
    return [(x.shape, x.stride(), x.dtype) for x in chain(*results)]


@pytest.mark.parametrize("room", [0, 2 * 40 * 40, 10_000])
def test_they_are_as_those_without_memory_of_a_step(room):
    factors, selections = stacks()
    kept = KeptResults(factors, selections, Room(torch.empty(room), None))
    with lending(kept.lent()):
        found = uninitialised(factors, selections)
    assert forms(found) == forms(uninitialised(factors, selections))
    assert kept.starts(found) == starts_of(found)


def test_matrices_without_room_are_made_anew_and_the_rest_is_not():
    factors, selections = stacks()
    kept = KeptResults(factors, selections, Room(torch.empty(2 * 40 * 40), None))
    first, second = kept.of(selections), kept.of(selections)
    same = [
        a.data_ptr() == b.data_ptr() for a, b in zip(chain(*first), chain(*second), strict=True)
    ]
    assert same == [True, True, True, False, True, True, True, True]
    assert kept.starts(first) != kept.starts(second)


def test_other_selections_have_memory_of_their_own():
    """As those of a rank that refreshes a share of the factors."""
    factors, selections = stacks()
    kept = KeptResults(factors, selections, Room(torch.empty(10_000), None))
    share = [chosen[:1] for chosen in selections]
    with lending(kept.lent()):
        found = uninitialised(factors, share)
    assert [len(order) for order in found.orders] == [1, 1]
    mine = {x.data_ptr() for x in kept.in_use()}
    assert mine.isdisjoint(x.data_ptr() for x in (*found.orders, *found.outcomes))
    assert kept.of(selections[:1]) is None
    assert kept.starts(found) == starts_of(found)

"""Refreshes whose results travel during the next step: the same bits, from its beginning on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from shared import built, end_of, take
from streams import ON_CPU, assert_same_bits, backends, set_gradients

from soap_fast.distributed import messages

CALLS = range(8)  # with refreshes at 3 and 6


def stepped(group, calls=CALLS, missing: bool = False, **options):
    """Parameters after each of these calls, and how it ends."""
    params, optimizer = built(group, **options)
    seen = []
    for call in calls:
        take(params, optimizer, [call], missing)
        seen.append([p.detach().clone() for p in params])
    return seen, optimizer.stats()["refreshed"], end_of(params, optimizer)


def overlapped(group, options):
    return stepped(group, overlap=True, **options)


CASES = [
    pytest.param({}, id="periodic"),
    pytest.param({"refresh_schedule": "staggered"}, id="staggered"),
    pytest.param({"refresh_tolerance": 0.3, "merge_dims": True}, id="tolerance"),
    pytest.param({"missing": True}, id="missing"),
    pytest.param({"precondition_frequency": 1}, id="every step"),
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("options", CASES)
def test_every_step_has_the_bits_of_one_process(ranks, backend, options):
    options = {"backend": backend, **options}
    alone = stepped(None, **options)
    for found in ranks(2, overlapped, options):
        assert_same_bits(found, alone)


TRITON = [backend for backend in ON_CPU if "triton" in backend.values]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize(
    "options", [{"refresh_workspace": 1}, {"refresh_schedule": "staggered"}], ids=["rounds", "each"]
)
def test_interpreted_kernels_carry_what_has_travelled(ranks, backend, options):
    """Whole steps, steady ones, and refreshes from both; a tensor a round, or one at its phase."""
    options = {"backend": backend, "shapes": ((4, 3), (3,)), "calls": range(8), **options}
    alone = stepped(None, **options)
    for found in ranks(2, overlapped, options):
        assert_same_bits(found, alone)


@contextmanager
def waits() -> Iterator[list[int]]:
    """The messages that are waited for within, by the ranks that send them."""
    received, found = messages.Sent.received, []

    def noted(sent):
        found.append(sent.owner)
        return received(sent)

    messages.Sent.received = noted
    try:
        yield found
    finally:
        messages.Sent.received = received


def waited_for(group):
    """Messages that each step waits for, and whether bases are those of the step before it."""
    params, optimizer = built(group, overlap=True, backend="eager")
    found = []
    for call in range(7):
        set_gradients(params, call)
        before = [entry["Q"][0].clone() for entry in map(optimizer.state.get, params[:2]) if entry]
        with waits() as received:
            optimizer.step()
        after = [optimizer.state[param]["Q"][0] for param in params[:2]]
        found.append((received, bool(before) and all(map(torch.equal, after, before))))
    return found


def test_the_step_that_refreshes_does_not_wait(ranks):
    first, *others = ranks(2, waited_for)[0]
    assert first == ([0, 1], False)  # first bases
    assert others == [
        ([], True), ([], True), ([], True), ([0, 1], False), ([], True), ([], True),
    ]  # fmt: skip

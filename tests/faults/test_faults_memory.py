"""Memory runs out at every operation of a step that takes some: a tensor has stepped or has not."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from injected import Allocations, launches_that_allocate_nothing
from soaking import some_of
from straight import CASES, MOMENTS, Straight
from subjects import one_thread  # noqa: F401

from soap_fast import SOAP

pytestmark = pytest.mark.usefixtures("one_thread")
MOST = {"eager": 1000, "native": 1000, "triton": 3}  # points of a step that fail, 1000 being all
# What may be left: a first call begins all tensors or none.
ALLOWED = {
    "first": {"before"},
    "steady": {"before", "after"},
    "refresh": {"before", "not_refreshed", "after"},
}


def fails(optimizer: SOAP, at: int | None, error=MemoryError) -> int:
    """One step that finds no memory at its allocation `at`; how many there were until its end."""
    launches = launches_that_allocate_nothing() if optimizer.backend == "triton" else nullcontext()
    with launches, Allocations(at, error) as mode:
        if at is None:
            optimizer.step()
        else:
            with pytest.raises(error):
                optimizer.step()
    return mode.count


@pytest.mark.parametrize(("backend", "moment"), CASES)
def test_at_every_allocation(backend, moment):
    straight = Straight(backend, MOMENTS[moment])
    params, optimizer = straight.ready()
    count = fails(optimizer, None)
    assert straight.found(optimizer, params) == ["after"] * len(params)
    assert count > 0 or (backend, moment) == ("triton", "steady")  # which asks for no memory
    known: list[list[str]] = []
    for at in some_of(count, MOST[backend]):
        params, optimizer = straight.ready()
        fails(optimizer, at, torch.OutOfMemoryError if at % 2 else MemoryError)
        where = f"allocation {at} of {count}"
        left = straight.check(optimizer, params, where)
        assert set(left) <= ALLOWED[moment], where
        if left not in known or (at % 16 == 0 and backend != "triton"):
            straight.check_what_follows(optimizer, params, left, where)
        known.append(left)

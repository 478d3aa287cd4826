"""What one rank could not write and owes alone, while all go on with tensors that owe nothing."""

from __future__ import annotations

import pytest
from shared import Broken, broken_once, built, end_of
from streams import assert_same_bits, backends, set_gradients

CALLS = range(13)
MISSING, WITHOUT = (1, 3), range(4, 8)  # tensors that have no gradient in these calls


def owing_for_long(group, backend, unwritten, raises=()):
    """At some calls rank 0 cannot write what has come, and at some the share of rank 1 raises."""
    params, optimizer = built(group, backend=backend)
    own, raised = optimizer._backend, []
    carry, refresh_op = own.carry, own.refresh_op
    for call in CALLS:
        set_gradients(params, call)
        for index in MISSING if call in WITHOUT else ():
            params[index].grad = None
        if group is not None and (group.rank(), call) in {(0, at) for at in unwritten}:
            own.carry = broken_once(carry)
        if group is not None and (group.rank(), call) in {(1, at) for at in raises}:
            own.refresh_op = broken_once(refresh_op)
        try:
            optimizer.step()
        except (Broken, RuntimeError, ValueError):
            raised.append(call)
    return raised, end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_others_are_refreshed_before_it_is_made_up_for(ranks, backend):
    (other, first), (one, second) = ranks(2, owing_for_long, backend, (3,))
    assert (one, other) == ([], [3])
    assert_same_bits(first, second)
    assert_same_bits(first, owing_for_long(None, backend, ())[1])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_a_share_that_has_raised_leaves_its_bases_once(ranks, backend):
    """The next refresh of the same bases is made up for as others have it."""
    (other, first), (one, second) = ranks(2, owing_for_long, backend, (3, 6), (3,))
    assert (one, other) == ([3], [3, 6])
    assert_same_bits(first, second)

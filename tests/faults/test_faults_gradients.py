"""NaN or inf in a gradient: its tensor stays as it was to the bit, and no other one notices."""

from __future__ import annotations

import math

import pytest
import torch
from streams import assert_same_bits
from subjects import (
    BACKENDS,
    SHAPES,
    built,
    give,
    gradients,
    one_thread,  # noqa: F401
    take,
    tensor_by_tensor,
    without,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CALLS = {"first": 0, "second": 1, "steady": 2, "refresh": 3}
LAST = 7  # calls until the second refresh
POISON = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "square overflows": 1e30}


def trained(backend: str, moment: int, change) -> tuple[list[dict], list[dict], list[dict]]:
    """All tensors before and after a call whose gradients `change` has changed, and at the end."""
    params, optimizer = built(backend)
    take(optimizer, params, range(moment))
    before = tensor_by_tensor(optimizer, params)
    give(params, change(gradients(params, moment)))
    optimizer.step()
    after = tensor_by_tensor(optimizer, params)
    take(optimizer, params, range(moment + 1, LAST))
    return before, after, tensor_by_tensor(optimizer, params)


@pytest.mark.parametrize("moment", CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tensor_keeps_its_bits_and_the_others_step_as_without_it(backend, moment):
    tensors = range(len(SHAPES[backend]))
    kinds = list(POISON.values())
    for place in tensors if backend != "triton" else (CALLS[moment] % len(tensors),):
        alone = trained(
            backend,
            CALLS[moment],
            lambda found, place=place: [None if i == place else g for i, g in enumerate(found)],
        )
        poison = kinds[(place + CALLS[moment]) % len(kinds)]

        def poisoned(found, place=place, poison=poison):
            found[place].view(-1)[1] = poison
            return found

        before, after, end = trained(backend, CALLS[moment], poisoned)
        clocks = ("calls", "skipped")
        assert_same_bits(without(after[place], *clocks), without(before[place], *clocks))
        assert int(after[place]["skipped"]) == 1
        assert int(end[place]["skipped"]) == 1
        assert end[place]["value"].isfinite().all()
        for other in tensors:
            if other != place:
                assert_same_bits(after[other], alone[1][other], f"tensor {other}")
                assert_same_bits(end[other], alone[2][other], f"tensor {other} at the end")


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_gradients_at_once_at_every_kind_of_call(backend):
    """Nothing moves but the clocks, and training goes on afterwards."""
    params, optimizer = built(backend)
    for moment in range(4):
        before = tensor_by_tensor(optimizer, params)
        give(params, [torch.full_like(p, math.nan) for p in params])
        optimizer.step()
        for old, new in zip(before, tensor_by_tensor(optimizer, params), strict=True):
            assert int(new["skipped"]) == moment + 1
            assert_same_bits(*(without(entry, "calls", "skipped") for entry in (old, new)))
        take(optimizer, params, [moment])
    values = [p.detach().clone() for p in params]
    take(optimizer, params, [4])
    for param, value in zip(params, values, strict=True):
        assert param.isfinite().all()
        assert not torch.equal(param, value)

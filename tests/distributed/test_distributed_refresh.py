"""Refreshes that processes share end with the bits of one process, on every rank."""

from __future__ import annotations

import pytest
import torch
from shared import steps
from streams import ON_CPU, assert_same_bits, backends

CASES = [
    pytest.param({}, id="periodic"),
    pytest.param({"refresh_schedule": "staggered"}, id="staggered"),
    pytest.param({"refresh_tolerance": 0.3, "merge_dims": True}, id="tolerance"),
    pytest.param({"missing": True}, id="missing"),
]


def assert_all_as_one(ranks, count: int, **options) -> None:
    alone = steps(None, **options)
    for found in ranks(count, run, options):
        assert_same_bits(found, alone)


def run(group, options):
    return steps(group, **options)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("options", CASES)
def test_every_rank_ends_with_the_bits_of_one_process(ranks, count, backend, options):
    assert_all_as_one(ranks, count, backend=backend, **options)


TRITON = [backend for backend in ON_CPU if "triton" in backend.values]
FEW = {"shapes": ((4, 3), (3,)), "calls": range(7)}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
@pytest.mark.parametrize("backend", TRITON)
def test_interpreted_kernels_carry_what_others_refreshed(ranks, backend, schedule):
    """Whole steps, steady ones, and refreshes from both."""
    assert_all_as_one(ranks, 2, backend=backend, refresh_schedule=schedule, **FEW)


@pytest.mark.usefixtures("one_thread")
def test_float64_and_a_refresh_at_every_call(ranks):
    assert_all_as_one(ranks, 2, dtype=torch.float64)
    assert_all_as_one(ranks, 4, precondition_frequency=1)

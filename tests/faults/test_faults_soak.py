"""Many steps with all that happens on the way: memory stays flat, and so does the count of tensors.

500 steps in the suite, 20,000 by `make soak`; kernels that are interpreted take fewer.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import warnings

import pytest
import torch
from subjects import (
    BACKENDS,
    assert_orthogonal,
    built,
    give,
    gradients,
    one_thread,  # noqa: F401
)

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = {"eager": 500, "native": 500, "triton": 40}
LONG = {"eager": 20_000, "native": 20_000, "triton": 2_000}
PERIOD = 20  # of what happens on the way
LOOKS = {True: 6, False: 40}  # at a short run, at a long one; the collector takes its time
# Bytes of resident memory that may come on top after the first looks: what allocators keep of their
# own accord. Over 16,000 steps it is 260 bytes a step; smaller leaks of tensors are counted.
SLACK = 4 << 20


def resident() -> int:
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live_tensors() -> int:
    gc.collect()
    with warnings.catch_warnings():  # objects of torch that warn when they are looked at
        warnings.simplefilter("ignore")
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def step(params, optimizer, call: int) -> None:
    """One step of a training run in which gradients fail, parameters move and the rate falls."""
    found = gradients(params, call % PERIOD)
    turn = call % PERIOD
    if turn == 5:
        found[0].view(-1)[0] = math.nan
    if turn == 8:
        found[1] = None
    if turn == 11:
        params[0].data = params[0].data.clone()
    if turn == 14:
        optimizer.load_state_dict(optimizer.state_dict())
    if turn == 17:
        found = [torch.zeros_like(param) for param in params]
    optimizer.param_groups[0]["lr"] = 1e-3 / (1 + call % 7)
    give(params, found)
    optimizer.step()


def flat(backend: str, steps: int, **options) -> None:
    params, optimizer = built(backend, **options)
    tensors, memory = [], []
    every = max(PERIOD, steps // LOOKS[steps <= max(SHORT.values())] // PERIOD * PERIOD)
    for call in range(steps):
        step(params, optimizer, call)
        if (call + 1) % every == 0:
            tensors.append(live_tensors())
            memory.append(resident())
    assert len(tensors) >= 2
    warm = max(1, len(tensors) // 5)
    assert set(tensors[warm:]) == {tensors[-1]}, tensors
    assert max(memory[warm:]) - memory[warm] <= SLACK, memory
    assert_orthogonal(optimizer)
    assert all(param.isfinite().all() for param in params)
    expected = steps // PERIOD
    assert int(optimizer.state[params[0]]["skipped"]) == expected
    assert optimizer.state[params[1]]["calls"] == steps - expected


needs_statm = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm: Linux")


@needs_statm
@pytest.mark.parametrize("backend", BACKENDS)
def test_some_hundred_steps(backend):
    flat(backend, SHORT[backend], refresh_schedule="staggered")


@pytest.mark.soak
@pytest.mark.skipif(
    "SOAP_FAST_EXAMPLES" not in os.environ, reason="takes minutes: make soak runs it"
)
@needs_statm
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_thousand_steps(backend):
    flat(backend, LONG[backend])

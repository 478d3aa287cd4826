"""Memory beside parameters, gradients and state: counted by the CPU's allocator, and as modelled.

A step runs as always but for its launches, and the refresh takes the operator's workspace as its
plan says. What an H100 was measured to need is of the code of 2026-11-28.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from streams import needs_native
from torch.profiler import ProfilerActivity, profile

from bench import shapes
from bench.memory import state_bytes
from bench.recorded import RecordingBackend, record
from soap_fast import SOAP, explain
from soap_fast.backends.native import NativeBackend
from soap_fast.inspect.memory import Peak
from soap_fast.step.refresh import (
    Lent,
    Refreshed,
    lending,
    lent_bytes,
    refresh_by_cholesky,
    uninitialised,
)
from soap_fast.step.refresh_plan import refresh_plan

MEASURED = {"elic": 0.949e9, "lalic": 4.548e9, "dcae": 5.058e9}  # bytes; the first call included
SHARE = 0.5  # of these, at most
WITHIN = 0.01  # of the peak; tables of a refresh are counted and not modelled


def allocations(call: Callable[[], object]) -> list[int]:
    """Bytes of each allocation of a call on the CPU, negative where memory was given back."""
    gc.collect()  # what others have left is given back before, and not within
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]"]


def counted(call: Callable[[], object]) -> tuple[int, int]:
    """Bytes that a call leaves allocated, and the most at one time, beside what there was."""
    levels = [0, *accumulate(allocations(call))]
    return levels[-1], max(levels)


def quads(size: int) -> int:
    """A size as the operator has it in its workspace."""
    return -(-size // 4) * 4


def matrices(size: int) -> int:
    """Elements of a factor's matrices there."""
    return (4 if size % 4 == 0 else 5) * quads(size) ** 2


def workspaces(stacks: list[tuple[int, int]], lent: int = 0) -> list[tuple[int, int]]:
    """Of each round of the operator for stacks of a size and number: float32, and float64."""
    plan = refresh_plan(stacks, lent=lent)
    gathers = (launch.shares for launch in plan if launch.name == "gather")
    return [
        (
            sum(share.factors * matrices(share.size) for share in shares),
            sum(share.factors * (7 * quads(share.size) + 5) for share in shares),
        )
        for shares in gathers
    ]


def in_name_only(self, factors, bases, selections, *_) -> Refreshed:
    """Takes the memory of a refresh on CUDA, and refreshes nothing."""
    found = uninitialised(factors, selections)
    stacks = [(k.shape[1], len(chosen)) for k, chosen in zip(factors, selections, strict=True)]
    lent = lent_bytes()
    for elements, measures in workspaces(stacks, lent):
        own = elements if 4 * elements > lent else 0
        taken = torch.empty(own), torch.empty(measures, dtype=torch.float64)
        del taken
    return found


@needs_native
def test_the_operator_takes_the_workspace_of_its_plan():
    stacks = [(40, 3), (16, 2), (100, 4), (45, 2)]
    factors = [torch.eye(d).expand(n, d, d).contiguous() for d, n in stacks]
    bases = [k.clone() for k in factors]
    chosen = [torch.arange(n, dtype=torch.int32) for _, n in stacks]
    allowed = [torch.ones(n, dtype=torch.bool) for _, n in stacks]
    ((elements, measures),) = workspaces(stacks)
    taken = allocations(lambda: refresh_by_cholesky(factors, bases, chosen, allowed, 0.0))
    assert max(taken) == 4 * elements  # torch's products on the CPU have temporaries as well
    assert 8 * measures in taken

    with lending(Lent(workspace=torch.empty(elements))):
        taken = allocations(lambda: refresh_by_cholesky(factors, bases, chosen, allowed, 0.0))
    assert max(taken) < 4 * elements
    assert 8 * measures in taken


@needs_native
@pytest.mark.parametrize("model", MEASURED)
def test_steps_need_as_much_as_modelled_and_less_than_was_measured(model, monkeypatch):
    monkeypatch.setattr(RecordingBackend, "refresh_op", in_name_only)
    recorded = record(shapes.load(model))
    memory = recorded.engine.memory
    modelled = explain(recorded.optimizer).memory
    planes, operands = memory.a.nbytes + memory.b.nbytes, memory.operands.memory.nbytes
    assert (planes, operands) == (modelled.planes, modelled.operands)
    kept = planes + operands + modelled.tables
    tables, _ = counted(recorded.refreshing_step)  # the first also uploads them
    assert tables <= 2 * modelled.tables
    left, most = counted(recorded.refreshing_step)
    assert left == 0
    assert kept + tables + most == pytest.approx(modelled.plain + modelled.refresh, rel=WITHIN)
    assert modelled.first <= modelled.most
    assert modelled.most <= SHARE * MEASURED[model]


@needs_native
@pytest.mark.parametrize("workspace", [64 << 20, 256 << 20])
def test_a_smaller_workspace_needs_less(workspace, monkeypatch):
    monkeypatch.setattr(RecordingBackend, "refresh_op", in_name_only)
    recorded = record(shapes.load("elic"))
    before = explain(recorded.optimizer).memory
    recorded.backend.refresh_workspace = workspace  # as the option sets it
    recorded.backend.forget()
    recorded.step()
    recorded.refreshing_step()  # uploads tables
    _, most = counted(recorded.refreshing_step)
    modelled = explain(recorded.optimizer).memory
    assert modelled.plain == before.plain
    assert modelled.refresh < before.refresh
    assert most == pytest.approx(modelled.refresh, rel=WITHIN)


@needs_native
def test_first_bases_are_not_there_twice(monkeypatch):
    """While they are found there are factors and bases, once each, and no moments yet."""
    params = [torch.nn.Parameter(torch.randn(256, 192)), torch.nn.Parameter(torch.randn(192, 256))]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = SOAP(params, backend="native")
    # Without a solver, whose memory is its own.
    monkeypatch.setattr(
        NativeBackend, "eigh", lambda self, factors, _: ([], [torch.empty_like(k) for k in factors])
    )
    _, most = counted(optimizer.step)
    assert most <= (1 + WITHIN) * state_bytes(optimizer)


def test_no_tensors_need_nothing():
    param = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))  # which Triton does not step
    assert explain(SOAP([param])).memory == Peak(0, 0, 0, 0, 0, 0)

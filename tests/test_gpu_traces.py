"""Recorded trajectories through the Triton backend, step by step, from graphs, and staggered.

On a GPU whole and all of them; on the CPU, interpreted, one of two small tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import golden
import pytest
import tolerances
import torch
from devices import graphed, on_cpu, on_gpu
from test_golden import run

from soap_fast import SOAP

# Two tensors, refreshed every 5 calls. With graphs the first call, three plain ones and the refresh
# after the 5th are taken as they come, what follows is replayed, refreshes after the 10th and 15th
# among it; staggered, calls from the 10th on are.
SMALL, PLAIN, PERIODIC, STAGGERED = "merge_nhwc", 7, 17, 11


def cases(calls: int) -> list:
    return [on_cpu(SMALL, calls), *(on_gpu(case, None) for case in golden.CASES)]


def steps(trace: golden.Trace, device: str, *, in_graphs: bool, **options) -> Iterator[list]:
    """Parameters after each call, on the device; gradients stay where they are, as graphs ask."""
    params = [torch.nn.Parameter(p.to(device, copy=True)) for p in trace.init]
    for param in params:
        param.grad = torch.empty_like(param)
    options = {"lr": 3e-3} | trace.kwargs | options | {"backend": "triton"}
    if in_graphs:
        options["lr"] = torch.tensor(options["lr"], dtype=torch.float64, device=device)
    optimizer = SOAP(params, **options)
    step: Callable[[], object] = graphed(optimizer, device) if in_graphs else optimizer.step
    for grads in trace.grads:
        for param, grad in zip(params, grads, strict=True):
            param.grad.copy_(grad)
        step()
        yield params


def assert_follows(
    trace: golden.Trace, found: Iterator[list], expected: Iterable[list], calls: int | None
) -> None:
    """Within the tolerance of recorded trajectories, at every call, or at the first ones."""
    for call, (params, wanted) in enumerate(zip(found, expected, strict=True), start=1):
        for i, (param, value) in enumerate(zip(params, wanted, strict=True)):
            start = trace.init[i].double()
            moved = (value.double() - start).abs().max().clamp_min(1e-30)
            error = (param.detach().cpu().double() - value.double()).abs().max() / moved
            assert error <= tolerances.TRACE, f"call {call}, parameter {i}: {float(error):.1e}"
        if call == calls:
            return


@pytest.mark.parametrize("precision", ["tf32x3", "ieee"])
@pytest.mark.parametrize(("device", "case", "calls"), cases(PLAIN))
def test_recorded_trajectories(device, case, calls, precision):
    trace = golden.load(case)
    found = steps(trace, device, in_graphs=False, input_precision=precision)
    assert_follows(trace, found, trace.params, calls)


@pytest.mark.parametrize(("device", "case", "calls"), cases(PERIODIC))
def test_recorded_trajectories_from_graphs(device, case, calls):
    trace = golden.load(case)
    assert_follows(trace, steps(trace, device, in_graphs=True), trace.params, calls)


SCHEDULE = {"refresh_schedule": "staggered"}


@cache
def exact(case: str) -> list[list[torch.Tensor]]:
    """Parameters after each call."""
    steps = run(golden.load(case), torch.float64, backend="eager", **SCHEDULE)
    return [[p.detach().clone() for p in params] for _, params, _ in steps]


@pytest.mark.parametrize("in_graphs", [False, True], ids=["steps", "graphs"])
@pytest.mark.parametrize(("device", "case", "calls"), cases(STAGGERED))
def test_staggered_as_eager_in_float64(device, case, calls, in_graphs):
    """On the gradients of a recorded trajectory, which itself knows no staggered refreshes."""
    trace = golden.load(case)
    found = steps(trace, device, in_graphs=in_graphs, **SCHEDULE)
    assert_follows(trace, found, exact(case), calls)

"""What a step of the Triton backend launches, moves and computes, by the tables of its launches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import shapes
from bench.measuring.calls import state_bytes
from bench.measuring.recorded import CallingLauncher, Recorded, record
from bench.roofline.costs import costs
from soap_fast.backends.triton.launch.floor import floor_seconds
from soap_fast.options import plan_options


def exact(inventory: shapes.Inventory) -> dict[str, Any]:
    """All of `measure` that is the same on every machine."""
    return counted(record(inventory), inventory)


def counted(recorded: Recorded, inventory: shapes.Inventory) -> dict[str, Any]:
    """What the tables of an optimizer say, and what two of its steps launch."""
    launches = recorded.step()
    engine = recorded.engine
    works = {name: work for name, work in engine.works.items() if name != "derive"}
    needed = sum(work.needed for work in works.values())
    executed = sum(work.executed for work in works.values())
    moved = sum(work.bytes for work in works.values())
    numel = inventory.numel
    options = plan_options(recorded.optimizer.param_groups[0])
    least = costs((entry.shape for entry in inventory.entries), options)["soap_fast::step_"].bytes
    workspace = 4 * (engine.memory.a.numel() + engine.memory.b.numel())
    refresh = recorded.refresh()
    return {
        "model": inventory.model,
        "parameters": numel,
        "tensors": len(recorded.params),
        "launches_plain": launches,
        "launches_refresh": sum(refresh.values()),
        "launches_refresh_by": refresh,
        "tiles": sum(work.count for work in works.values()),
        "flops": needed,
        "executed_flops": executed,
        "bytes": moved,
        "bytes_ratio": moved / least,
        "padding": 1 - needed / executed if executed else 0.0,
        "workspace_ratio": workspace / (4 * numel),
        "state_bytes": state_bytes(recorded.optimizer),
        "floor_ms": 1e3 * sum(floor_seconds(w.needed, w.bytes) for w in works.values()),
        "by_launch": [
            {
                "launch": name,
                "tiles": work.count,
                "flops": work.needed,
                "executed_flops": work.executed,
                "bytes": work.bytes,
            }
            for name, work in works.items()
        ],
    }


def host_times(inventory: shapes.Inventory, rounds: int = 60) -> dict[str, float]:
    """Milliseconds that a step keeps the host, medians; launches are called, kernels do not run.

    Returns:
        `host_ms` of a plain step, `host_new_gradients_ms` of one with tensors that it has not seen,
        as after `zero_grad()`, `host_refresh_ms` of one that ends with a refresh, and `host_ratio`
        of the first to a pass over the gradients. What is refreshed is as many smaller factors,
        for memory is copied by the host here.
    """
    recorded = record(inventory, launcher=CallingLauncher())
    passes = [_seconds(lambda: _look(recorded)) for _ in range(rounds)]
    base, same = statistics.median(passes), _plain(recorded, rounds)
    new = _plain(recorded, rounds, new_gradients=True)
    refreshing = _refreshing(record(inventory.small(), launcher=CallingLauncher()))
    return {
        "host_ms": 1e3 * same,
        "host_new_gradients_ms": 1e3 * new,
        "host_refresh_ms": 1e3 * refreshing,
        "host_ratio": same / base,
    }


def _look(recorded: Recorded) -> None:
    for param in recorded.params:
        param.grad.data_ptr()  # type: ignore[union-attr]


def _plain(recorded: Recorded, rounds: int, *, new_gradients: bool = False) -> float:
    steps = []
    for _ in range(rounds):
        for state in recorded.optimizer.state.values():
            state["calls"] = 2  # never due
        recorded.step()  # settles
        if new_gradients:
            for param in recorded.params:
                param.grad = torch.empty_like(param)
        steps.append(_seconds(recorded.step))
    return statistics.median(steps)


def _refreshing(recorded: Recorded, periods: int = 8) -> float:
    """Calls that refresh; those of the first two periods make tables."""
    frequency, steps = recorded.optimizer.param_groups[0]["precondition_frequency"], []
    for call in range((2 + periods) * frequency):
        recorded.backend.refreshed.clear()
        taken = _seconds(recorded.step)
        if recorded.backend.refreshed and call >= 2 * frequency:
            steps.append(taken)
    return statistics.median(steps)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

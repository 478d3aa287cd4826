"""What a step of the Triton backend launches, moves and computes, by the tables of its launches."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from bench import shapes
from bench.measuring.calls import state_bytes
from bench.measuring.recorded import Recorded, record
from bench.roofline.costs import costs
from soap_fast.fused.floor import floor_seconds
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


def host_times(
    recorded: Recorded, rounds: int = 60, *, new_gradients: bool = False
) -> tuple[float, float]:
    """Milliseconds of a plain step's host side, and of a pass over the gradients; medians.

    Args:
        new_gradients: tensors that the step has not seen, as after `zero_grad()`; else they stay.
    """
    params, steps, passes = recorded.params, [], []
    for _ in range(rounds):
        for state in recorded.optimizer.state.values():
            state["calls"] = 2  # never due
        recorded.step()  # settles
        if new_gradients:
            for param in params:
                param.grad = torch.empty_like(param)
        start = time.perf_counter()
        recorded.step()
        steps.append(time.perf_counter() - start)
        start = time.perf_counter()
        for param in params:
            param.grad.data_ptr()  # type: ignore[union-attr]
        passes.append(time.perf_counter() - start)
    return 1e3 * statistics.median(steps), 1e3 * statistics.median(passes)

"""`launches`: what a step of the Triton backend launches, moves and computes on a model's shapes.

No GPU is needed: the optimizer runs as always, only the driver's call of a launch is left out.
`padding` is 1 - needed / executed flops of rotations and Gram matrices. `bytes_ratio` relates to
one pass over p, g, exp_avg, exp_avg_sq, K and Q, read once and written once where a step updates
them; `host_ratio` to one pass of `p.grad.data_ptr()` over the parameters. `host_ms` is of a step
whose gradients are the tensors of the one before, `host_new_gradients_ms` of one after `zero_grad`,
`host_refresh_ms` of one that refreshes all bases, the operator's own time left out.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from bench import shapes
from bench.clock import timed_call
from bench.command import Row, common, progress
from bench.costs import PLAN, costs
from bench.memory import state_bytes
from bench.recorded import CallingLauncher, Recorded, record
from soap_fast.backends.triton.launch.floor import floor_seconds

COLUMNS = (
    "model", "launches_plain", "launches_refresh", "tiles", "flops", "bytes", "bytes_ratio",
    "padding", "workspace_ratio", "state_bytes", "host_ms",
    "host_new_gradients_ms", "host_refresh_ms", "host_ratio", "floor_ms",
)  # fmt: skip
MODELS = ("elic", "tcm_64", "tcm_128", "lalic", "dcae", "hyperprior")  # of the paper


def add_options(parser: argparse.ArgumentParser) -> None:
    common(parser)
    parser.add_argument("--shapes", nargs="+", default=MODELS, help="names or files (%(default)s)")


def run(options: argparse.Namespace) -> list[Row]:
    models = map(shapes.load, progress(options.shapes, "models", "model"))
    return [counted(record(model), model) | host_times(model) for model in models]


def counted(recorded: Recorded, inventory: shapes.Inventory) -> Row:
    """What the tables of an optimizer say, and what two of its steps launch."""
    launches = recorded.step()
    engine, numel = recorded.engine, inventory.numel
    works = {name: work for name, work in engine.works.items() if name != "derive"}
    by_launch: list[Row] = [
        {
            "launch": name,
            "tiles": work.count,
            "flops": work.needed,
            "executed_flops": work.executed,
            "bytes": work.bytes,
        }
        for name, work in works.items()
    ]
    fields = ("tiles", "flops", "executed_flops", "bytes")
    total = {field: sum(row[field] for row in by_launch) for field in fields}
    executed = total["executed_flops"]
    least = costs((entry.shape for entry in inventory.entries), PLAN)["step_"].bytes
    refresh = recorded.refresh()
    return {
        "model": inventory.model,
        "parameters": numel,
        "tensors": len(recorded.params),
        "launches_plain": launches,
        "launches_refresh": sum(refresh.values()),
        "launches_refresh_by": refresh,
        **total,
        "bytes_ratio": total["bytes"] / least,
        "padding": 1 - total["flops"] / executed if executed else 0.0,
        "workspace_ratio": (engine.memory.a.numel() + engine.memory.b.numel()) / numel,
        "state_bytes": state_bytes(recorded.optimizer),
        "floor_ms": 1e3 * sum(floor_seconds(w.needed, w.bytes) for w in works.values()),
        "by_launch": by_launch,
    }


def host_times(inventory: shapes.Inventory, rounds: int = 60) -> dict[str, float]:
    """Milliseconds that a step keeps the host, medians; launches are called, kernels do not run.

    What is refreshed is as many smaller factors, for memory is copied by the host here.
    """
    recorded = record(inventory, launcher=CallingLauncher())

    def look() -> None:
        for param in recorded.params:
            param.grad.data_ptr()  # type: ignore[union-attr]

    base = statistics.median(timed_call(look, "cpu").total for _ in range(rounds))
    same = _plain(recorded, rounds)
    return {
        "host_ms": same,
        "host_new_gradients_ms": _plain(recorded, rounds, new_gradients=True),
        "host_refresh_ms": _refreshing(record(inventory.small(), launcher=CallingLauncher())),
        "host_ratio": same / base,
    }


def _plain(recorded: Recorded, rounds: int, *, new_gradients: bool = False) -> float:
    steps = []
    for _ in range(rounds):
        for state in recorded.optimizer.state.values():
            state["calls"] = 2  # never due
        recorded.step()  # settles
        if new_gradients:
            for param in recorded.params:
                param.grad = torch.empty_like(param)
        steps.append(timed_call(recorded.step, "cpu").total)
    return statistics.median(steps)


def _refreshing(recorded: Recorded) -> float:
    """Calls that refresh, of ten periods; those of the first two make tables."""
    frequency, steps = recorded.optimizer.param_groups[0]["precondition_frequency"], []
    for call in range(10 * frequency):
        recorded.backend.refreshed.clear()
        taken = timed_call(recorded.step, "cpu").total
        if recorded.backend.refreshed and call >= 2 * frequency:
            steps.append(taken)
    return statistics.median(steps)

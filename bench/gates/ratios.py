"""Times over times of the same run, with wide margins: what no noise of a machine explains.

Noise only ever adds. So a check that fails is made again, twice at most, and the best counts: a
slowdown of our own is in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch

from bench import shapes
from bench.command import Row
from bench.gates.check import RESULTS, check, recorded
from bench.peers.interleaved import Runner, take_turns
from bench.peers.optimizers import OURS, build
from bench.roofline.counted import host_times

ATTEMPTS = 3
# Over what was recorded. Two machines differ by 1.5 in these ratios, a busy one by as much again;
# what a mistake on a hot path costs (a loop in Python, a copy, a sync) is a multiple.
MARGIN = 2.5
HOST_ROUNDS = 5
PEERS = ("oracle", "pytorch_optimizer")  # other SOAPs; Adam's step is too short to divide by
FREQUENCY = 3
STEP = RESULTS / "step"


def lowest(measure: Callable[[], list[float]], limits: Sequence[float]) -> list[float]:
    """The lowest of up to three attempts, each by each; the first within all limits is the last."""
    found = measure()
    for _ in range(ATTEMPTS - 1):
        if all(one <= limit for one, limit in zip(found, limits, strict=True)):
            break
        found = list(map(min, found, measure()))
    return found


def host(inventory: shapes.Inventory, expected: Row) -> Row:
    """A step's host side over a pass over its gradients."""
    limit = MARGIN * expected["host_ratio"]

    def measure() -> list[float]:
        return [host_times(inventory, HOST_ROUNDS)["host_ratio"]]

    (found,) = lowest(measure, [limit])
    return check("host_ratio", expected["model"], found, "<=", limit, found <= limit)


def peers(inventory: shapes.Inventory, speedups: dict[str, float]) -> list[Row]:
    """Our step over a peer's on the CPU, a mean over a refresh period, all by one thread.

    Threads of others on the machine then delay us and them alike, and not whoever waits for more.

    Args:
        speedups: their time over ours, as recorded.
    """
    limits = [MARGIN / speedup for speedup in speedups.values()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = lowest(lambda: _over(list(speedups), inventory), limits)
    finally:
        torch.set_num_threads(threads)
    return [
        check(f"step / {name}", inventory.model, one, "<=", limit, one <= limit)
        for name, one, limit in zip(speedups, found, limits, strict=True)
    ]


def speedups(model: str) -> dict[str, float]:
    """Recorded speedups over the peers that are installed; BadInput where none were recorded."""
    how = f"python -m bench step --shapes {model} --peers {','.join(PEERS)}"
    content = recorded(STEP / f"{model}_cpu.json", how)
    found = {row["name"]: row.get("speedup") for row in content["results"]}
    installed = [name for name in PEERS if name == "oracle" or find_spec(name) is not None]
    return {name: found[name] for name in installed if found.get(name) is not None}


def _over(names: Sequence[str], inventory: shapes.Inventory) -> list[float]:
    runners = []
    for name in (OURS, *names):
        params = inventory.parameters()
        runners.append(Runner(name, params, build(name, params, FREQUENCY, None)))
    take_turns(runners, inventory, "cpu", FREQUENCY, periods=1)
    ours, *theirs = (runner.times.summary(FREQUENCY)["mean_ms"] for runner in runners)
    assert ours is not None
    return [ours / mean for mean in theirs if mean is not None]

"""`step --peers`: a row per optimizer, ours first, from one run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from bench import shapes
from bench.command import BadInput, Row, told
from bench.measuring.calls import state_bytes
from bench.output.progress import progress
from bench.peers.interleaved import Runner, take_turns
from bench.peers.memory import CALLS, peak_bytes
from bench.peers.optimizers import MAX_PRECOND_DIM, OURS, build, origin, peer
from bench.roofline.costs import costs
from bench.roofline.roofs import DEFAULT_SIZES, gemm_row
from soap_fast.options import PlanOptions

COLUMNS = (
    "name", "plain_ms", "refresh_ms", "first_ms", "mean_ms", "p99_ms", "host_ms", "speedup",
    "peak_bytes", "state_ratio", "gemm_share", "missing", "failed",
)  # fmt: skip
LEAST_FOR_A_PEAK = 15.0  # seconds: it begins with a new process that loads torch
PLAN = PlanOptions(MAX_PRECOND_DIM, False, False, "channels_first")


def beside(
    wanted: str,
    peers: Sequence[str],
    device: str,
    backend: str | None,
    frequency: int,
    periods: int,
    limit: float | None = None,
    budget: float | None = None,
) -> list[Row]:
    """Measure ours and these peers on an inventory, a call of a peer within `limit` seconds.

    On a GPU memory is measured along with the times. On the CPU it comes last, in processes of its
    own: `budget` seconds after the start, peers stop and the memory of those that have not been
    asked for it is not measured.

    Returns:
        Rows with `first_ms`, `plain_ms`, `refresh_ms`, `mean_ms` (milliseconds, see
        `bench.measuring.calls.Times`), `loading_ms` (of the call before these), `peak_bytes` (see
        `bench.measuring.memory`, `bench.peers.memory`), `state_ratio`
        (bytes of state over bytes of parameters), `speedup` (mean_ms over that of ours) and, of
        ours, `gemm_share`: the time of a plain step's products at the machine's `sgemm_gflops`,
        over the time it takes. A peer that is not installed has `missing`, the command that brings
        it; one that raised, made or stepped, has `failed`.

    Raises:
        BadInput: no such inventory, or a backend that does not run here.
    """
    inventory = shapes.load(wanted)
    runners, missing = runners_of(inventory, (OURS, *peers), device, frequency, backend)
    for runner in runners:
        runner.limit = limit
    before, start = sgemm_gflops(device), time.monotonic()
    take_turns(runners, inventory, device, frequency, periods, budget)
    gflops = max(before, sgemm_gflops(device))  # machines have faster and slower minutes
    peaks = {runner.name: runner.memory.peak for runner in runners if runner.failed is None}
    uncounted = [] if device.startswith("cuda") else runners
    for runner in progress(uncounted, "peak memory", "optimizer"):
        left = math.inf if budget is None else budget - (time.monotonic() - start)
        if runner.failed is None and (runner.name == OURS or left > 0):
            within = limit if limit is None else min(limit, max(left, LEAST_FOR_A_PEAK) / CALLS)
            peaks[runner.name] = peak_bytes(runner.name, wanted, device, backend, within)

    ours = runners[0].times.summary(frequency)
    rows: dict[str, Row] = {
        name: {"name": name, "missing": command} for name, command in missing.items()
    }
    for runner in runners:
        rows[runner.name] = {
            "name": runner.name,
            "backend": getattr(runner.optimizer, "backend", None) if runner.name == OURS else None,
            "shapes": inventory.model,
            "device": device,
            "threads": torch.get_num_threads(),
            "precondition_frequency": frequency,
            "tensors": len(runner.params),
            "parameters": inventory.numel,
            **_measured(runner, inventory, frequency, ours, gflops),
            "peak_bytes": peaks.get(runner.name),
            "sgemm_gflops": gflops,
            **origin(runner.name),
        }
    return [rows[name] for name in (OURS, *peers)]


def runners_of(
    inventory: shapes.Inventory,
    names: Sequence[str],
    device: str,
    frequency: int,
    backend: str | None,
) -> tuple[list[Runner], dict[str, str]]:
    """Optimizers on parameters of equal values, and how to install those that are missing.

    Raises:
        BadInput: a backend that does not run here.
    """
    runners, missing = [], {}
    for name in names:
        params = inventory.parameters(device)
        made = partial(build, name, params, frequency, backend)
        try:
            runners.append(Runner(name, params, made(), build=made))
        except ImportError as error:
            command = peer(name).install or ""
            missing[name] = command
            print(f"{name} is missing ({error}): {command}; left out", file=sys.stderr)
        except Exception as error:
            if name == OURS:
                raise (BadInput(str(error)) if isinstance(error, ValueError) else error) from None
            runners.append(Runner(name, params, None, failed=told(error)))
            print(f"{name} cannot be made: {told(error)}", file=sys.stderr)
    return runners, missing


def _measured(
    runner: Runner,
    inventory: shapes.Inventory,
    frequency: int,
    ours: dict[str, float | None],
    gflops: float,
) -> dict[str, Any]:
    if runner.failed is not None:
        return {"failed": runner.failed}
    times = runner.times.summary(frequency)
    mean, mean_of_ours = times["mean_ms"], ours["mean_ms"]
    assert mean is not None
    assert mean_of_ours is not None
    share = None
    if runner.name == OURS and times["plain_ms"] is not None:
        known = costs((entry.shape for entry in inventory.entries), PLAN)
        share = known["soap_fast::step_"].flops / (gflops * 1e9) / (times["plain_ms"] / 1e3)
    return {
        **times,
        **runner.times.tail(),
        "loading_ms": runner.loading_ms,
        "samples": runner.times.samples(),
        "speedup": mean / mean_of_ours,
        "state_ratio": state_bytes(runner.optimizer) / sum(p.nbytes for p in runner.params),
        "gemm_share": share,
    }


def sgemm_gflops(device: str) -> float:
    """GFLOP/s of a float32 product of the machine, with torch's threads as they are set."""
    size = DEFAULT_SIZES["cpu"].product  # of a GPU as well: a fraction of a second
    return float(gemm_row("gemm_float32", device, size, repeats=7)["value"])

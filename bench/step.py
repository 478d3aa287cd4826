"""`step`: what a step costs on the parameters of a real model, call by call.

Gradients are normal random numbers, the same for every run. The first call (first bases), calls
with a refresh and plain calls are told apart, by medians; `mean_ms` weighs the two as a refresh
period has them. Compiling is in `loading_ms` alone: the first call of an optimizer that is then
dropped for another. Of a peer named package.module:Class nobody knows which calls refresh:
`plain_ms` is the median and `mean_ms` the arithmetic mean. `p99_ms` is of all timed calls,
`host_ms` the median until such a call returns, which on CUDA is before its work is done;
`peak_bytes` is what a step needs beside parameters and gradients. With `--peers` other optimizers
take turns with ours on the same gradients; a row each. `speedup` is their mean over ours;
`gemm_share`, of ours, the time of a plain step's products at the machine's `sgemm_gflops` over the
time it takes.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from functools import partial
from typing import Any

import torch

from bench import shapes, turns
from bench.clock import Times, timed_call
from bench.command import Row, positive, progress
from bench.costs import PLAN, costs
from bench.files import BadInput
from bench.memory import STEPS, peak_bytes, state_bytes
from bench.optimizers import OURS, Params, build
from bench.roof import DEFAULT_SIZES, gemm_row
from bench.turns import Runner, described, take_turns
from soap_fast import SOAP, GraphedStep

COLUMNS = (
    "name", "shapes", "loading_ms", "first_ms", "plain_ms", "refresh_ms", "mean_ms", "p99_ms",
    "host_ms", "speedup", "peak_bytes", "state_ratio", "gemm_share", "missing", "failed",
)  # fmt: skip
LEAST_FOR_A_PEAK = 15.0  # seconds: it begins with a new process that loads torch


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    turns.add_options(parser, OURS, periods=1)
    add("--shapes", default="hyperprior", help="inventory name or file (default: %(default)s)")
    add("--graphed", action="store_true", help="replay CUDA graphs of the steps, without peers")
    budget = "for all calls and the peaks of memory, after which peers stop (default: none)"
    add("--budget", type=positive(float), metavar="SECONDS", help=budget)


def run(options: argparse.Namespace) -> list[Row]:
    if options.graphed and options.peers:
        raise BadInput("--graphed and --peers are two measurements: make one after the other")
    if options.graphed and not options.device.startswith("cuda"):
        raise BadInput("--graphed replays CUDA graphs: add --device cuda, on a machine with a GPU")
    inventory = shapes.load(options.shapes)
    about = {
        "shapes": inventory.model,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "precondition_frequency": options.precondition_frequency,
        "tensors": len(inventory.entries),
        "parameters": inventory.numel,
    }
    try:
        rows = [graphed(inventory, options)] if options.graphed else measure(inventory, options)
    except ValueError as error:
        raise BadInput(str(error)) from None
    return [row if "missing" in row else row | about for row in rows]


class Stepped(Runner):
    """Steps with copies of the gradients of `source`, which an optimizer may change or drop."""

    def __init__(self, name: str, source: Params, params: Params, *given: Any, **more: Any) -> None:
        super().__init__(name, params[0].device, partial(build, name, params, *given), **more)
        self.source, self.params = source, params

    def before(self) -> None:
        # They are kept as well: whoever drops one frees no memory by it.
        self.gradients = [given.grad.clone() for given in self.source]
        for param, gradient in zip(self.params, self.gradients, strict=True):
            param.grad = gradient

    def after(self) -> None:
        self.gradients = []
        for param in self.params:
            param.grad = None

    def call(self) -> None:
        self.optimizer.step()


def measure(inventory: shapes.Inventory, options: argparse.Namespace) -> list[Row]:
    """A row per optimizer, ours first; memory on the CPU comes last, see `peak_bytes`."""
    device, frequency = options.device, options.precondition_frequency
    source = inventory.parameters(device)
    given = (frequency, options.backend)
    runners = [
        Stepped(name, source, inventory.parameters(device), *given, limit=options.time_limit)
        for name in (OURS, *options.peers)
    ]
    end = math.inf if options.budget is None else time.monotonic() + options.budget
    # Before and after, since machines have faster and slower minutes.
    gflops = sgemm_gflops(device) if options.peers else None

    def prepare(call: int) -> None:
        inventory.set_gradients(source, seed=1 + call)

    take_turns(runners, frequency, options.periods, inventory.model, prepare, options.budget)
    if gflops is not None:
        gflops = max(gflops, sgemm_gflops(device))
    flops = costs((entry.shape for entry in inventory.entries), PLAN)["soap_fast::step_"].flops
    rows: list[Row] = []
    for runner in progress(runners, "peaks", "optimizer"):
        row = described(runner, frequency)
        if runner.missing is None:
            row |= {"sgemm_gflops": gflops, "peak_bytes": _peak(runner, options, end)}
        if not runner.waits:
            row |= {**_measured(runner.times, runner.optimizer, runner.params), "gemm_share": None}
            row["speedup"] = row["mean_ms"] / (rows or [row])[0]["mean_ms"]
        if runner.name == OURS and gflops and row["plain_ms"]:
            row["gemm_share"] = flops / (gflops * 1e9) / (row["plain_ms"] / 1e3)
        rows.append(row)
    return rows


def _measured(times: Times, optimizer: torch.optim.Optimizer, params: Params) -> Row:
    ratio = state_bytes(optimizer) / sum(param.nbytes for param in params)
    return {**times.tail(), "samples": times.samples(), "state_ratio": ratio}


def _peak(runner: Runner, options: argparse.Namespace, end: float) -> int | None:
    left = end - time.monotonic()
    if runner.waits or options.device.startswith("cuda"):
        return None if runner.waits else runner.memory.peak
    if left <= 0 and not runner.needed:
        return None
    within = min(options.time_limit, max(left, LEAST_FOR_A_PEAK) / STEPS)
    wanted = [options.shapes, options.device, options.backend]
    return peak_bytes("step", runner.name, wanted, within)


def sgemm_gflops(device: str) -> float:
    """GFLOP/s of a float32 product of the machine, with torch's threads as they are set."""
    size = DEFAULT_SIZES["cpu"][1]  # of a GPU as well: a fraction of a second
    return float(gemm_row("gemm_float32", device, size, repeats=7)["value"])


def graphed(inventory: shapes.Inventory, options: argparse.Namespace) -> Row:
    """Replays of plain and of refreshing calls; those before both are captured are not timed."""
    device, frequency = options.device, options.precondition_frequency
    params = inventory.parameters(device)
    lr = torch.tensor(3e-3, device=device)

    def made() -> SOAP:
        return SOAP(params, lr=lr, precondition_frequency=frequency, backend="triton")

    inventory.set_gradients(params, seed=1)
    loading = timed_call(made().step, device)  # compiles and loads what a first call needs
    gc.collect()
    optimizer = made()
    static = [param.grad for param in params]
    step, times = GraphedStep(optimizer), Times()
    # Warm-ups of plain calls, then one period until a refresh as it comes, one until its capture.
    captured = GraphedStep.WARM_UP + 2 * frequency
    for call in progress(range(captured + 1 + frequency * options.periods), "graphs"):
        new = inventory.parameters(device, seed=1 + call)
        for grad, values in zip(static, new, strict=True):
            grad.copy_(values.detach())
        refreshes = step.refreshes_next()
        elapsed = timed_call(step, device)
        if call == 0 or call > captured:
            times.add(elapsed, first=call == 0, refresh=refreshes)
    return {
        "name": "soap_fast, CUDA graphs",
        "backend": "triton",
        **times.summary(frequency),
        **_measured(times, optimizer, params),
        "loading_ms": loading.total,
        "peak_bytes": None,  # a graph's memory stays taken: that of the step itself is `step`'s
    }

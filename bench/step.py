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
import math
import time
from functools import partial
from typing import Any

import torch

from bench import shapes, turns
from bench.command import Row, positive, progress
from bench.costs import PLAN, costs
from bench.files import BadInput
from bench.memory import STEPS, peak_bytes, state_bytes
from bench.optimizers import OURS, Params, build
from bench.roof import DEFAULT_SIZES, gemm_row
from bench.turns import Runner, described, take_turns
from soap_fast import GraphedStep

COLUMNS = (
    "name", "backend", "shapes", "loading_ms", "first_ms", "plain_ms", "refresh_ms", "mean_ms",
    "p99_ms", "host_ms", "speedup", "peak_bytes", "state_ratio", "gemm_share", "missing", "failed",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    turns.add_options(parser, OURS, "--shapes", periods=1, shapes="hyperprior")
    add("--graphed", action="store_true", help="replay CUDA graphs of the steps, without peers")
    budget = "for all calls and the peaks of memory, after which peers stop (default: none)"
    add("--budget", type=positive(float), metavar="SECONDS", help=budget)


def run(options: argparse.Namespace) -> list[Row]:
    if options.graphed and options.peers:
        raise BadInput("--graphed and --peers are two measurements: make one after the other")
    if options.graphed and not options.device.startswith("cuda"):
        raise BadInput("--graphed replays CUDA graphs: add --device cuda, on a machine with a GPU")
    return measure(shapes.load(options.shapes), options)


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


class Graphed(Stepped):
    """Ours by CUDA graphs, which read gradients where they are."""

    step: GraphedStep | None = None

    def before(self) -> None:
        if self.params[0].grad is None:
            super().before()
        for param, given in zip(self.params, self.source, strict=True):
            param.grad.copy_(given.grad)

    def after(self) -> None:
        """Gradients stay, and graphs as long as their optimizer."""
        if self.optimizer is None:
            self.step = None

    def call(self) -> None:
        if self.step is None:
            (group,) = self.optimizer.param_groups
            group["lr"] = torch.tensor(group["lr"], device=self.device)  # no number is captured
            self.step = GraphedStep(self.optimizer)
        self.step()


def measure(inventory: shapes.Inventory, options: argparse.Namespace) -> list[Row]:
    """A row per optimizer, ours first; memory on the CPU comes last, see `peak_bytes`."""
    device, frequency = options.device, options.precondition_frequency
    source = inventory.parameters(device)
    made, backend = (Graphed, "triton") if options.graphed else (Stepped, options.backend)
    given = (frequency, backend)
    runners = [
        made(name, source, inventory.parameters(device), *given, limit=options.time_limit)
        for name in (OURS, *options.peers)
    ]
    # Warm-ups of plain calls, then one period until a refresh as it comes, one until its capture.
    untimed = GraphedStep.WARM_UP + 2 * frequency if options.graphed else frequency
    end = math.inf if options.budget is None else time.monotonic() + options.budget
    # Before and after, since machines have faster and slower minutes.
    gflops = sgemm_gflops(device) if options.peers else None

    def prepare(call: int) -> None:
        inventory.set_gradients(source, seed=1 + call)

    take_turns(
        runners, frequency, options.periods, inventory.model, prepare, options.budget, untimed
    )
    if gflops is not None:
        gflops = max(gflops, sgemm_gflops(device))
    flops = costs((entry.shape for entry in inventory.entries), PLAN)["step_"].flops
    rows: list[Row] = []
    for runner in progress(runners, "peaks", "optimizer"):
        row = described(runner, frequency)
        if runner.missing is None:
            row |= {
                "shapes": inventory.model,
                "tensors": len(inventory.entries),
                "parameters": inventory.numel,
                "sgemm_gflops": gflops,
                "peak_bytes": _peak(runner, options, end),
            }
        if not runner.waits:
            row |= {**runner.times.tail(), "samples": runner.times.samples(), "gemm_share": None}
            row["state_ratio"] = state_bytes(runner.optimizer) / sum(p.nbytes for p in source)
            row["speedup"] = row["mean_ms"] / (rows or [row])[0]["mean_ms"]
        if runner.name == OURS and gflops and row["plain_ms"]:
            row["gemm_share"] = flops / (gflops * 1e9) / (row["plain_ms"] / 1e3)
        if options.graphed:
            row["name"] = f"{OURS}, CUDA graphs"
        rows.append(row)
    return rows


def _peak(runner: Runner, options: argparse.Namespace, end: float) -> int | None:
    if runner.waits or options.graphed:  # a graph's memory stays taken
        return None
    if options.device.startswith("cuda"):
        return runner.memory.peak
    left = math.inf if runner.needed else end - time.monotonic()
    wanted = [options.shapes, options.device, options.backend]
    within = min(options.time_limit, left / STEPS)
    return peak_bytes("step", runner.name, wanted, within) if within > 0 else None


def sgemm_gflops(device: str) -> float:
    """GFLOP/s of a float32 product of the machine, with torch's threads as they are set."""
    size = DEFAULT_SIZES["cpu"][1]  # of a GPU as well: a fraction of a second
    return float(gemm_row("gemm_float32", device, size, repeats=7)["value"])

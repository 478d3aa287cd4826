"""`train`: training steps of a whole model, forward, backward and optimizer, beside Adam's.

Optimizers take turns, step by step, each on a model of its own with the same start and batch.
`mean_ms` is a whole step: the medians of plain and of refreshing steps, weighed as a refresh period
has them; of a peer named package.module:Class, whose refreshes nobody knows, the arithmetic mean of
all steps but the first. `lower_ms` to `upper_ms` the quartiles of
all steps but the first, `share` the optimizer's part of the mean; `ratio` and `peak_ratio` relate
the mean, and the peak memory of a training process, to those of torch.optim.Adam. `--model`
takes package.module:function, a function of a device that returns a model there and a function
without arguments that returns its loss; batch, crop and width are then its own affair.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field

import torch

from bench import workloads
from bench.arguments import add_backend, add_device, add_frequency, add_time_limit, positive
from bench.command import BadInput, Row, add_json_option, check_target, show, told
from bench.measuring.calls import Times, timed_call
from bench.measuring.clock import Stopwatch, quartiles
from bench.output.progress import progress
from bench.peers import train_memory
from bench.peers.limit import TookTooLong, time_limit
from bench.peers.optimizers import OURS, PEERS, around, build, chosen, origin, refreshed
from bench.workloads import MODELS, Settings, Workload

COLUMNS = (
    "name", "mean_ms", "lower_ms", "median_ms", "upper_ms", "forward_ms", "backward_ms",
    "optimizer_ms", "share", "ratio", "peak_bytes", "peak_ratio", "missing", "failed",
)  # fmt: skip
BASELINE = "adam"


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        type=workloads.checked,
        default=workloads.DEMO,
        help=f"{', '.join(MODELS)}, or package.module:function (default: %(default)s)",
    )
    add(
        "--peers",
        type=chosen,
        default=(),
        metavar="NAME,...",
        help=f"beside {BASELINE} and {OURS}: {', '.join(PEERS)}, or any package.module:Class",
    )
    add_device(parser)
    add_backend(parser)
    add("--periods", type=positive(int), default=3, help="of refreshes (default: %(default)s)")
    add_frequency(parser)
    add("--batch", type=positive(int), help="crops (default: 8)")
    add("--crop", type=positive(int), help="side in pixels (default: 64 for the demo, else 256)")
    add(
        "--width",
        type=positive(float),
        help="channels of the demo (default: 48), of others a factor of all widths (default: 1)",
    )
    add_time_limit(parser, "step")
    add_json_option(parser)


@dataclass
class Trained:
    """An optimizer at work on a model of its own, and what its steps took."""

    name: str
    workload: Workload
    optimizer: torch.optim.Optimizer | None  # None of a peer that could not be built
    device: str
    whole: Times = field(default_factory=Times)
    own: Times = field(default_factory=Times)  # of the optimizer
    failed: str | None = None

    def __post_init__(self) -> None:
        self.forward, self.backward, self.last = (Stopwatch(self.device) for _ in range(3))

    def step(self, call: int, frequency: int, limit: float) -> None:
        try:
            with time_limit(None if self.name == OURS else limit), around(self.name):
                elapsed = timed_call(self._step, self.device)
        except (Exception, TookTooLong) as error:
            if self.name in (OURS, BASELINE):
                raise
            self.failed = told(error)
            print(f"{self.name} failed at step {call}: {self.failed}", file=sys.stderr)
            return
        (seconds,) = self.last.seconds()
        kind = {
            "first": call == 0,
            "refresh": refreshed(self.name, self.optimizer, call, frequency),
        }
        self.whole.add(elapsed, **kind)
        self.own.add(elapsed._replace(total=1e3 * seconds), **kind)

    def _step(self) -> None:
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        loss = self.forward(self.workload.loss)
        self.backward(loss.backward)
        self.last(self.optimizer.step)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    settings = workloads.chosen(options.model, options.batch, options.crop, options.width)
    frequency = options.precondition_frequency
    names = tuple(dict.fromkeys((BASELINE, OURS, *options.peers)))
    rows: dict[str, Row] = {}
    runners = []
    for name in names:
        workload = workloads.build(options.model, options.device, settings)
        optimizer, failed = None, None
        try:
            optimizer = build(name, workload.params, frequency, options.backend)
        except ImportError as error:
            command = PEERS[name].install if name in PEERS else None
            rows[name] = {"name": name, "missing": command}
            print(f"{name} is missing ({error}): {command}; left out", file=sys.stderr)
            continue
        except Exception as error:
            failed = told(error)
            if name in (OURS, BASELINE):
                raise BadInput(f"{options.model}, {name}: {failed}") from None
            print(f"{name} cannot be made: {failed}", file=sys.stderr)
        runners.append(Trained(name, workload, optimizer, options.device, failed=failed))
    for call in progress(range(1 + frequency * options.periods), options.model, "step"):
        first = call % len(runners)  # who begins goes round
        for runner in (*runners[first:], *runners[:first]):
            if runner.failed is None:
                runner.step(call, frequency, options.time_limit)
    for runner in progress(runners, "peak memory", "optimizer"):
        rows[runner.name] = _row(runner, options, settings)
    _relate(rows)
    show([rows[name] for name in names], COLUMNS, options.json)
    return 0


def _row(runner: Trained, options: argparse.Namespace, settings: Settings) -> Row:
    row: Row = {
        "name": runner.name,
        "model": options.model,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "precondition_frequency": options.precondition_frequency,
        "parameters": sum(p.numel() for p in runner.workload.params),
        "backend": getattr(runner.optimizer, "backend", None) if runner.name == OURS else None,
        **settings._asdict(),
        **origin(runner.name),
    }
    if runner.failed is not None:
        return {**row, "failed": runner.failed}
    whole = runner.whole.summary(options.precondition_frequency)
    own = runner.own.summary(options.precondition_frequency)
    spread = quartiles(runner.whole.later())
    mean, optimizer = whole["mean_ms"], own["mean_ms"]
    forward, backward = (
        [1e3 * seconds for seconds in watch.seconds()[1:]]
        for watch in (runner.forward, runner.backward)
    )
    assert mean is not None
    assert optimizer is not None
    return {
        **row,
        **whole,
        "lower_ms": spread.lower,
        "median_ms": spread.median,
        "upper_ms": spread.upper,
        "forward_ms": statistics.median(forward),
        "backward_ms": statistics.median(backward),
        "optimizer_ms": optimizer,
        "share": optimizer / mean,
        "samples": {
            **runner.whole.samples(),
            "median_ms": runner.whole.later(),
            "forward_ms": forward,
            "backward_ms": backward,
        },
        "peak_bytes": train_memory.peak_bytes(
            runner.name, options.model, options.device, options.backend, settings,
            options.time_limit,
        ),
    }  # fmt: skip


def _relate(rows: dict[str, Row]) -> None:
    """Every row's mean and peak over those of the baseline, where there are both."""
    for ratio, value in (("ratio", "mean_ms"), ("peak_ratio", "peak_bytes")):
        base = rows[BASELINE].get(value)
        for row in rows.values():
            if base and row.get(value):
                row[ratio] = row[value] / base

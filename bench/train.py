"""`train`: training steps of a whole model, forward, backward and optimizer, beside Adam's.

Optimizers take turns, step by step, each on a model of its own with the same start and batch.
`mean_ms` is a whole step, a mean over a refresh period, and `loading_ms` what compiles, both as in
`python -m bench step`; `lower_ms` to `upper_ms` the quartiles of all timed steps but the first,
`share` the optimizer's part of the mean; `ratio` and `peak_ratio` relate the mean, and the peak
memory of training, to those of torch.optim.Adam. `--model package.module:function` takes a function
of a device that returns a model there and a function without arguments that returns its loss.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import turns, workloads
from bench.clock import Elapsed, Stopwatch, Times
from bench.command import Row, positive, progress
from bench.memory import peak_bytes
from bench.optimizers import OURS, build
from bench.turns import Runner, described, take_turns
from bench.workloads import MODELS, Workload

COLUMNS = (
    "name", "backend", "model", "width", "mean_ms", "lower_ms", "median_ms", "upper_ms",
    "forward_ms", "backward_ms", "optimizer_ms", "share", "ratio", "peak_bytes", "peak_ratio",
    "missing", "failed",
)  # fmt: skip
BASELINE = "adam"
PASSES = ("forward_ms", "backward_ms")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    turns.add_options(parser, f"{BASELINE} and {OURS}", periods=3)
    models = f"{', '.join(MODELS)}, or package.module:function (default: %(default)s)"
    add("--model", type=workloads.checked, default=workloads.DEMO, help=models)
    add("--batch", type=positive(int), help="crops (default: 8)")
    add("--crop", type=positive(int), help="side in pixels (default: 64 for the demo, else 256)")
    width = "channels of the demo (default: 48), of others a factor of all widths (default: 1)"
    add("--width", type=positive(float), help=width)


class Trained(Runner):
    """A model and its optimizer, and what their steps took."""

    def __init__(
        self, name: str, device: str, workload: Callable[[], Workload], *given: Any, **more: Any
    ) -> None:
        def built() -> torch.optim.Optimizer:
            return build(name, self.workload.params, *given)

        super().__init__(name, device, built, needed=name in (OURS, BASELINE), **more)
        with self.memory.turn():
            self.workload = workload()
        self.own = Times()  # the optimizer's part
        self.watch = Stopwatch(device)
        self.passes: dict[str, list[float]] = {name: [] for name in PASSES}

    def call(self) -> None:
        self.optimizer.zero_grad()
        loss = self.watch(self.workload.loss)
        self.watch(loss.backward)
        self.watch(self.optimizer.step)

    def load(self) -> None:
        super().load()
        for param in self.workload.params:
            param.grad = None

    def after(self) -> None:
        self.spans = [1e3 * seconds for seconds in self.watch.seconds()]

    def kept(self, elapsed: Elapsed, **kind: bool | None) -> None:
        super().kept(elapsed, **kind)
        self.own.add(elapsed._replace(total=self.spans[-1]), **kind)
        if not kind["first"]:
            for name, span in zip(PASSES, self.spans, strict=False):
                self.passes[name].append(span)


def run(options: argparse.Namespace) -> list[Row]:
    settings = workloads.chosen(options.model, options.batch, options.crop, options.width)
    workload = partial(workloads.build, options.model, options.device, settings)
    given = (options.precondition_frequency, options.backend)
    runners = [
        Trained(name, options.device, workload, *given, limit=options.time_limit)
        for name in dict.fromkeys((BASELINE, OURS, *options.peers))
    ]
    take_turns(runners, options.precondition_frequency, options.periods, options.model)
    about = {"model": options.model, **settings._asdict()}
    rows = []
    for runner in progress(runners, "peaks", "optimizer"):
        size = {"parameters": sum(p.numel() for p in runner.workload.params)}
        row = described(runner, options.precondition_frequency) | about | size
        if not runner.waits:
            row |= _measured(runner, options.precondition_frequency)
            wanted = [options.model, options.device, options.backend, list(settings)]
            row["peak_bytes"] = runner.memory.peak or peak_bytes(
                "train", runner.name, wanted, options.time_limit
            )
        rows.append(row)
    for ratio, value in (("ratio", "mean_ms"), ("peak_ratio", "peak_bytes")):
        base = rows[0].get(value)
        for row in rows:
            if base and row.get(value):
                row[ratio] = row[value] / base
    return rows


def _measured(runner: Trained, frequency: int) -> Row:
    later, mean = runner.times.later(), runner.times.summary(frequency)["mean_ms"]
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    lower, median, upper = torch.tensor(later, dtype=torch.float64).quantile(quarters).tolist()
    optimizer_ms = runner.own.summary(frequency)["mean_ms"]
    return {
        "lower_ms": lower,
        "median_ms": median,
        "upper_ms": upper,
        **{name: statistics.median(spans) for name, spans in runner.passes.items()},
        "optimizer_ms": optimizer_ms,
        "share": optimizer_ms / mean,
        "samples": {**runner.times.samples(), "median_ms": later, **runner.passes},
    }

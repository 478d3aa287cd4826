"""`train`: training steps of a whole model, forward, backward and optimizer, beside Adam's.

Optimizers take turns, step by step, each on a model of its own with the same start and batch.
`mean_ms` is a whole step: the medians of plain and of refreshing steps, weighed as a refresh period
has them; of a peer named package.module:Class, whose refreshes nobody knows, the arithmetic mean of
all timed steps. `lower_ms` to `upper_ms` the quartiles of all timed steps but the first, `share`
the optimizer's part of the mean; `ratio` and `peak_ratio` relate the mean, and the peak memory of
training, to those of torch.optim.Adam. As in `python -m bench step`, compiling is in `loading_ms`
alone, and a refresh period before the timed ones is not timed. `--model` takes
package.module:function, a function of a device that returns a model there and a function without
arguments that returns its loss; batch, crop and width are then its own affair.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch

from bench import workloads
from bench.arguments import add_backend, add_device, add_frequency, add_time_limit, positive
from bench.command import BadInput, Row, add_json_option, check_target, show, told
from bench.measuring.calls import Call, Elapsed, Times, sequence, timed_call
from bench.measuring.clock import Stopwatch, quartiles
from bench.measuring.memory import settle
from bench.output.progress import progress
from bench.peers import train_memory
from bench.peers.optimizers import OURS, PEERS, Params, build, chosen, origin, refreshed
from bench.peers.participant import Participant
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


class Trained(Participant):
    """An optimizer at work on a model of its own, and what its steps took.

    Its memory is that of training: parameters, gradients, activations, state and workspaces.
    """

    def __init__(self, name: str, device: str, workload: Callable[[], Workload]) -> None:
        super().__init__(name, None, device, needed=name in (OURS, BASELINE))
        self.device = device
        with self.memory.turn():
            self.workload = workload()
        self.whole, self.own = Times(), Times()  # steps, and the optimizer's part of them
        self.forward, self.backward, self.last = (Stopwatch(device) for _ in range(3))
        self.passes: dict[str, list[float]] = {"forward_ms": [], "backward_ms": []}

    def built(self, build: Callable[[Params], torch.optim.Optimizer]) -> None:
        """Get an optimizer; what it raises is the caller's."""
        self.build = partial(build, self.workload.params)
        self.optimizer = self.build()

    def step(self, call: Call, frequency: int) -> None:
        elapsed = self.take(self._step, f"step {call.number}")
        if elapsed is None:
            return
        spans = [1e3 * seconds for watch in self._watches() for seconds in watch.seconds()]
        if not call.timed:
            return
        assert self.optimizer is not None
        first = call.number == 0
        again = refreshed(self.name, self.optimizer, call.number, frequency)
        self.whole.add(elapsed, first=first, refresh=again)
        self.own.add(elapsed._replace(total=spans[-1]), first=first, refresh=again)
        if not first:
            for name, span in zip(self.passes, spans, strict=False):
                self.passes[name].append(span)

    def load_by_a_step(self) -> None:
        self.load(self._step)
        for watch in self._watches():
            watch.seconds()

    def forget(self) -> None:
        for param in self.workload.params:
            param.grad = None

    def _watches(self) -> tuple[Stopwatch, ...]:
        return self.forward, self.backward, self.last

    def _step(self) -> Elapsed:
        return timed_call(self._passes_and_step, self.device)

    def _passes_and_step(self) -> None:
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
    settle(options.device)
    for name in names:
        runner = Trained(
            name, options.device, partial(workloads.build, options.model, options.device, settings)
        )
        runner.limit = options.time_limit
        try:
            runner.built(partial(build, name, frequency=frequency, backend=options.backend))
        except ImportError as error:
            command = PEERS[name].install if name in PEERS else None
            rows[name] = {"name": name, "missing": command}
            print(f"{name} is missing ({error}): {command}; left out", file=sys.stderr)
            continue
        except Exception as error:
            runner.failed = told(error)
            if runner.needed:
                raise BadInput(f"{options.model}, {name}: {runner.failed}") from None
            print(f"{name} cannot be made: {runner.failed}", file=sys.stderr)
        runners.append(runner)
    for runner in runners:
        runner.load_by_a_step()
    for call in progress(sequence(frequency, options.periods), options.model, "step"):
        first = call.number % len(runners)  # who begins goes round
        for runner in (*runners[first:], *runners[:first]):
            if runner.failed is None:
                runner.step(call, frequency)
    for runner in progress(runners, "results", "optimizer"):
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
    assert mean is not None
    assert optimizer is not None
    return {
        **row,
        **whole,
        "loading_ms": runner.loading_ms,
        "lower_ms": spread.lower,
        "median_ms": spread.median,
        "upper_ms": spread.upper,
        **{name: statistics.median(spans) for name, spans in runner.passes.items()},
        "optimizer_ms": optimizer,
        "share": optimizer / mean,
        "samples": {
            **runner.whole.samples(),
            "median_ms": runner.whole.later(),
            **runner.passes,
        },
        "peak_bytes": _peak(runner, options, settings),
    }


def _peak(runner: Trained, options: argparse.Namespace, settings: Settings) -> int | None:
    """Of a GPU counted along; on the CPU in a process of its own."""
    if runner.memory.peak is not None:
        return runner.memory.peak
    return train_memory.peak_bytes(
        runner.name, options.model, options.device, options.backend, settings, options.time_limit
    )


def _relate(rows: dict[str, Row]) -> None:
    """Every row's mean and peak over those of the baseline, where there are both."""
    for ratio, value in (("ratio", "mean_ms"), ("peak_ratio", "peak_bytes")):
        base = rows[BASELINE].get(value)
        for row in rows.values():
            if base and row.get(value):
                row[ratio] = row[value] / base

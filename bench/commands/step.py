"""`step`: what a step costs on the parameters of a real model, call by call.

Gradients are normal random numbers, the same for every run. The first call (first bases), calls
with a refresh and plain calls are told apart, by medians; `mean_ms` weighs the two as a refresh
period has them. Compiling is in none of them: `loading_ms` is the first call of an optimizer that
compiles and loads and is dropped, `first_ms` that of the next one, after which a refresh period is
not timed. Of a peer named package.module:Class nobody knows which calls refresh: `plain_ms` is the
median and `mean_ms` the arithmetic mean. `p99_ms` is of all calls of the timed periods, `host_ms`
the median until such a call returns, which on CUDA is before its work is done; `peak_bytes` is what
a step needs beside parameters and gradients. With `--peers` other optimizers take turns with ours
on the same gradients; a row each.
"""

from __future__ import annotations

import argparse

import torch

from bench import shapes
from bench.arguments import (
    add_backend,
    add_device,
    add_frequency,
    add_shapes,
    add_time_limit,
    positive,
)
from bench.command import BadInput, add_json_option, check_target, show
from bench.measuring import graphed
from bench.measuring.calls import state_bytes
from bench.peers import beside
from bench.peers.interleaved import take_turns
from bench.peers.memory import peak_bytes
from bench.peers.optimizers import OURS, PEERS, chosen

COLUMNS = (
    "name",
    "shapes",
    "device",
    "threads",
    "loading_ms",
    "first_ms",
    "plain_ms",
    "refresh_ms",
    "mean_ms",
    "p99_ms",
    "host_ms",
    "peak_bytes",
    "state_ratio",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_shapes(parser, "hyperprior")
    add_device(parser)
    add_backend(parser)
    parser.add_argument(
        "--periods", type=positive(int), default=1, help="refresh periods (default: %(default)s)"
    )
    add_frequency(parser)
    parser.add_argument(
        "--peers",
        type=chosen,
        metavar="NAME,...",
        help=f"compare with {', '.join(PEERS)}, or any package.module:Class",
    )
    add_time_limit(parser, "call")
    parser.add_argument(
        "--budget",
        type=positive(float),
        metavar="SECONDS",
        help="for all calls and the peaks of memory, after which peers stop (default: none)",
    )
    parser.add_argument("--graphed", action="store_true", help="replay CUDA graphs of the steps")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    if options.graphed and options.peers:
        raise BadInput("--graphed and --peers are two measurements: make one after the other")
    if options.peers:
        rows = beside.beside(
            options.shapes,
            options.peers,
            options.device,
            options.backend,
            options.precondition_frequency,
            options.periods,
            options.time_limit,
            options.budget,
        )
        show(rows, beside.COLUMNS, options.json)
        return 0
    inventory = shapes.load(options.shapes)
    if options.graphed:
        return _graphed(inventory, options)
    frequency = options.precondition_frequency
    (runner,), _ = beside.runners_of(inventory, (OURS,), options.device, frequency, options.backend)
    take_turns([runner], inventory, options.device, frequency, options.periods)
    optimizer, peak = runner.optimizer, runner.memory.peak
    assert optimizer is not None
    if peak is None:
        peak = peak_bytes(OURS, options.shapes, options.device, options.backend)
    result = {
        "name": OURS,
        "backend": getattr(optimizer, "backend", None),
        "shapes": inventory.model,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "precondition_frequency": frequency,
        "tensors": len(runner.params),
        "parameters": inventory.numel,
        **runner.times.summary(frequency),
        **runner.times.tail(),
        "loading_ms": runner.loading_ms,
        "samples": runner.times.samples(),
        "peak_bytes": peak,
        "state_ratio": state_bytes(optimizer) / sum(p.nbytes for p in runner.params),
    }
    show([result], COLUMNS, options.json)
    return 0


def _graphed(inventory: shapes.Inventory, options: argparse.Namespace) -> int:
    if not options.device.startswith("cuda"):
        raise BadInput("--graphed replays CUDA graphs: add --device cuda, on a machine with a GPU")
    frequency, periods = options.precondition_frequency, options.periods
    try:
        row = graphed.measure(inventory, options.device, frequency, periods)
    except ValueError as error:
        raise BadInput(str(error)) from None
    show([row], COLUMNS, options.json)
    return 0

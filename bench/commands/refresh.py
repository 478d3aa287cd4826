"""`refresh`: first bases and refreshes of all factors of a model, against a loop over torch.linalg.

The factors have the sizes that the plan gives the model's parameters, and are those a training run
would bring: Gram matrices of normal gradients, with bases one drift behind them. The loop does
the same work factor by factor, as public optimizers do: product, order, `torch.linalg.qr` and the
carrying product for a refresh, `torch.linalg.eigh` for first bases. Both are timed in turn; ratios
are loop over ours.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from bench import shapes
from bench.arguments import add_device, add_shapes, positive
from bench.command import BadInput, add_json_option, check_target, show
from bench.measuring.clock import Stopwatch
from bench.measuring.factors import Factors
from bench.output.progress import progress
from soap_fast import extension
from soap_fast.step.eigh import eigh_eager, eigh_native
from soap_fast.step.refresh import refresh_eager, refresh_native

COLUMNS = (
    "shapes",
    "op",
    "device",
    "factors",
    "largest",
    "threads",
    "refresh_ms",
    "refresh_ratio",
    "eigh_ms",
    "eigh_ratio",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_shapes(parser)
    add_device(parser)
    parser.add_argument(
        "--op", choices=("native", "eager"), default="native", help="default: %(default)s"
    )
    parser.add_argument(
        "--repeats", type=positive(int), default=5, help="default: %(default)s, medians are taken"
    )
    parser.add_argument(
        "--threads", type=positive(int), help="of the CPU (default: torch's choice)"
    )
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    if options.op == "native" and not extension.available():
        raise BadInput(f"--op native: {extension.reason()}")
    cuda = (extension.build_info() or {}).get("cuda")
    if options.op == "native" and options.device.startswith("cuda") and not cuda:
        raise BadInput("--op native: the extension was built without CUDA; take --op eager")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    inventory = shapes.load(options.shapes)
    factors = Factors.of(inventory, options.device)
    if not factors.K:
        raise BadInput(f"no parameter of {inventory.model} has a factor: name other --shapes")
    eigh, refresh = OPS[options.op]
    refreshes = interleaved(
        lambda: factors.refresh(refresh),
        factors.refresh_loop,
        options.repeats,
        "refresh",
        before=factors.restore,
        device=options.device,
    )
    eighs = interleaved(
        lambda: eigh(factors.K, factors.chosen),
        factors.eigh_loop,
        options.repeats,
        "eigh",
        device=options.device,
    )
    names = ("refresh_ms", "refresh_loop_ms", "eigh_ms", "eigh_loop_ms")
    samples = dict(zip(names, (*refreshes, *eighs), strict=True))
    medians = {name: statistics.median(values) for name, values in samples.items()}
    result = {
        "shapes": inventory.model,
        "op": options.op,
        "device": options.device,
        "factors": sum(len(stack) for stack in factors.K),
        "largest": max(stack.shape[1] for stack in factors.K),
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        **medians,
        "refresh_ratio": medians["refresh_loop_ms"] / medians["refresh_ms"],
        "eigh_ratio": medians["eigh_loop_ms"] / medians["eigh_ms"],
        "samples": samples,
    }
    show([result], COLUMNS, options.json)
    return 0


OPS = {"native": (eigh_native, refresh_native), "eager": (eigh_eager, refresh_eager)}


def interleaved(
    one: Callable[[], object],
    other: Callable[[], object],
    repeats: int,
    what: str,
    before: Callable[[], object] = lambda: None,
    device: str = "cpu",
) -> list[list[float]]:
    """Milliseconds of each of two, run in turn after a warm-up; `before` is not timed."""
    watches = Stopwatch(device), Stopwatch(device)
    for _ in progress(range(repeats + 1), what, "pair"):
        for watch, work in zip(watches, (one, other), strict=True):
            before()
            watch(work)
    return [[1e3 * seconds for seconds in watch.seconds()[1:]] for watch in watches]

"""`demo`: the same small model from the same seed with three optimizers, one after the other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.command import Parser, check_target, positive
from bench.files import BadInput
from bench.lic import demo
from bench.lic.commands import options as shared
from bench.lic.optimizers import BUILDERS
from bench.lic.search import searched_rates
from bench.lic.training import say
from bench.lic.training.config import Config
from bench.lic.training.runs import CHECKPOINT_EVERY

STEPS = 1200  # 4 minutes with all three optimizers on two cores


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser(
        "demo", help="train the same small model with each optimizer, and compare"
    ).add_argument
    shared.add_images(add, crop=64)
    shared.add_files(add, "runs/lic", str(CHECKPOINT_EVERY))
    add(
        "--optimizers",
        type=_known,
        default=",".join(shared.DEMO_OPTIMIZERS),
        help="default: %(default)s",
    )
    add(
        "--lr",
        type=_rates,
        help="in place of the searched: one for all, or adam=1e-3,soap_fast=...",
    )
    add("--steps", type=positive(int), default=STEPS, help="default: %(default)s")
    add(
        "--factor",
        type=positive(float),
        default=shared.DEMO_FACTOR,
        help="of the hyperprior's widths (default: %(default)g)",
    )
    shared.add_run(add, batch=8)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    options.model = shared.DEMO_MODEL
    rates = _chosen_rates(options)
    shared.use_threads(options.threads)
    images = shared.images(options)
    settings = shared.settings(options, images)
    configs = [
        Config(optimizer=name, lr=rates[name], steps=options.steps, **settings)
        for name in options.optimizers
    ]
    folder = Path(options.out)
    every = options.checkpoint_every or CHECKPOINT_EVERY
    results, missing = demo.run_all(
        configs, images, folder, resume=options.resume, checkpoint_every=every
    )
    text = demo.table(results, missing, configs[0])
    print(text, file=sys.stderr if options.json == "-" else sys.stdout)
    demo.write(results, text, folder, options.json)
    say(f"table.md, result.json, curves.png and the models are in {folder}")
    return 0


def _known(text: str) -> tuple[str, ...]:
    """The report has labels and colours for these."""
    names = shared.optimizers(text)
    for name in names:
        if name not in BUILDERS:
            raise argparse.ArgumentTypeError(
                f"no optimizer {name!r}: take {', '.join(BUILDERS)}; `train` takes any"
            )
    return names


def _rates(text: str) -> dict[str, float]:
    """A rate for every optimizer, from `1e-3` or from `adam=1e-3,soap_fast=3e-3`."""
    if "=" not in text:
        return dict.fromkeys(BUILDERS, shared.rate(text))
    pairs = [pair.partition("=") for pair in text.split(",")]
    _known(",".join(name for name, _, _ in pairs))
    return {name.strip(): shared.rate(rate) for name, _, rate in pairs}


def _chosen_rates(options: argparse.Namespace) -> dict[str, float]:
    if options.lr is None:
        return searched_rates(options.optimizers)
    if absent := [name for name in options.optimizers if name not in options.lr]:
        raise BadInput(f"--lr gives no rate for {', '.join(absent)}; add it, or limit --optimizers")
    return {name: options.lr[name] for name in options.optimizers}

"""`search`: the learning rate of each optimizer, by the same rule for all."""

from __future__ import annotations

import argparse

from bench import envelope
from bench.command import Parser, check_target, positive
from bench.files import BadInput
from bench.lic import search
from bench.lic.commands import options as shared
from bench.lic.search import GRID, RATIO, RESULT, SEEDS
from bench.lic.training import Config, say

STEPS = 600  # half the demo's, about 50 times: 6 rates, then 3 and more by 3 seeds, 3 optimizers


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser(
        "search", help="search each optimizer's learning rate, by the same rule for all"
    ).add_argument
    shared.add_model(add, shared.DEMO_MODEL, shared.DEMO_FACTOR)
    shared.add_images(add, crop=64)
    add(
        "--optimizers",
        type=shared.optimizers,
        default=",".join(shared.DEMO_OPTIMIZERS),
        help="(%(default)s)",
    )
    add(
        "--grid",
        type=shared.rate,
        nargs="+",
        default=list(GRID),
        metavar="RATE",
        help=f"tried by one seed, before others {RATIO:g} apart near the best (%(default)s)",
    )
    add("--steps", type=positive(int), default=STEPS, help="of each run (default: %(default)s)")
    add(
        "--seeds",
        type=positive(int),
        default=SEEDS,
        help="runs of a rate near the best (default: %(default)s)",
    )
    add("--json", metavar="FILE", help=f"the result (default: the demo's rates, {RESULT.name})")
    shared.add_run(add, batch=8)
    shared.add_recipe(add)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    demos = (options.model, options.factor) == (shared.DEMO_MODEL, shared.DEMO_FACTOR)
    if options.json is None and not (
        demos and set(options.optimizers) == set(shared.DEMO_OPTIMIZERS)
    ):
        raise BadInput(
            f"{RESULT.name} has the rates of the demo's model and optimizers; name another file "
            "by --json"
        )
    shared.check_recipe(options)
    shared.use_threads(options.threads)
    images = shared.images(options)
    settings = {**shared.settings(options, images), **shared.recipe(options)}
    configs = [
        # The rate stands for those of the grid.
        Config(optimizer=name, lr=options.grid[0], steps=options.steps, **settings)
        for name in options.optimizers
    ]
    results = search.search(configs, images, options.grid, options.seeds, options.workers)
    for result in results:
        say(f"{result['optimizer']}: best learning rate {result['lr']:.3g}")
    envelope.write(options.json or str(RESULT), results, "lic search")
    return 0

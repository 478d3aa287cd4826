"""Learning rates by a search that treats all optimizers alike; its result is a committed file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.files import BadInput
from bench.lic.data import Images
from bench.lic.training import Config, Training, run, say

RESULT = Path(__file__).with_name("search.json")
GRID = (3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3)
RATIO = 1.4  # between neighbours near the best rate
SEEDS = 3  # of each rate there
MOVES = 6  # at most so often a neighbour becomes the best: 7.5 times from where it began

Losses = dict[float, list[float]]  # by rate, of one seed after the other


def search(
    configs: Sequence[Config],
    images: Images,
    grid: Sequence[float] = GRID,
    seeds: int = SEEDS,
    workers: int = 0,
) -> list[dict[str, Any]]:
    """For each config, of an optimizer each, the rate with the lowest held-out R-D loss at its end.

    See `best_rates`, which treats all optimizers alike. The images held out are those the runs
    are judged by: all optimizers have this advantage alike.
    """
    found = []
    for config in configs:

        def loss(rate: float, seed: int, config: Config = config) -> float:
            return _final_loss(replace(config, lr=rate, seed=seed), images, workers)

        try:
            found.append(searched(config, loss, grid, seeds))
        except ImportError as error:
            say(f"{config.optimizer} is missing ({error}); the others are searched without it")
    if not found:
        raise BadInput("none of the optimizers is installed; name others by --optimizers")
    return found


def searched(
    config: Config, loss: Callable[[float, int], float], grid: Sequence[float], seeds: int
) -> dict[str, Any]:
    """The search of one optimizer as a row of a result.

    Args:
        config: of its runs, but for the rate and the seed; the first seed is the config's.
        loss: of a rate and a seed; infinite where the run diverged.
    """

    def numbered(rate: float, number: int) -> float:
        return loss(rate, config.seed + number)

    losses = best_rates(numbered, grid, seeds)
    whole = {rate: fmean(of) for rate, of in losses.items() if len(of) == seeds}
    best = min(whole, key=whole.__getitem__)
    if at_edge := best in (min(whole), max(whole)):
        say(f"{config.optimizer}: the best rate {best:.3g} is still at the edge of what was tried")
    tried = [
        {"lr": rate, "rd_loss": _number(fmean(of)), "rd_losses": [_number(one) for one in of]}
        for rate, of in sorted(losses.items())
    ]
    settings = {key: value for key, value in config.as_dict().items() if key != "lr"}
    return {
        "optimizer": config.optimizer,
        "lr": best,
        "at_edge": at_edge,
        "seeds": seeds,
        "flat": flatness(losses, best, seeds),
        "tried": tried,
        "config": settings,
    }


def best_rates(loss: Callable[[float, int], float], grid: Sequence[float], seeds: int) -> Losses:
    """The losses at every rate of the grid, by one seed, and near the best of these, by `seeds`.

    The best rate and its two neighbours, RATIO apart, are tried by `seeds`; while a neighbour has
    a lower mean, it is the best in turn, and its neighbours are tried. So the lowest mean has two
    neighbours with as many seeds.

    Args:
        loss: of a rate and the number of a seed, 0 to seeds - 1.
    """
    losses = {rate: [loss(rate, 0)] for rate in grid}
    start = min(losses, key=lambda rate: losses[rate][0])
    means: dict[int, float] = {}  # by the power of RATIO
    best = 0
    for _ in range(MOVES + 1):
        for power in (best, best - 1, best + 1):
            rate = float(f"{start * RATIO**power:.3g}") if power else start
            tried = losses.setdefault(rate, [])
            tried += [loss(rate, number) for number in range(len(tried), seeds)]
            means[power] = fmean(tried)
        before, best = best, min(means, key=means.__getitem__)
        if best == before:
            break
    return losses


def flatness(losses: Losses, best: float, seeds: int) -> dict[str, Any]:
    """The rates around the best whose mean loss exceeds its by no more than its spread.

    Of rates that all `seeds` tried, neighbour by neighbour: lowest, highest, their factor, the
    spread (standard deviation over seeds), and whether an end is only where trying ended. None
    of these where a single seed has no spread, or the best diverged.
    """
    whole = sorted(rate for rate, of in losses.items() if len(of) == seeds)
    if seeds < 2 or not math.isfinite(sum(losses[best])):
        return {"low": None, "high": None, "factor": None, "spread": None, "at_least": None}
    spread = stdev(losses[best])
    flat = [fmean(losses[rate]) <= fmean(losses[best]) + spread for rate in whole]
    low = high = whole.index(best)
    while low > 0 and flat[low - 1]:
        low -= 1
    while high < len(whole) - 1 and flat[high + 1]:
        high += 1
    return {
        "low": whole[low],
        "high": whole[high],
        "factor": whole[high] / whole[low],
        "spread": spread,
        "at_least": low == 0 or high == len(whole) - 1,
    }


def _final_loss(config: Config, images: Images, workers: int = 0) -> float:
    """Held-out R-D loss after a whole run; infinite if it diverged."""
    tried = at_the_end(config)
    title = f"{config.optimizer}, lr {config.lr:.3g}, seed {config.seed}"
    summary = run(Training(tried, images, workers=workers), None, title=title)
    return math.inf if summary["diverged"] else float(summary["rd_loss"])


def at_the_end(config: Config) -> Config:
    """The same run with one evaluation; plateau acts on evaluations, and keeps all."""
    every = config.evaluate_every if config.schedule == "plateau" else config.steps
    return replace(config, evaluate_every=every)


def _number(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def searched_rates(names: tuple[str, ...], path: Path = RESULT) -> dict[str, float]:
    """The learning rates that the search has found for these optimizers."""
    try:
        results = json.loads(path.read_text())["results"]
    except FileNotFoundError:
        raise BadInput(f"no {path.name} here; give --lr, or run `search` first") from None
    rates = {result["optimizer"]: result["lr"] for result in results}
    if absent := [name for name in names if name not in rates]:
        raise BadInput(f"{path.name} has no rate for {', '.join(absent)}; give --lr, or search it")
    return {name: rates[name] for name in names}

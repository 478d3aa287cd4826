"""Learning rates by a search that treats all optimizers alike; its result is a committed file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.files import BadInput
from bench.lic.data import Images
from bench.lic.training import Config, Training, run, say

RESULT = Path(__file__).with_name("search.json")
GRID = (3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3)
RATIO = 2.0
FURTHER = 3  # rates that are tried after the grid


def search(
    configs: Sequence[Config],
    images: Images,
    grid: Sequence[float] = GRID,
    seeds: int = 1,
    workers: int = 0,
) -> list[dict[str, Any]]:
    """For each config, of an optimizer each, the rate with the lowest held-out R-D loss at its end.

    Every optimizer has the same budget: the rates of `grid` and FURTHER ones, with as many steps
    and seeds. A rate's loss is the mean over the seeds, from the config's on. The schedule is
    that of a run of so many steps. The images held out are those the runs are judged by: all
    optimizers have this advantage alike.
    """
    found = []
    for config in configs:
        try:
            found.append(_search_one(config, images, grid, seeds, workers))
        except ImportError as error:
            say(f"{config.optimizer} is missing ({error}); the others are searched without it")
    if not found:
        raise BadInput("none of the optimizers is installed; name others by --optimizers")
    return found


def _search_one(
    config: Config, images: Images, grid: Sequence[float], seeds: int, workers: int = 0
) -> dict[str, Any]:
    losses = best_rates(
        lambda rate: _final_loss(config, rate, images, seeds, workers), grid, FURTHER
    )
    best = min(losses, key=losses.__getitem__)
    if at_edge := best in (min(losses), max(losses)):
        say(f"{config.optimizer}: the best rate {best:.3g} is still at the edge of what was tried")
    tried = [{"lr": rate, "rd_loss": _number(losses[rate])} for rate in sorted(losses)]
    settings = {key: value for key, value in config.as_dict().items() if key != "lr"}
    return {
        "optimizer": config.optimizer,
        "lr": best,
        "at_edge": at_edge,
        "seeds": seeds,
        "tried": tried,
        "config": settings,
    }


def best_rates(
    loss: Callable[[float], float], grid: Sequence[float], further: int
) -> dict[float, float]:
    """The loss at every rate of the grid and at `further` others, where the best one leads.

    The best rate so far at an edge is followed beyond it, by RATIO; between two others the wider
    of the gaps beside it is halved, on the logarithmic scale.
    """
    losses = {rate: loss(rate) for rate in grid}
    for _ in range(further):
        rate = _next(losses)
        losses[rate] = loss(rate)
    return losses


def _next(losses: dict[float, float]) -> float:
    rates = sorted(losses)
    best = min(losses, key=losses.__getitem__)
    place = rates.index(best)
    if place == 0:
        return best / RATIO
    if place == len(rates) - 1:
        return best * RATIO
    below, above = rates[place - 1], rates[place + 1]
    return math.sqrt(best * (below if best / below >= above / best else above))


def _final_loss(config: Config, rate: float, images: Images, seeds: int, workers: int = 0) -> float:
    """Held-out R-D loss after whole runs, the mean over seeds; infinite if one diverged."""
    losses = []
    for seed in range(config.seed, config.seed + seeds):
        # Plateau acts on evaluations; without it one at the end is enough.
        every = config.evaluate_every if config.schedule == "plateau" else config.steps
        tried = replace(config, lr=rate, seed=seed, evaluate_every=every)
        title = f"{config.optimizer}, lr {rate:.3g}" + (f", seed {seed}" if seeds > 1 else "")
        summary = run(Training(tried, images, workers=workers), None, title=title)
        losses.append(math.inf if summary["diverged"] else summary["rd_loss"])
    return fmean(losses)


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

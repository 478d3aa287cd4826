"""Learning rates by a search that treats all optimizers alike; its result is a committed file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.command import BadInput
from bench.lic.config import Config
from bench.lic.data import Images
from bench.lic.progress import Progress, say
from bench.lic.training import Training

RESULT = Path(__file__).with_name("search.json")
GRID = (3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3)
RATIO = 2.0
EXTENSIONS = 3  # how far beyond the grid a best rate at its edge is followed


def search(config: Config, photos: Images) -> list[dict[str, Any]]:
    """For each optimizer the rate of GRID with the lowest held-out R-D loss after config.steps.

    The schedule is the demo's, shortened to config.steps. A best rate at the edge of the grid
    extends the grid, and is said to be at the edge if that does not help. The photos held out are
    those the demo is judged by: all optimizers have this advantage alike.
    """
    found = []
    for name in config.optimizers:
        try:
            found.append(_search_one(name, config, photos))
        except ImportError as error:
            say(f"{name} is missing ({error}); the others are searched without it")
    return found


def _search_one(name: str, config: Config, photos: Images) -> dict[str, Any]:
    losses = {rate: _final_loss(name, rate, config, photos) for rate in GRID}
    for _ in range(EXTENSIONS):
        edge = _edge(losses)
        if edge is None:
            break
        losses[edge] = _final_loss(name, edge, config, photos)
    best = min(losses, key=losses.__getitem__)
    if at_edge := _edge(losses) is not None:
        say(f"{name}: the best rate {best:.3g} is still at the edge of what was tried")
    tried = [{"lr": rate, "rd_loss": _number(losses[rate])} for rate in sorted(losses)]
    settings = {key: value for key, value in config.as_dict().items() if key != "rates"}
    return {"optimizer": name, "lr": best, "at_edge": at_edge, "tried": tried, "config": settings}


def _edge(losses: dict[float, float]) -> float | None:
    """The rate to try next when the best one is the smallest or largest tried, else None."""
    best = min(losses, key=losses.__getitem__)
    if best == min(losses):
        return best / RATIO
    return best * RATIO if best == max(losses) else None


def _final_loss(name: str, rate: float, config: Config, photos: Images) -> float:
    """Held-out R-D loss after a whole run; infinite if it diverged."""
    training = Training(name, replace(config, rates={name: rate}), photos)
    progress = Progress(f"{name}, lr {rate:.3g}", 0, config.steps)
    while not training.finished:
        progress.stepped(training.step())
    loss = training.evaluate().loss
    progress.close()
    say(f"{name}, lr {rate:.3g}: held-out R-D loss {loss:.4f}")
    return loss if math.isfinite(loss) else math.inf


def _number(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def searched_rates(names: tuple[str, ...], path: Path = RESULT) -> dict[str, float]:
    """The learning rates that the search has found for these optimizers."""
    try:
        results = json.loads(path.read_text())["results"]
    except FileNotFoundError:
        raise BadInput(f"no {path.name} here; give --lr, or run with --search first") from None
    rates = {result["optimizer"]: result["lr"] for result in results}
    if absent := [name for name in names if name not in rates]:
        raise BadInput(f"{path.name} has no rate for {', '.join(absent)}; give --lr or --search")
    return {name: rates[name] for name in names}

"""Every run of a plan once: what is finished is kept, and not repeated."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from bench.files import BadInput, write_text
from bench.lic.comparison.plan import Preset, runs, search_config
from bench.lic.data import load
from bench.lic.evaluation.runs import Run, read
from bench.lic.models import stride
from bench.lic.optimizers import build as build_optimizer
from bench.lic.search import searched
from bench.lic.training import Config, Training, run, say
from bench.lic.training.runs import CHECKPOINT, MODEL, RESULT

WALL = "wall.json"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes from `path`, a file or a folder, until this is over.

    The system gives the lock back when the process dies, however it does.

    Raises:
        BadInput: another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(
            f"another call is at work on {path}; wait for it, or name another --work"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Add the seconds that this takes to those of earlier calls, also if it is stopped."""
    before, start = wall_seconds(folder) or 0.0, time.perf_counter()
    try:
        yield
    finally:
        if folder.is_dir():
            seconds = before + time.perf_counter() - start
            write_text(folder / WALL, json.dumps({"seconds": seconds}) + "\n")


def wall_seconds(folder: Path) -> float | None:
    """Training and evaluations of the run in `folder`; None where it was not kept."""
    try:
        return float(json.loads((folder / WALL).read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass
class Comparison:
    """What has been run of a preset.

    `wall_seconds` are of searches and runs with their evaluations, of all calls that made them;
    `untimed` of these are not in it, as it was not kept how long they took.
    """

    preset: Preset
    found: str  # images
    searches: list[dict[str, Any]] = field(default_factory=list)  # see bench/lic/search.py
    runs: list[Run] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # optimizers, and why
    skipped: list[str] = field(default_factory=list)  # images, and why
    wall_seconds: float = 0.0
    untimed: int = 0

    def add_time(self, seconds: float | None) -> None:
        self.wall_seconds += seconds or 0.0
        self.untimed += seconds is None


def compare(
    preset: Preset,
    data: str | None,
    work: Path,
    settings: Mapping[str, Any],
    workers: int = 0,
    *,
    training: type[Training] | None = None,
    known: Sequence[dict[str, Any]] = (),
) -> Comparison:
    """Search the rates, then train all runs; `work` keeps each that is finished.

    Args:
        preset: what is compared.
        data: folder of images; None takes scikit-image's photos.
        work: one folder for each run, as `train --out` leaves it, and the searches.
        settings: further fields of every run's Config, the same for all.
        workers: processes that read images.
        training: what takes the steps of the runs, in place of Training.
        known: searches of other comparisons; one of equal settings is not repeated.

    Raises:
        BadInput: there are no such images, or `work` holds runs of another comparison, or one
            that another call is at.
        Interrupted: on Ctrl-C; another call goes on from there.
    """
    usable, missing = _installed(preset.optimizers)
    comparison = Comparison(preset, "", missing=missing)
    for trial in preset.trials:
        images = load(data, trial.crop, stride(trial.model, trial.factor))
        comparison.found = images.found
        folder = work / f"{trial.model}_{trial.factor:g}"
        shared = {**settings, "images": images.fingerprint()}
        rates = dict.fromkeys(usable, preset.rate)
        if trial.searched:
            for name in usable:
                config = search_config(preset, trial, name, shared)
                made = partial(Training, images=images, workers=workers)
                with alone(folder / f"search_{name}"):
                    found = _searched(config, preset, made, folder, known)
                comparison.searches.append(found)
                comparison.add_time(found["wall_seconds"])
                rates[name] = found["lr"]
        planned = list(runs(preset, trial, rates, shared))
        for number, (name, config) in enumerate(planned, start=1):
            say(f"{trial.model}, run {number} of {len(planned)}: {name}")
            with alone(folder / name):
                made = partial(training or Training, images=images, workers=workers)
                comparison.runs.append(_finished(config, made, folder / name, preset))
            comparison.add_time(wall_seconds(folder / name))
        new = [reason for reason in images.skipped if reason not in comparison.skipped]
        comparison.skipped += new  # of a large folder those that were drawn
        for reason in new:
            say(f"skipped {reason}")
    return comparison


def _installed(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The optimizers that can be made, and of the others why not."""
    usable, missing = [], []
    for name in names:
        try:
            build_optimizer(name, nn.Linear(2, 2), 1e-3, 10)
            usable.append(name)
        except ImportError as error:
            missing.append(f"{name} is missing ({error})")
            say(f"{missing[-1]}; the others run without it")
    return usable, missing


def _searched(
    config: Config,
    preset: Preset,
    made: Callable[[Config], Training],
    folder: Path,
    known: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The search of one optimizer's rate, from `known` if it is there; its runs are kept.

    `wall_seconds` are of its runs; None where of one it was not kept.
    """
    for before in known:
        if not config.differences({**before["config"], "lr": config.lr}):
            return {**before, "known": True, "wall_seconds": 0.0}
    kept: list[Run] = []

    def loss(rate: float, seed: int) -> float:
        place = folder / f"search_{config.optimizer}_lr_{rate:g}_seed_{seed}"
        say(f"{config.model}, search: {place.name}")
        kept.append(_finished(replace(config, lr=rate, seed=seed), made, place, preset))
        (place / MODEL).unlink(missing_ok=True)  # of no use any more
        return math.inf if kept[-1].diverged else float(kept[-1].summary["rd_loss"])

    found = searched(config, loss, preset.grid, preset.search_seeds)
    seconds = [wall_seconds(one.folder) for one in kept]
    return {
        **found,
        "wall_seconds": None if None in seconds else sum(filter(None, seconds)),
        "machine": kept[0].machine,
        "versions": kept[0].versions,
        "commits": sorted({str(commit) for one in kept for commit in one.commits}),
    }


def _finished(
    config: Config, made: Callable[[Config], Training], folder: Path, preset: Preset
) -> Run:
    """The run in `folder`, which is trained, or trained to its end, if it has none."""
    if (folder / RESULT).exists():
        kept = read(str(folder))
        _refuse_another(folder, config, kept.config)
    else:
        training = made(config)
        with timed(folder):
            run(training, folder, resume=True, checkpoint_every=preset.checkpoint_every)
        kept = read(str(folder))
    (folder / CHECKPOINT).unlink(missing_ok=True)  # most of the bytes, and of no use any more
    return kept


def _refuse_another(path: Path, config: Config, saved: dict[str, Any]) -> None:
    if different := config.differences(saved):
        raise BadInput(
            f"{path} is of another comparison: {'; '.join(different)}; name another --work, or "
            "remove it"
        )

"""The demo: one model with each optimizer in turn, interruptible at any step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.files import BadInput
from bench.lic.data import Images
from bench.lic.training import Config, Training, run, say
from bench.lic.training.runs import CHECKPOINT, start_anew


def run_all(
    configs: list[Config], images: Images, folder: Path, *, resume: bool, checkpoint_every: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run each config in the folder of its optimizer's name, or what `resume` finds unfinished.

    Returns:
        The summaries, and of each optimizer that could not be imported why.

    Raises:
        Interrupted: on Ctrl-C, after the checkpoint was written.
        BadInput: there is nothing to resume, or none of the optimizers is installed.
    """
    names = tuple(config.optimizer for config in configs)
    if not resume:
        start_anew(folder, ("", *names))
    elif not any((folder / name / CHECKPOINT).exists() for name in names):
        raise BadInput(f"no checkpoint at {folder}; leave out --resume to start one")
    results: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for name, config in zip(names, configs, strict=True):
        try:
            training = Training(config, images)
        except ImportError as error:
            missing[name] = f"{name} is missing ({error})"
            say(f"{missing[name]}; the others run without it")
            continue
        results.append(
            run(training, folder / name, resume=resume, checkpoint_every=checkpoint_every)
        )
        del training  # before the next one is built: both at once would be the peak of memory
    if not results:
        raise BadInput(f"no optimizer to run: {'; '.join(missing.values())}")
    return results, missing

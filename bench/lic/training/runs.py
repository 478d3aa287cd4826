"""A run from its first step, or its last checkpoint, to its end; and the files it leaves."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from bench import envelope
from bench.files import BadInput
from bench.lic.models import build
from bench.lic.training import checkpoint
from bench.lic.training.history import Board, note_where, summarise
from bench.lic.training.processes import Interrupted, Progress, StoppedWaiting, StopRequest, say
from bench.lic.training.training import Training

CHECKPOINT, MODEL, RESULT = "checkpoint.pt", "model.pt", "result.json"
CHECKPOINT_EVERY = 50  # steps: a few seconds are lost at most, and writing takes little of them


class Pace:
    """When a checkpoint is due: after so many steps, and not before so many seconds."""

    def __init__(self, steps: int, seconds: float, done: int) -> None:
        self.every, self.seconds = steps, seconds
        self._saved(done)

    def due(self, done: int, last: bool) -> bool:
        """Asked after each step; where it says yes, one is written.

        Args:
            last: whether no step follows in this process.
        """
        waited = time.monotonic() - self.time >= self.seconds
        if last or (done - self.steps >= self.every and waited):
            self._saved(done)
            return True
        return False

    def _saved(self, done: int) -> None:
        self.steps, self.time = done, time.monotonic()


def run(
    training: Training,
    folder: Path | None,
    *,
    title: str | None = None,
    resume: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
    checkpoint_seconds: float = 0.0,
    board: Path | None = None,
) -> dict[str, Any]:
    """Train to the end with a progress bar, evaluations and checkpoints; return the summary.

    Leaves in `folder` checkpoint.pt, model.pt (see `load_model`) and result.json; a run that is
    killed at any moment goes on from its last checkpoint, to the same bits on a CPU.

    Args:
        training: a new one; all its processes call this, and see the same folder.
        folder: None writes nothing.
        title: what the run is called on the screen; without one the optimizer's name.
        resume: take up the checkpoint in `folder`, if there is one. One that is of a finished run
            is only reported again.
        checkpoint_every: steps; no result depends on it.
        checkpoint_seconds: at least so many between two checkpoints, but for the last one.
        board: folder of TensorBoard's records.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM, after the checkpoint was written.
        BadInput: the folder cannot be made, or its checkpoint is of another config.
    """
    title = title or training.config.optimizer
    if folder is not None:
        _make(folder)
        if resume and (folder / CHECKPOINT).exists():
            saved = checkpoint.load(folder / CHECKPOINT, training.config)
            training.load_state_dict(saved["training"])
    if not training.finished:
        if training.processes.first:
            note_where(training.history)
        pace = Pace(checkpoint_every, checkpoint_seconds, training.steps)
        _train(training, folder, title, pace, board)
    elif folder is not None and (folder / MODEL).exists() and (folder / RESULT).exists():
        return _reported(folder)
    summary = summarise(training.history, training.config)
    if folder is not None and training.processes.first:
        model = {"config": training.config.as_dict(), "model": training.model.state_dict()}
        checkpoint.write(folder / MODEL, model)
        envelope.write(str(folder / RESULT), [summary], "lic train")
    return summary


def _reported(folder: Path) -> dict[str, Any]:
    """The summary that a finished run has left, with the machine and the commit it was taken on."""
    try:
        (summary,) = json.loads((folder / RESULT).read_text())["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{folder / RESULT} is damaged ({type(error).__name__}); remove it, and --resume "
            "writes it again"
        ) from None
    found: dict[str, Any] = summary
    return found


def _train(
    training: Training, folder: Path | None, title: str, pace: Pace, board: Path | None
) -> None:
    processes = training.processes
    shown = processes.first
    progress = Progress(title, training.steps, training.config.steps, shown)
    records = Board(board if shown else None, training.steps)
    try:
        with StopRequest(processes.world == 1) as stop:
            training.while_waiting = stop.waiting
            while not training.finished:
                try:
                    quality = training.step()
                except StoppedWaiting:
                    alone = not training.in_parts  # nobody waits for the parts of others here
                    if folder is not None and alone and pace.due(training.steps, True):
                        _save(training, folder)
                    raise Interrupted(f"stopped after step {training.steps} of {title}") from None
                progress.stepped(quality)
                rate = training.optimizer.param_groups[0]["lr"]
                records.stepped(training.steps, quality, rate)
                if training.evaluation_due():
                    quality = training.evaluate()
                    progress.evaluated(training.steps, quality)
                    records.evaluated(training.steps, quality)
                stopped = processes.any(stop.made)
                last = stopped or training.finished
                due = folder is not None and pace.due(training.steps, last)
                if training.in_parts:  # of which each has one, and a clock of its own
                    due = processes.any(due)
                if folder is not None and due:
                    _save(training, folder)
                if stopped and not training.finished:
                    raise Interrupted(f"stopped after step {training.steps} of {title}")
    finally:
        training.close()
        progress.close()
        records.close()


def _save(training: Training, folder: Path) -> None:
    training.gather()
    if training.processes.first:
        checkpoint.save(folder / CHECKPOINT, training.config, training.state_dict())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: {error.strerror}; name another folder") from None


def start_anew(folder: Path, names: tuple[str, ...] = ("",)) -> None:
    """Put the files of earlier runs in these folders below `folder` aside, and say so.

    They are renamed to NAME.old: whoever has only forgotten --resume has not lost a run by it.
    """
    found = [
        path
        for name in names
        for file in (RESULT, MODEL, CHECKPOINT)
        if (path := folder / name / file).exists()
    ]
    for path in found:
        try:
            os.replace(path, path.with_name(path.name + ".old"))
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}; name another folder") from None
    if found:
        say(f"starting anew: the earlier run's files in {folder} are now *.old (see --resume)")


def load_model(folder: str | Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The model that a finished run left in `folder`, in evaluation mode, and the run's config.

    Raises:
        BadInput: there is none, or its file is of something else.
    """
    path = Path(folder) / MODEL
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"no {MODEL} in {folder}: name the folder of a finished run") from None
    except Exception as error:  # a file of anything else makes the unpickler raise nearly anything
        raise BadInput(f"{path} is not readable ({type(error).__name__}); train anew") from None
    if not isinstance(saved, dict) or not {"config", "model"} <= saved.keys():
        raise BadInput(f"{path} is no model of `python -m bench.lic train`; name another run")
    config = saved["config"]
    model = build(config["model"], config["factor"])
    try:
        model.load_state_dict(saved["model"])
    except (RuntimeError, TypeError, AttributeError):  # names or shapes, or no tensors at all
        raise BadInput(
            f"{path} does not fit {config['model']} at {config['factor']:g} of its widths, as this "
            "version makes it; train anew, or take the version that trained it"
        ) from None
    return model.eval(), config

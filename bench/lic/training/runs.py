"""A run from its first step, or its last checkpoint, to its end; and the files it leaves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch

from bench.command import BadInput
from bench.lic.models import build
from bench.lic.training import checkpoint
from bench.lic.training.board import Board
from bench.lic.training.history import summarise
from bench.lic.training.progress import Progress, say
from bench.lic.training.training import Training
from bench.output import envelope

CHECKPOINT, MODEL, RESULT = "checkpoint.pt", "model.pt", "result.json"
CHECKPOINT_EVERY = 50  # steps: a few seconds are lost at most, and writing takes little of them


class Interrupted(Exception):
    """Stopped by Ctrl-C; the message says where."""


class StopRequest:
    """Turns the first Ctrl-C into a request that is met between two steps.

    The second one stops at once; but not among several processes, which torchrun tells as well as
    the terminal does, so that each of them gets two.
    """

    def __init__(self, alone: bool = True) -> None:
        self.made, self.alone = False, alone

    def __enter__(self) -> StopRequest:
        self.previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _note(self, *received: object) -> None:
        self.made = True
        if self.alone:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def run(
    training: Training,
    folder: Path | None,
    *,
    title: str | None = None,
    resume: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
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
        board: folder of TensorBoard's records.

    Raises:
        Interrupted: on Ctrl-C, after the checkpoint was written.
        BadInput: the folder cannot be made, or its checkpoint is of another config.
    """
    title = title or training.config.optimizer
    if folder is not None:
        _make(folder)
        if resume and (folder / CHECKPOINT).exists():
            saved = checkpoint.load(folder / CHECKPOINT, training.config)
            training.load_state_dict(saved["training"])
    if not training.finished:
        _train(training, folder, title, checkpoint_every, board)
    summary = summarise(training.history, training.config)
    if folder is not None and training.processes.first:
        model = {"config": training.config.as_dict(), "model": training.model.state_dict()}
        checkpoint.save(folder / MODEL, model)
        envelope.write(str(folder / RESULT), [summary])
    return summary


def _train(
    training: Training, folder: Path | None, title: str, checkpoint_every: int, board: Path | None
) -> None:
    processes = training.processes
    shown = processes.first
    progress = Progress(title, training.steps, training.config.steps, shown)
    records = Board(board if shown else None, training.steps)
    try:
        with StopRequest(processes.world == 1) as stop:
            while not training.finished:
                quality = training.step()
                progress.stepped(quality)
                rate = training.optimizer.param_groups[0]["lr"]
                records.stepped(training.steps, quality, rate)
                if training.evaluation_due():
                    quality = training.evaluate()
                    progress.evaluated(training.steps, quality)
                    records.evaluated(training.steps, quality)
                stopped = processes.any(stop.made)
                if folder is not None and (
                    stopped or training.finished or training.steps % checkpoint_every == 0
                ):
                    _save(training, folder)
                if stopped and not training.finished:
                    raise Interrupted(f"stopped after step {training.steps} of {title}")
    finally:
        progress.close()
        records.close()


def _save(training: Training, folder: Path) -> None:
    if training.processes.first:
        state = {"config": training.config.as_dict(), "training": training.state_dict()}
        checkpoint.save(folder / CHECKPOINT, state)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: {error.strerror}; name another folder") from None


def start_anew(folder: Path, names: tuple[str, ...] = ("",)) -> None:
    """Remove the checkpoints of earlier runs in these folders below `folder`, and say so."""
    old = [path for name in names if (path := folder / name / CHECKPOINT).exists()]
    for path in old:
        path.unlink()
    if old:
        say(f"starting anew: the checkpoint in {folder} is replaced (see --resume)")


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
    model.load_state_dict(saved["model"])
    return model.eval(), config

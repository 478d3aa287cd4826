"""The demo: the same model from the same seed with each optimizer, interruptible at any step."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.command import BadInput
from bench.lic import checkpoint
from bench.lic.config import Config
from bench.lic.data import Images
from bench.lic.progress import Progress, say
from bench.lic.training import Training

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY = 50  # steps: a few seconds are lost at most, and writing takes little of them


class Interrupted(Exception):
    """Stopped by Ctrl-C; the message says where."""


class StopRequest:
    """Turns the first Ctrl-C into a request that is met between two steps."""

    def __enter__(self) -> StopRequest:
        self.made = False
        self.previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _note(self, *received: object) -> None:
        self.made = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one stops at once


class Demo:
    """Runs of all optimizers in turn, and the checkpoint they are resumed from in `folder`."""

    def __init__(
        self, config: Config, photos: Images, folder: Path, checkpoint_every: int = CHECKPOINT_EVERY
    ) -> None:
        self.config, self.photos, self.folder = config, photos, folder
        self.checkpoint_every = checkpoint_every  # steps; no result depends on it
        self.finished: dict[str, dict[str, Any]] = {}  # history of each optimizer that is done
        self.missing: dict[str, str] = {}  # what could not be imported, and why
        self.interrupted_run: dict[str, Any] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--out {folder}: {error.strerror}; name another folder") from None

    def start(self) -> None:
        if (self.folder / CHECKPOINT).exists():
            say(f"starting anew: the checkpoint in {self.folder} is replaced (see --resume)")

    def resume(self) -> None:
        """Take up the checkpoint; BadInput when there is none or it has another config."""
        saved = checkpoint.load(self.folder / CHECKPOINT, self.config)
        self.finished, self.interrupted_run = saved["finished"], saved["training"]

    def run(self) -> None:
        """Run what is not finished yet.

        Raises:
            Interrupted: on Ctrl-C, after the checkpoint was written.
            BadInput: when none of the optimizers is installed.
        """
        with StopRequest() as stop:
            for name in self.config.optimizers:
                if name not in self.finished:
                    self._run_one(name, stop)
        if not self.finished:
            raise BadInput(f"no optimizer to run: {'; '.join(self.missing.values())}")

    def _run_one(self, name: str, stop: StopRequest) -> None:
        try:
            training = Training(name, self.config, self.photos)
        except ImportError as error:
            self.missing[name] = f"{name} is missing ({error})"
            say(f"{self.missing[name]}; the others run without it")
            return
        if self.interrupted_run is not None and self.interrupted_run["name"] == name:
            training.load_state_dict(self.interrupted_run)
        self._train(training, stop)
        checkpoint.save(self.folder / f"{name}.pt", training.model.state_dict())
        self.finished[name] = asdict(training.history)
        self._save(None)

    def _train(self, training: Training, stop: StopRequest) -> None:
        progress = Progress(training.name, training.steps, self.config.steps)
        try:
            while not training.finished:
                progress.stepped(training.step())
                if training.evaluation_due():
                    progress.evaluated(training.steps, training.evaluate())
                if stop.made:
                    self._save(training)
                    raise Interrupted(f"stopped after step {training.steps} of {training.name}")
                if training.steps % self.checkpoint_every == 0:
                    self._save(training)
        finally:
            progress.close()

    def _save(self, training: Training | None) -> None:
        state = {
            "config": self.config.as_dict(),
            "finished": self.finished,
            "training": training.state_dict() if training else None,
        }
        checkpoint.save(self.folder / CHECKPOINT, state)

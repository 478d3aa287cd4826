"""A checkpoint that is whole or absent, whenever the process or the machine dies."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from bench.files import BadInput, replacing, writing
from bench.lic.training.config import Config

FORMAT = 2  # of what `Training.state_dict` holds


def save(path: Path, config: Config, training: dict[str, Any]) -> None:
    """Write a checkpoint of a run with this config, which `load` reads."""
    write(path, {"format": FORMAT, "config": config.as_dict(), "training": training})


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state` beside `path`, then put it in its place in one step.

    The bytes are on the disk before the name leads to them, and the name is before anything later
    happens: a machine that dies leaves the new checkpoint or the one before it.

    Raises:
        CannotWrite: the disk is full, for instance; the checkpoint before is as it was.
    """
    with replacing(path) as partial:
        with _NotingFile(partial, "w") as raw:
            try:
                with io.BufferedWriter(raw) as file:
                    torch.save(state, file)
            except (OSError, RuntimeError):
                if raw.error is not None:
                    raise raw.error from None
                raise
        _to_disk(partial)
    with writing(path):
        _to_disk(path.parent)


class _NotingFile(io.FileIO):
    """Keeps the first reason why it could not be written, which torch replaces by one of its own.

    Given a name in place of a file, torch says neither the reason nor the name.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders, and keeps names itself
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path, config: Config) -> dict[str, Any]:
    """The state that was saved by a run with this very config."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"no checkpoint at {path}; leave out --resume to start one") from None
    except Exception as error:  # a file of anything else makes the unpickler raise nearly anything
        reason = type(error).__name__
        raise BadInput(
            f"{path} is no checkpoint, or not a readable one ({reason}); leave out --resume"
        ) from None
    if not isinstance(state, dict) or "config" not in state:
        raise BadInput(f"{path} is no checkpoint of this command; leave out --resume")
    if state.get("format") != FORMAT:
        raise BadInput(
            f"{path} was written by another version of this command; resume with that one, or "
            "leave out --resume"
        )
    if different := config.differences(state["config"]):
        raise BadInput(
            f"{path} was written with another configuration: {'; '.join(different)}; "
            "resume with the options it was started with, or leave out --resume"
        )
    return state

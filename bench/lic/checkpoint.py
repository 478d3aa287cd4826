"""A checkpoint that is whole or absent, whenever the process dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from bench.command import BadInput
from bench.lic.config import Config


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` beside `path`, then put it in its place in one step."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


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
    if different := config.differences(state["config"]):
        raise BadInput(
            f"{path} was written with another configuration: {'; '.join(different)}; "
            "resume with the options it was started with, or leave out --resume"
        )
    return state

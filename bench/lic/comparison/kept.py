"""One call at a time on one run, and how long all calls together have worked on it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bench.files import BadInput, write_text

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

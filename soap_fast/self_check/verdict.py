"""The outcome of a self-check, and where it is kept."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # torch needs it too, so it is there


@dataclass(frozen=True)
class Verdict:
    """What a check of a backend on a device has found.

    Attributes:
        error: largest one, see `largest_error`; None where none was measured.
        tolerance: what it may be.
        problem: what went wrong in place of a measurement, in one line.
        crashed: whether that was a fault of the process, as a kernel causes it.
    """

    error: float | None
    tolerance: float
    problem: str | None = None
    crashed: bool = False

    @property
    def holds(self) -> bool:
        """Whether another check would find the same; a full disk or a busy machine passes."""
        return self.error is not None or self.crashed

    @property
    def ok(self) -> bool:
        return self.error is not None and self.error <= self.tolerance

    def __str__(self) -> str:
        if self.error is None:
            return str(self.problem)
        return f"error {self.error:.1e}, allowed {self.tolerance:.0e}"


def cache_folder() -> Path:
    """The user's own, by the conventions of the system."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "soap_fast" / "self_check"


class Kept:
    """The verdict on one set of facts (device, versions, backend), in a file of its own.

    A folder that cannot be read or written keeps nothing, which is no error.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        text = json.dumps(facts, sort_keys=True)
        try:
            name = hashlib.sha256(text.encode()).hexdigest()[:32]
            self.path: Path | None = cache_folder() / f"{name}.json"
        except RuntimeError:  # a user without a home
            self.path = None

    def read(self) -> Verdict | None:
        """None where there is none, or none that can be read."""
        if self.path is None:
            return None
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return Verdict(**content["verdict"]) if content["facts"] == self.facts else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, verdict: Verdict) -> None:
        if self.path is None:
            return
        content = json.dumps({"facts": self.facts, "verdict": asdict(verdict)}, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self.path.parent, suffix=".new", delete=False, encoding="utf-8"
            ) as file:
                file.write(content)
            os.replace(file.name, self.path)  # whole or not at all
        except OSError:
            return

    @contextmanager
    def locked(self, seconds: float) -> Iterator[None]:
        """One process checks at a time, and others find its verdict; at most so long."""
        lock = None
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self.path.with_suffix(".lock"))
                lock.acquire(timeout=seconds)
            except (OSError, Timeout, NotImplementedError):
                lock = None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()
